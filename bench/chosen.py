"""Settings that an earlier comparison chose, read from its committed JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from .arena import TUNED_ON, Setting
from .contest import cell_name
from .ledger import Record


def read_chosen(path: Path, setting: Setting) -> dict[str, Record]:
    """Cells by name, of a `result.json` of the same model, steps and calibration samples.

    Raises ValueError for another file, or for one of another setting.
    """
    try:
        document = json.loads(path.read_text())
        theirs, cells = document["setting"], document["cells"]
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"expected the result.json of a `ditcache bench`, got {path}: {error}"
        ) from error
    ours = asdict(setting)
    if other := [key for key in TUNED_ON if theirs.get(key) != ours[key]]:
        said = ", ".join(f"{key} {theirs.get(key)}, not {ours[key]}" for key in other)
        raise ValueError(f"{path} was measured with {said}: its settings do not hold here")
    return {cell_name(cell["contestant"], cell["budget"]): cell for cell in cells}
