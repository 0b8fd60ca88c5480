"""Methods, tasks and verifiers by name.

One static table; nothing is imported until an entry is used. Third-party packages add entries
through the entry-point groups `outlay.methods`, `outlay.tasks` and
`outlay.verifiers`, each naming a `Entry` instance.

A *spec* is how a user writes a method on a command line: `slug` or `slug:knob=value,knob=value`. A
value is JSON or bare text; text with commas, plus signs or outer spaces goes in double quotes.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import typing
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any, Literal

from outlay.catalogue import METHODS, TASKS, VERIFIERS, Entry
from outlay.errors import DependencyError, InputError

Kind = Literal["methods", "tasks", "verifiers"]
Slot = Literal["prompt", "vision", "decode", "cache", "reason"]
KINDS: tuple[Kind, ...] = typing.get_args(Kind)
SLOTS: tuple[Slot, ...] = typing.get_args(Slot)


@cache
def _table(kind: Kind) -> Mapping[str, Entry]:
    built_in = {"methods": METHODS, "tasks": TASKS, "verifiers": VERIFIERS}[kind]
    rows = {entry.slug: entry for entry in built_in}
    for point in metadata.entry_points(group=f"outlay.{kind}"):
        try:
            entry = point.load()
        except Exception as error:  # another package's code: whatever it raises
            raise DependencyError(
                f"entry point {point.name} ({point.value}) cannot be loaded ({error}); "
                "repair or remove the package that brings it"
            ) from error
        if not isinstance(entry, Entry):
            raise InputError(f"entry point {point.name} ({point.value}) is no outlay Entry")
        if entry.slug in rows:
            raise InputError(f"{point.value} takes the name {entry.slug!r}, which exists already")
        rows[entry.slug] = entry
    return rows


def methods() -> list[Entry]:
    """All methods: built in first, then those of other packages."""
    return list(_table("methods").values())


def tasks() -> list[Entry]:
    """All tasks."""
    return list(_table("tasks").values())


def verifiers() -> list[Entry]:
    """All verifiers."""
    return list(_table("verifiers").values())


def systems() -> dict[str, list[Entry]]:
    """Entries by the published system (or baseline) that they are part of."""
    found: dict[str, list[Entry]] = {}
    for kind in KINDS:
        for entry in _table(kind).values():
            found.setdefault(entry.system, []).append(entry)
    return found


def find(kind: Kind, slug: str) -> Entry:
    """The entry named `slug`.

    Raises:
        InputError: if there is none, with the closest names.
    """
    table = _table(kind)
    if slug in table:
        return table[slug]
    close = difflib.get_close_matches(slug, table, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise InputError(f"unknown {kind[:-1]} {slug!r}; {hint}known are: {', '.join(table)}")


def slug_of(instance: object) -> str:
    """The slug of a method's or task's instance; its class name where it is not registered."""
    target = f"{type(instance).__module__}:{type(instance).__qualname__}"
    for kind in KINDS:
        for entry in _table(kind).values():
            if entry.target == target:
                return entry.slug
    return type(instance).__name__


def split_spec(text: str, separator: str) -> list[str]:
    """`text` at each `separator` that lies outside brackets and double quotes."""
    parts, depth, start, quoted, escaped = [], 0, 0, False, False
    for i, char in enumerate(text):
        if quoted:
            quoted = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"' and text[:i].rstrip()[-1:] in ("=", "[", "{", ",", ":"):
            quoted = True  # opens a JSON string; elsewhere it is a sign like any other
        elif char == separator and depth <= 0:
            parts.append(text[start:i])
            start = i + 1
        else:
            depth += (char in "[({") - (char in "])}")
    return [*parts, text[start:]]


def parse_spec(spec: str) -> tuple[str, dict[str, str]]:
    """Split `slug:knob=value,knob=value` into the slug and its raw knobs.

    Commas inside brackets or double quotes belong to the value.

    Raises:
        InputError: for a part that is not `knob=value`.
    """
    slug, _, rest = spec.partition(":")
    knobs: dict[str, str] = {}
    for part in split_spec(rest, ","):
        if not part.strip():
            continue
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            raise InputError(f"{part.strip()!r} in {spec!r} is not knob=value")
        knobs[name.strip()] = value.strip()
    return slug.strip(), knobs


def create(kind: Kind, spec: str, *, given: Mapping[str, Any] | None = None) -> Any:
    """Build the method or task that `spec` names.

    Args:
        kind: which table.
        spec: `slug` or `slug:knob=value,...`; values are JSON or bare strings.
        given: objects for fields that a command line cannot write (a scorer); used only where
            the class has such a field and the spec does not set it.

    Raises:
        InputError: for unknown names and knobs, and values of the wrong type.
    """
    slug, raw = parse_spec(spec)
    cls = find(kind, slug).load()
    knobs = _coerce(cls, slug, raw)
    names = {field.name for field in dataclasses.fields(cls) if field.init}
    for name, value in (given or {}).items():
        if name in names and name not in knobs:
            knobs[name] = value
    missing = [
        field.name
        for field in dataclasses.fields(cls)
        if field.init
        and field.name not in knobs
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise InputError(f"{slug} needs {', '.join(missing)}; write {slug}:{missing[0]}=...")
    return cls(**knobs)


def _coerce(cls: type, slug: str, raw: Mapping[str, str]) -> dict[str, Any]:
    from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    hints = typing.get_type_hints(cls)
    knobs: dict[str, Any] = {}
    for name, text in raw.items():
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise InputError(f"{slug} has no knob {name!r}; {hint}it has: {', '.join(fields)}")
        try:
            adapter = TypeAdapter(hints[name])
        except PydanticSchemaGenerationError as error:
            raise InputError(
                f"{slug}: {name} is an object, which a spec cannot write; build it in Python"
            ) from error
        try:
            knobs[name] = adapter.validate_python(_value(text))
        except ValidationError as error:
            try:
                knobs[name] = adapter.validate_python(text)  # 5 may be meant as text
            except ValidationError:
                reason = error.errors()[0]["msg"]
                raise InputError(f"{slug}: {name}={text} is not usable ({reason})") from error
    return knobs


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"True": True, "False": False, "None": None}.get(text, text)


def label(instance: object) -> str:
    """A method's spec: its slug and the knobs that differ from the defaults."""
    if not dataclasses.is_dataclass(instance):
        return slug_of(instance)
    changed = []
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        plain = isinstance(value, str | int | float | bool | tuple | type(None))
        if field.init and plain and value != field.default:
            changed.append(f"{field.name}={_shown(value)}")
    return slug_of(instance) + (":" + ",".join(changed) if changed else "")


def _shown(value: object) -> str:
    """A knob's value as a spec writes it: bare text where that reads back as the same text."""
    if isinstance(value, str) and re.fullmatch(r"[\w</>.-]+", value) and _value(value) == value:
        return value
    text = json.dumps(value)
    return text.replace("e+", "e") if isinstance(value, float) else text
