"""Weights by path or hub name, checked against a SHA-256 if one is given."""

from __future__ import annotations

import hashlib
from pathlib import Path

MARK = "#sha256="


class WeightsError(RuntimeError):
    """Weights that are not there or are not those that were meant."""


def locate(spec: str) -> Path:
    """Find `PATH`, `ORG/NAME` (whole repository) or `ORG/NAME/FILE`, each with `#sha256=HEX`.

    The hash is of the file; of a folder, of its weight files' names and hashes (`sha256`).

    Raises:
        WeightsError: nothing is there, it cannot be fetched, or the hash differs.

    """
    where, _, wanted = spec.partition(MARK)
    path = Path(where).expanduser()
    if not path.exists():
        path = _from_hub(where)
    if wanted:
        found = sha256(path)
        if found != wanted.lower():
            raise WeightsError(f"{where}: SHA-256 is {found}, expected {wanted.lower()}")
    return path


def sha256(path: Path) -> str:
    """Hex digest of a file, or of the sorted `name hash` lines of a folder's weight files."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.suffix in (".safetensors", ".bin", ".pt", ".pth"):
                digest.update(f"{file.relative_to(path)} {sha256(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _from_hub(name: str) -> Path:
    parts = name.split("/")
    if name.startswith((".", "/", "~")) or len(parts) < 2 or not all(parts):
        raise WeightsError(f"{name}: no such file or folder, and not a hub name (ORG/NAME)")
    try:
        from huggingface_hub import hf_hub_download, snapshot_download

        if len(parts) == 2:
            return Path(snapshot_download(name))
        return Path(hf_hub_download("/".join(parts[:2]), "/".join(parts[2:])))
    except Exception as error:  # every network and hub error has its own class
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{name}: not here, and the hub cannot be reached ({first})") from error
