"""Ledger: what was spent, by stage, role and method.

An `Entry` is one call to a model; a `Ledger` is an append-only, thread-safe list of them. Ledgers
merge associatively and travel between processes as JSON lines or pickles. Whether a sampled token
was *delivered* (it is on the path of the returned answer) or *discarded* is a property of its
branch, marked once the answer is known.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from outlay.errors import InputError, ResultsError

Stage = Literal["prompt", "vision", "think", "answer", "train"]
Role = Literal["target", "scorer", "draft", "verifier", "planner", "judge"]


@dataclass(frozen=True)
class Entry:
    """One call's bill. Token counts are in tokens of the model that was called.

    Args:
        stage: what the call was for.
        role: which model was called.
        prompt_new: prompt tokens computed by this call.
        prompt_cached: prompt tokens whose KV was reused.
        generated: sampled tokens.
        forced: tokens appended without sampling (delimiters, "Wait", answer prefixes).
        retried: tokens of attempts that failed but may have been billed.
        estimated: True where the counts come from a tokenizer of ours, not from the server.
        branch: the branch that the sampled and forced tokens belong to.
        method: name of the method that made the call.
        seconds: wall-clock time.
        flops: floating point operations (0 where unknown).
        note: a flag for the reader, for instance a usage report that does not add up.
    """

    stage: Stage
    role: Role
    prompt_new: int = 0
    prompt_cached: int = 0
    generated: int = 0
    forced: int = 0
    retried: int = 0
    estimated: bool = False
    branch: str | None = None
    method: str = ""
    seconds: float = 0.0
    flops: float = 0.0
    note: str = ""

    def __post_init__(self) -> None:
        if self.stage not in get_args(Stage):
            raise InputError(f"stage={self.stage!r}; choose one of {', '.join(get_args(Stage))}")
        if self.role not in get_args(Role):
            raise InputError(f"role={self.role!r}; choose one of {', '.join(get_args(Role))}")
        for name in ("prompt_new", "prompt_cached", "generated", "forced", "retried"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise InputError(f"{name}={value!r}; a token count is an int >= 0")
        if not (self.seconds >= 0 and self.flops >= 0):
            raise InputError(f"seconds={self.seconds}, flops={self.flops}; both must be >= 0")


_FIELDS = frozenset(field.name for field in fields(Entry))


@dataclass(frozen=True)
class Totals:
    """Sums over entries; see `Entry` for the units."""

    calls: int = 0
    prompt_new: int = 0
    prompt_cached: int = 0
    generated: int = 0
    forced: int = 0
    retried: int = 0
    delivered: int = 0
    discarded: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    estimated: bool = False

    @property
    def prompt(self) -> int:
        """Prompt tokens as billed: new and cached."""
        return self.prompt_new + self.prompt_cached

    @property
    def all(self) -> int:
        """Every token paid for: prompt, generated, forced and retried."""
        return self.prompt + self.generated + self.forced + self.retried


class Ledger:
    """An append-only account of model calls.

    Example:
        >>> ledger = Ledger()
        >>> ledger.record("answer", "target", prompt_new=12, generated=5, branch="b0")
        >>> ledger.deliver(["b0"])
        >>> ledger.totals().delivered
        5
    """

    def __init__(self, entries: Iterable[Entry] = (), delivered: Iterable[str] = ()) -> None:
        self._entries: list[Entry] = list(entries)
        self._delivered: set[str] = set(delivered)
        self._lock = threading.Lock()

    def record(
        self,
        stage: Stage,
        role: Role,
        *,
        prompt_new: int = 0,
        prompt_cached: int = 0,
        generated: int = 0,
        forced: int = 0,
        retried: int = 0,
        estimated: bool = False,
        branch: str | None = None,
        method: str = "",
        seconds: float = 0.0,
        flops: float = 0.0,
        note: str = "",
    ) -> Entry:
        """Append one entry (fields as in `Entry`) and return it."""
        entry = Entry(
            stage=stage,
            role=role,
            prompt_new=prompt_new,
            prompt_cached=prompt_cached,
            generated=generated,
            forced=forced,
            retried=retried,
            estimated=estimated,
            branch=branch,
            method=method,
            seconds=seconds,
            flops=flops,
            note=note,
        )
        with self._lock:
            self._entries.append(entry)
        return entry

    def deliver(self, branches: Iterable[str]) -> None:
        """Mark `branches` (the answer's branch and its ancestors) as delivered."""
        with self._lock:
            self._delivered.update(branches)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries, in order."""
        with self._lock:
            return tuple(self._entries)

    @property
    def delivered(self) -> frozenset[str]:
        """The branches marked as delivered."""
        with self._lock:
            return frozenset(self._delivered)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ledger):
            return NotImplemented
        return self.entries == other.entries and self.delivered == other.delivered

    __hash__ = None  # type: ignore[assignment]  # it grows: not a key

    def __add__(self, other: Ledger) -> Ledger:
        """Both ledgers' entries, in order; associative."""
        return Ledger(self.entries + other.entries, self.delivered | other.delivered)

    def extend(self, other: Ledger) -> None:
        """Append all of `other`'s entries and marks to this ledger."""
        entries, delivered = other.entries, other.delivered
        with self._lock:
            self._entries.extend(entries)
            self._delivered |= delivered

    def __reduce__(self) -> tuple[object, ...]:
        return Ledger, (self.entries, self.delivered)

    def __repr__(self) -> str:
        total = self.totals()
        return (
            f"Ledger({total.calls} calls, {total.prompt} prompt, {total.generated} generated, "
            f"{total.forced} forced tokens)"
        )

    def totals(self, *, stage: Stage | None = None, role: Role | None = None) -> Totals:
        """Sums over all entries, or over those of one stage and/or role."""
        delivered = self.delivered
        chosen = [
            entry
            for entry in self.entries
            if (stage is None or entry.stage == stage) and (role is None or entry.role == role)
        ]
        kept = sum(e.generated + e.forced for e in chosen if e.branch in delivered)
        produced = sum(e.generated + e.forced for e in chosen)
        return Totals(
            calls=len(chosen),
            prompt_new=sum(e.prompt_new for e in chosen),
            prompt_cached=sum(e.prompt_cached for e in chosen),
            generated=sum(e.generated for e in chosen),
            forced=sum(e.forced for e in chosen),
            retried=sum(e.retried for e in chosen),
            delivered=kept,
            discarded=produced - kept,
            seconds=sum(e.seconds for e in chosen),
            flops=sum(e.flops for e in chosen),
            estimated=any(e.estimated for e in chosen),
        )

    def by(self, *keys: Literal["stage", "role", "method"]) -> dict[tuple[str, ...], Totals]:
        """Totals grouped by the given entry fields, in order of first appearance."""
        groups: dict[tuple[str, ...], list[Entry]] = {}
        delivered = self.delivered
        for entry in self.entries:
            groups.setdefault(tuple(getattr(entry, key) for key in keys), []).append(entry)
        return {key: Ledger(group, delivered).totals() for key, group in groups.items()}

    def notes(self) -> list[str]:
        """Distinct notes, in order of appearance."""
        return list(dict.fromkeys(entry.note for entry in self.entries if entry.note))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; entries omit fields at their defaults."""
        rows = []
        for entry in self.entries:
            row = asdict(entry)
            rows.append({k: v for k, v in row.items() if v or k in ("stage", "role")})
        return {"entries": rows, "delivered": sorted(self.delivered)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Ledger:
        """The inverse of `to_dict`.

        Raises:
            ResultsError: if the data was not written by `to_dict`.
        """
        try:
            entries = []
            for row in data["entries"]:
                if unknown := set(row) - _FIELDS:
                    raise ResultsError(f"ledger entry has unknown fields {sorted(unknown)}")
                entries.append(Entry(**row))
            return cls(entries, data["delivered"])
        except (KeyError, TypeError, InputError) as error:
            raise ResultsError(f"not a stored ledger ({error}); delete it and run again") from error

    def to_jsonl(self, path: str | Path) -> None:
        """Write one entry a line, then one line with the delivered branches."""
        data = self.to_dict()
        lines = [json.dumps(row) for row in data["entries"]]
        lines.append(json.dumps({"delivered": data["delivered"]}))
        Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")

    @classmethod
    def from_jsonl(cls, path: str | Path) -> Ledger:
        """The inverse of `to_jsonl`; concatenated files read as the merged ledger.

        Raises:
            ResultsError: if a line is not JSON or not a ledger entry.
        """
        entries: list[dict[str, Any]] = []
        delivered: list[str] = []
        for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ResultsError(f"{path}:{number} is not JSON ({error})") from error
            if not isinstance(row, dict):
                raise ResultsError(f"{path}:{number} is not a ledger entry: {line[:80]}")
            if "delivered" in row:
                if not isinstance(row["delivered"], list):
                    raise ResultsError(f"{path}:{number} does not list branches: {line[:80]}")
                delivered.extend(row["delivered"])
            else:
                entries.append(row)
        return cls.from_dict({"entries": entries, "delivered": delivered})
