"""The file of a profile: safetensors with a JSON document and a checksum over both.

Never pickled. What the document says is the profile's own business. Tensors of the current version:
`gram.I` f64 [B, B, T, T] of region I; `solver` f64 [T], where measured; of a sampler that clips
`clipped.clamp` f64 [T, 5], `clipped.x` and `clipped.y` f32 [T, N], `clipped.answer` f64 [T], which
readers that do not know them leave out.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from .atomic_file import write_atomically

FORMAT = "ditcache.profile"
VERSION = 1
AGAIN = "calibrate again"

Array = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.float64] | npt.NDArray[np.float32]


class ProfileError(ValueError):
    """A profile that cannot be made, read or combined; the message says what to do about it."""


def write(
    path: str | os.PathLike[str], document: Mapping[str, Any], tensors: Mapping[str, Numbers]
) -> None:
    """Write to `path`, replacing it as a whole."""
    text = json.dumps(document)
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "document": text,
        "sha256": _checksum(text, tensors),
    }
    write_atomically(path, safetensors.numpy.save(dict(tensors), metadata))


def read(path: str | os.PathLike[str]) -> tuple[str, dict[str, Array]]:
    """The document (JSON text) and the tensors; `ProfileError` if the file is not whole."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise ProfileError(f"{path}: no such profile file") from None
    except IsADirectoryError:
        raise ProfileError(f"{path}: a folder; expected a profile file") from None
    metadata = _metadata(data)
    if metadata.get("format") != FORMAT:
        raise ProfileError(f"{path}: not a profile (expected safetensors of format {FORMAT})")
    if metadata.get("version") != str(VERSION):
        raise ProfileError(
            f"{path}: profile version {metadata.get('version')}, this ditcache reads "
            f"{VERSION}; {AGAIN}"
        )
    document = metadata.get("document", "")
    try:
        tensors = cast(dict[str, Array], safetensors.numpy.load(data))
    except SafetensorError as error:
        raise ProfileError(f"{path}: cut short or damaged ({error}); {AGAIN}") from None
    if metadata.get("sha256") != _checksum(document, tensors):
        raise ProfileError(f"{path}: damaged (its checksum does not match); {AGAIN}")
    return document, tensors


def _metadata(data: bytes) -> dict[str, str]:
    """Read the metadata of safetensors bytes (length, JSON header, tensors); {} if not such."""
    try:
        (size,) = struct.unpack_from("<Q", data)
        header: Any = json.loads(data[8 : 8 + size])
        return dict(header["__metadata__"])
    except (struct.error, ValueError, KeyError, TypeError, OverflowError):
        return {}


def _checksum(document: str, tensors: Mapping[str, Numbers]) -> str:
    digest = hashlib.sha256(document.encode())
    for name in sorted(tensors):
        digest.update(name.encode() + b"\0" + tensors[name].tobytes())
    return digest.hexdigest()
