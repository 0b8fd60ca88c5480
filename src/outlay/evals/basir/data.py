"""Rows of task 1: excerpts with their sectors, read from JSONL or CSV, and split by time.

A row is `{event, date, excerpt_id, text, sectors, split}`. Excerpts of one event share its market
reaction, so an event never lies in two splits; by default events are split by date.
"""

from __future__ import annotations

import csv
import datetime
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal, get_args

from outlay.errors import InputError
from outlay.evals.basir.labels import BoolArray, LabelSet
from outlay.files import read_text

Split = Literal["train", "validation", "test"]
SplitBy = Literal["time", "given", "random"]

MAX_ROWS = 200_000
"""Rows of one file."""
MAX_CHARS = 20_000
"""Characters of one excerpt; longer ones are for `speech.segment`."""
MAX_FILE_BYTES = 200_000_000
"""Bytes of one data file."""

FIELDS = ("event", "date", "excerpt_id", "text", "sectors", "split")


@dataclass(frozen=True)
class Excerpt:
    """One passage of a speech.

    Args:
        event: the speech that it is from; the unit of splitting and ranking.
        date: of the event, ISO 8601; "" where unknown (then no split by time).
        excerpt_id: unique in the data.
        text: what was said.
        sectors: label ids, names or aliases; () where the excerpt touches none.
        split: "train", "validation", "test", or "" where not given.

    Raises:
        InputError: for an empty or overlong text, a bad date or split, or an empty event or id.
    """

    event: str
    date: str
    excerpt_id: str
    text: str
    sectors: tuple[str, ...] = ()
    split: str = ""

    def __post_init__(self) -> None:
        where = f"excerpt {self.excerpt_id!r} of event {self.event!r}"
        if not self.event.strip() or not self.excerpt_id.strip():
            raise InputError(f"{where} needs both event and excerpt_id")
        if not self.text.strip():
            raise InputError(f"{where} has an empty text; remove the row")
        if len(self.text) > MAX_CHARS:
            raise InputError(
                f"{where} has {len(self.text)} characters, more than {MAX_CHARS}; cut it with "
                "`outlay basir segment`"
            )
        if self.date:
            check_date(self.date, where)
        if self.split and self.split not in get_args(Split):
            raise InputError(
                f"{where} has split {self.split!r}; use train, validation, test or nothing"
            )


def check_date(date: str, where: str) -> str:
    """The date as YYYY-MM-DD.

    Raises:
        InputError: if it is not an ISO 8601 date.
    """
    try:
        return datetime.date.fromisoformat(date).isoformat()
    except (TypeError, ValueError):
        raise InputError(f"{where} has date {date!r}; write YYYY-MM-DD") from None


def check_rows(rows: Sequence[Excerpt]) -> list[Excerpt]:
    """The rows, if ids are unique and every event has one date.

    Raises:
        InputError: naming the duplicate id or the event.
    """
    if len(rows) > MAX_ROWS:
        raise InputError(f"{len(rows)} rows, more than {MAX_ROWS}; split the data")
    seen: set[str] = set()
    dates: dict[str, str] = {}
    for row in rows:
        if row.excerpt_id in seen:
            raise InputError(f"excerpt_id {row.excerpt_id!r} appears twice; ids must be unique")
        seen.add(row.excerpt_id)
        if dates.setdefault(row.event, row.date) != row.date:
            raise InputError(
                f"event {row.event!r} has the dates {dates[row.event]!r} and {row.date!r}; an "
                "event has one date"
            )
    return list(rows)


def read_excerpts(path: str | os.PathLike[str]) -> list[Excerpt]:
    """Rows of a .jsonl file (one object a line) or a .csv file (sectors separated by ; or |).

    Raises:
        InputError: if the file cannot be read, naming the line that is wrong.
    """
    rows: list[Excerpt] = []
    for number, record in table(path, FIELDS, ("event", "excerpt_id", "text")):
        try:
            rows.append(excerpt(record))
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
    if not rows:
        raise InputError(f"{path} holds no row; give at least one excerpt")
    return check_rows(rows)


def excerpt(record: Mapping[str, Any]) -> Excerpt:
    """One row from its fields; `sectors` is a list, or a text separated by ; or |.

    Raises:
        InputError: for a field of the wrong type or an impossible value.
    """
    sectors = record.get("sectors") or []
    if isinstance(sectors, str):
        sectors = [part.strip() for part in re.split(r"[;|]", sectors) if part.strip()]
    if not isinstance(sectors, list | tuple) or not all(isinstance(s, str) for s in sectors):
        raise InputError(f"sectors are {sectors!r}; give a list of label ids")
    texts: dict[str, str] = {}
    for name in ("event", "date", "excerpt_id", "text", "split"):
        value = record.get(name)
        value = "" if value is None else value
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise InputError(f"{name} is {value!r}; give a text")
        texts[name] = str(value)
    return Excerpt(**texts, sectors=tuple(sectors))


def table(
    path: str | os.PathLike[str], known: Sequence[str], needed: Sequence[str]
) -> Iterable[tuple[int, dict[str, Any]]]:
    """Line number and fields of every row of a JSONL or CSV file.

    Raises:
        InputError: for another suffix, a line that is no row, or unknown or missing fields.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".jsonl", ".csv"):
        raise InputError(f"{path}: the name must end in .jsonl or .csv")
    text = read_text(path, max_bytes=MAX_FILE_BYTES).text
    rows = _csv_rows(path, text) if suffix == ".csv" else _json_rows(path, text)
    for number, row in rows:
        if unknown := sorted(set(row) - set(known)):
            raise InputError(
                f"{path}, line {number} has unknown fields {unknown}; known are {list(known)}"
            )
        if missing := [name for name in needed if row.get(name) in (None, "")]:
            raise InputError(f"{path}, line {number} lacks {', '.join(missing)}")
        yield number, row


def _json_rows(path: object, text: str) -> Iterable[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{path}, line {number} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number} is not an object: {line[:60]}")
        yield number, row


def _csv_rows(path: object, text: str) -> Iterable[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise InputError(
                    f"{path}, line {reader.line_num} has another number of columns than the header"
                )
            yield reader.line_num, dict(row)
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num} is not CSV ({error})") from error


@dataclass(frozen=True)
class Splits:
    """Rows by split; no event lies in two of them."""

    train: tuple[Excerpt, ...]
    validation: tuple[Excerpt, ...]
    test: tuple[Excerpt, ...]

    def __iter__(self) -> Any:
        return iter((self.train, self.validation, self.test))


def split_rows(
    rows: Sequence[Excerpt],
    by: SplitBy = "time",
    *,
    test_from: str | None = None,
    validation: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
) -> Splits:
    """Whole events into train, validation and test.

    Args:
        rows: of any number of events.
        by: "time": the latest events are the test, those before them the validation; "given": the
            rows' own `split`; "random": events drawn by seed (for data without time, only).
        test_from: first date of the test, for "time"; None takes the latest `test` share of events.
        validation: share of the events before the test that thresholds are tuned on.
        test: share of events, where `test_from` is None.
        seed: of "random".

    Raises:
        InputError: for an empty split, rows without date or split, or an event in two splits.
    """
    if by not in get_args(SplitBy):
        raise InputError(f"split={by!r}; choose one of {', '.join(get_args(SplitBy))}")
    for name, share in (("validation", validation), ("test", test)):
        if not 0 < share < 1:
            raise InputError(f"{name}={share}; give a share in (0, 1)")
    check_rows(rows)
    place: dict[str, str] = {}
    if by == "given":
        for row in rows:
            if not row.split:
                raise InputError(
                    f"excerpt {row.excerpt_id!r} has no split; fill it in, or use split='time'"
                )
            if place.setdefault(row.event, row.split) != row.split:
                raise InputError(
                    f"event {row.event!r} lies in the splits {place[row.event]!r} and "
                    f"{row.split!r}: its excerpts share one market reaction, so that leaks"
                )
    else:
        place = _place(rows, by, test_from, validation, test, seed)
    parts = {
        name: tuple(row for row in rows if place[row.event] == name) for name in get_args(Split)
    }
    for name, part in parts.items():
        if not part:
            raise InputError(
                f"the {name} split has no rows ({len(place)} events); give more events, or change "
                "test_from=, validation= or test="
            )
    return Splits(**parts)


def _place(
    rows: Sequence[Excerpt],
    by: str,
    test_from: str | None,
    validation: float,
    test: float,
    seed: int,
) -> dict[str, str]:
    dates = {row.event: row.date for row in rows}
    events = sorted(dates)
    if by == "random":
        Random(f"basir:{seed}").shuffle(events)
        late = events[len(events) - max(1, round(test * len(events))) :]
    else:
        if undated := [event for event in events if not dates[event]]:
            raise InputError(
                f"event {undated[0]!r} has no date; give dates, or use split='random' where time "
                "plays no part"
            )
        events.sort(key=lambda event: (dates[event], event))
        if test_from is None:
            # Events of one day share the market: the day goes to one side whole.
            first = dates[events[len(events) - max(1, round(test * len(events)))]]
        else:
            first = check_date(test_from, "test_from")
        late = [event for event in events if dates[event] >= first]
    early = [event for event in events if event not in set(late)]
    held = max(1, round(validation * len(early))) if early else 0
    place = dict.fromkeys(early[: len(early) - held], "train")
    place |= dict.fromkeys(early[len(early) - held :], "validation")
    return place | dict.fromkeys(late, "test")


def texts_and_truth(rows: Sequence[Excerpt], labels: LabelSet) -> tuple[list[str], BoolArray]:
    """Texts, and the (N, L) truth.

    Raises:
        InputError: for an unknown label, with the excerpt that has it.
    """
    known = labels.names()
    for row in rows:
        for name in row.sectors:
            if " ".join(name.casefold().split()) not in known:
                raise InputError(
                    f"excerpt {row.excerpt_id!r} has the unknown label {name!r}; add it to the "
                    "label file (label_file=) or correct the row"
                )
    return [row.text for row in rows], labels.matrix([row.sectors for row in rows])
