"""Results as lines of JSON, written as soon as they exist, so that a killed run can go on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Ledger:
    """An append-only file of records that carry one key; the last record of a name holds.

    Records of another key (another model or setting) stay in the file and are not seen. A line
    that a kill left half-written is ignored.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.key = key
        self.records: dict[str, Record] = {}
        self._torn = False
        if not path.exists():
            return
        text = path.read_text()
        self._torn = bool(text) and not text.endswith("\n")
        for line in text.splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if record.pop("key", None) == key:
                self.records[record["name"]] = record

    def __contains__(self, name: str) -> bool:
        return name in self.records

    def __getitem__(self, name: str) -> Record:
        return self.records[name]

    def put(self, name: str, record: Record) -> Record:
        """Keep a record and write it to the disk before going on."""
        record = {"name": name} | record
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = "\n" * self._torn + json.dumps({"key": self.key} | record) + "\n"
        # One unbuffered write: processes that share the file do not cut into each other's lines.
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode())
            os.fsync(file.fileno())
        self._torn = False
        self.records[name] = record
        return record
