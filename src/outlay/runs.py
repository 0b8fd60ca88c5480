"""A run's folder: finished examples, appended one line each, so that a killed run can go on.

A line is written whole or not at all: one `write` to a file opened for appending, then `fsync`. A
last line that a crash cut off is dropped when the run is opened again. Lines are ASCII, so that no
character of an answer (a lone surrogate, a Unicode line separator) can break one.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from outlay.errors import ResultsError
from outlay.evals.base import Mark
from outlay.example import Outcome
from outlay.records import Record

RECORDS = "records.jsonl"
CONFIG = "config.json"


class Run:
    """Outcomes of one comparison on disk.

    Args:
        folder: made if missing.
        config: what the run measures; a folder made for another configuration is refused.
        fresh: start over, dropping what the folder holds.

    Raises:
        ResultsError: for a folder of another run, or records that cannot be read.
    """

    def __init__(
        self, folder: str | Path, config: Mapping[str, Any], *, fresh: bool = False
    ) -> None:
        self.folder = Path(folder)
        self._lock = threading.Lock()
        self.outcomes: dict[str, Outcome] = {}
        text = json.dumps(config, sort_keys=True, indent=1, default=str)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if fresh:
                for name in (RECORDS, CONFIG):
                    (self.folder / name).unlink(missing_ok=True)
            path = self.folder / CONFIG
            if path.exists():
                if path.read_text(encoding="utf-8") != text:
                    raise ResultsError(
                        f"{self.folder} holds another run ({_changed(path, config)} differs); "
                        "give another --out, or --fresh to start over"
                    )
            else:
                if (self.folder / RECORDS).exists():
                    raise ResultsError(
                        f"{self.folder} holds records without {CONFIG}; give another --out"
                    )
                part = path.with_suffix(".part")
                part.write_text(text, encoding="utf-8")
                part.replace(path)  # whole or absent, also if killed here
            self._load()
        except OSError as error:
            raise ResultsError(f"cannot use {self.folder} ({error}); give another --out") from error

    def _load(self) -> None:
        path = self.folder / RECORDS
        if not path.exists():
            return
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(path, whole)
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                row = json.loads(line)
                record = Record.from_dict(row["record"])
                outcome = Outcome(record, row["texts"], _marks(row.get("marks", {})))
            except (ValueError, KeyError, TypeError, ResultsError) as error:
                raise ResultsError(
                    f"{path}:{number} cannot be read ({error}); delete that line or use --fresh"
                ) from error
            self.outcomes[outcome.record.key] = outcome

    def __contains__(self, key: str) -> bool:
        return key in self.outcomes

    def __len__(self) -> int:
        return len(self.outcomes)

    def add(self, outcome: Outcome) -> None:
        """Append one outcome; on return it is on disk."""
        row = {"record": outcome.record.to_dict(), "texts": outcome.texts}
        if outcome.marks:
            row["marks"] = {n: [asdict(m) for m in found] for n, found in outcome.marks.items()}
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        with self._lock:
            if outcome.record.key in self.outcomes:
                return
            handle = os.open(self.folder / RECORDS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                written = os.write(handle, line)
                if written != len(line):
                    os.ftruncate(handle, os.fstat(handle).st_size - written)
                    raise ResultsError(f"the disk of {self.folder} is full; free room and go on")
                os.fsync(handle)
            finally:
                os.close(handle)
            self.outcomes[outcome.record.key] = outcome

    @property
    def records(self) -> list[Record]:
        """All records, in the order in which they were finished."""
        return [outcome.record for outcome in self.outcomes.values()]


def fingerprint(config: Mapping[str, Any]) -> str:
    """A short name for a configuration."""
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=5).hexdigest()


def _marks(stored: Mapping[str, Any]) -> dict[str, tuple[Mark, ...]]:
    return {name: tuple(Mark(**mark) for mark in found) for name, found in stored.items()}


def _changed(path: Path, config: Mapping[str, Any]) -> str:
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return "an unreadable configuration"
    new = json.loads(json.dumps(config, default=str))
    return ", ".join(sorted(k for k in {*old, *new} if old.get(k) != new.get(k))) or "the layout"
