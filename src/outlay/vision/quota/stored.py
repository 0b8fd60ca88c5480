"""Scores that were computed once and are kept on disk.

One SQLite file; a score is found by the bytes of its frame, what was asked, and the scorer's name.
Processes may share the file.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from outlay.errors import InputError, ResultsError
from outlay.vision.quota.decoupling import Asked, Frames, Scorer
from outlay.vision.quota.scorers import score

_SECONDS = 30.0  # that a process waits for another one


@dataclass
class StoredScores:
    """A scorer that remembers.

    Args:
        scorer: asked about frames that are not stored.
        path: of the SQLite file; made where it is not there.
        name: of the scorer; None takes its `name`, which models have that were loaded from
            somewhere. Another model needs another name.

    Raises:
        InputError: without a name, or for a path that is a folder.
    """

    scorer: Scorer
    path: str | Path
    name: str | None = None

    def __post_init__(self) -> None:
        if self.name is None:
            self.name = getattr(self.scorer, "name", None)
        if not self.name:
            raise InputError(
                "stored scores need the scorer's name, so that another model's are told apart; "
                "wrap it as StoredScores(scorer, path, name=...), or give it a `name`"
            )
        if Path(self.path).is_dir():
            raise InputError(f"cache={str(self.path)!r} is a folder; name a file in it")

    def __call__(self, frames: Frames, asked: Asked) -> list[float]:
        """One score a frame; only frames that are not stored are scored.

        Raises:
            ResultsError: if the file is no store of scores.
        """
        keys = [self._key(frame, asked) for frame in frames]
        with self._open() as store:
            known = _read(store, keys)
        fresh = {key: at for at, key in enumerate(keys) if key not in known}
        if fresh:
            made = score(
                self.scorer, [frames[at] for at in fresh.values()], asked, batch=len(fresh)
            )
            found = dict(zip(fresh, made, strict=True))
            with self._open() as store, store:
                store.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", found.items())
            known |= found
        return [known[key] for key in keys]

    def _key(self, frame: Any, asked: Asked) -> str:
        digest = hashlib.sha256()
        pixels = np.asarray(frame)
        if pixels.dtype == object or not pixels.size:
            raise InputError(f"a frame is a {type(frame).__name__} without pixels; give pictures")
        parts = (str(self.name), asked.text, f"{pixels.dtype}{pixels.shape}")
        for part in parts:
            digest.update(f"{len(part)}:{part}".encode())
        digest.update(np.ascontiguousarray(pixels).tobytes())
        return digest.hexdigest()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=_SECONDS)) as store:
                store.execute(
                    "CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, score REAL NOT NULL)"
                )
                yield store
        except (sqlite3.DatabaseError, OSError) as error:
            raise ResultsError(
                f"stored scores at {self.path} cannot be used ({error}); delete the file, or give "
                "another cache="
            ) from error


def _read(store: sqlite3.Connection, keys: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for start in range(0, len(keys), 500):
        some = keys[start : start + 500]
        marks = ",".join("?" * len(some))
        # Only question marks go into the statement.
        rows = store.execute(f"SELECT key, score FROM scores WHERE key IN ({marks})", some)
        found.update({str(key): float(value) for key, value in rows})
    return found
