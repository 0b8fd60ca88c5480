"""Labels: the 81 sectors that ship with outlay, or a label file of the user's own."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from outlay.errors import InputError
from outlay.files import read_text

BoolArray = npt.NDArray[np.bool_]

MAX_LABELS = 2_000
"""Labels that a label file may hold."""
MAX_DEFINITION = 1_000
"""Characters of a label's definition."""

_ID = re.compile(r"[^\s,;|]{1,80}\Z")


@dataclass(frozen=True)
class Label:
    """One sector.

    Args:
        id: short stable name, without spaces, commas, semicolons or bars.
        name: for people and prompts.
        definition: one sentence; "" where there is none. Embedding and LLM routes read it.
        aliases: other names that a file or a model may use.
    """

    id: str
    name: str
    definition: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Name and definition, as an encoder reads them."""
        return f"{self.name}: {self.definition}" if self.definition else self.name


@dataclass(frozen=True)
class LabelSet:
    """Labels in a fixed order; number n of a prompt is position n - 1.

    Raises:
        InputError: for fewer than two labels, too many, or two that share a name.
    """

    labels: tuple[Label, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        if not 2 <= len(self.labels) <= MAX_LABELS:
            raise InputError(
                f"{len(self.labels)} labels; a label file needs 2 to {MAX_LABELS} of them"
            )
        self.names()

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Label]:
        return iter(self.labels)

    def __getitem__(self, index: int) -> Label:
        return self.labels[index]

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids in order."""
        return tuple(label.id for label in self.labels)

    def names(self) -> dict[str, int]:
        """Every id, name and alias (case folded) with the position of its label."""
        known: dict[str, int] = {}
        for index, label in enumerate(self.labels):
            for name in (label.id, label.name, *label.aliases):
                key = " ".join(name.casefold().split())
                if known.setdefault(key, index) != index:
                    raise InputError(
                        f"labels {self.labels[known[key]].id!r} and {label.id!r} share the name "
                        f"{name!r}; names and aliases must tell labels apart"
                    )
        return known

    def matrix(self, rows: Sequence[Sequence[str]]) -> BoolArray:
        """(N, L) truth of N rows of label ids (names and aliases are understood, too).

        Raises:
            InputError: naming the row and the unknown label.
        """
        known = self.names()
        truth_NL = np.zeros((len(rows), len(self)), dtype=bool)
        for number, row in enumerate(rows):
            for name in row:
                index = known.get(" ".join(name.casefold().split()))
                if index is None:
                    raise InputError(
                        f"row {number} has the unknown label {name!r}; add it to the label file "
                        "(label_file=) or correct the row"
                    )
                truth_NL[number, index] = True
        return truth_NL

    def chosen(self, row_L: BoolArray) -> tuple[str, ...]:
        """Ids where the row is True."""
        return tuple(self.labels[i].id for i in np.flatnonzero(row_L))

    def to_dict(self) -> list[dict[str, Any]]:
        """A JSON-ready form."""
        return [
            {
                "id": label.id,
                "name": label.name,
                "definition": label.definition,
                "aliases": list(label.aliases),
            }
            for label in self.labels
        ]

    @classmethod
    def from_dicts(cls, rows: Any, source: str = "the label file") -> LabelSet:
        """The inverse of `to_dict`.

        Raises:
            InputError: naming the entry that is not a label.
        """
        if not isinstance(rows, list):
            raise InputError(f'{source} holds no list of labels; write {{"labels": [...]}}')
        return cls(tuple(_label(row, f"{source}, label {i + 1}") for i, row in enumerate(rows)))


def _label(row: object, where: str) -> Label:
    if not isinstance(row, Mapping):
        raise InputError(f"{where} is not an object with id, name, definition and aliases")
    known = {"id", "name", "definition", "aliases"}
    if unknown := sorted(set(row) - known):
        raise InputError(f"{where} has unknown fields {unknown}; known are {sorted(known)}")
    name = row.get("name", row.get("id"))
    identity, definition = row.get("id"), row.get("definition", "")
    aliases = row.get("aliases", [])
    if not isinstance(identity, str) or not _ID.match(identity):
        raise InputError(
            f"{where} has id {identity!r}; give 1 to 80 characters without spaces, commas, "
            "semicolons and bars"
        )
    if not isinstance(name, str) or not name.strip() or len(name) > 200:
        raise InputError(f"{where} has name {name!r}; give 1 to 200 characters")
    if not isinstance(definition, str) or len(definition) > MAX_DEFINITION:
        raise InputError(f"{where} needs a definition of at most {MAX_DEFINITION} characters")
    if not isinstance(aliases, list) or not all(isinstance(a, str) and a.strip() for a in aliases):
        raise InputError(f"{where} needs aliases as a list of texts")
    return Label(identity, name, definition, tuple(aliases))


def load_labels(path: str | os.PathLike[str] | None = None) -> LabelSet:
    """The labels of a JSON file, or the 81 sectors of outlay.

    Args:
        path: `{"labels": [{"id", "name", "definition", "aliases"}]}`; None for the shipped file.

    Raises:
        InputError: if the file cannot be read or holds no labels.
    """
    if path is None:
        return _shipped()
    try:
        data = json.loads(read_text(path, max_bytes=5_000_000).text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); see label_file=") from error
    return LabelSet.from_dicts(data.get("labels") if isinstance(data, dict) else data, str(path))


@lru_cache(maxsize=1)
def _shipped() -> LabelSet:
    text = resources.files(__package__).joinpath("labels.json").read_text(encoding="utf-8")
    return LabelSet.from_dicts(json.loads(text)["labels"], "labels.json")
