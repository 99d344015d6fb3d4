"""Replace a file as a whole, so that a reader never sees half of one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`: either the old content or all of the new one is ever visible.

    The bytes go to a temporary file in the same folder (a rename is atomic only within one file
    system), are flushed to the disk, and take the place of `path` in one step. Missing parent
    folders are made. Two processes that write the same path both succeed; the later one stays.

    Raises `OSError` if the folder cannot be made or written; `path` is then as it was.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{path}: a folder; expected the path of a file")
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private to the user; a plan is meant to be shared like any other.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
