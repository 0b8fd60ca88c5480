"""Graphs from files: TSV, JSON lines, N-Triples with label resolution.

The paths released with fs1 (arXiv 2505.11140) contain raw property IRIs. Here an IRI becomes its
label, and a fact with a part that has none is dropped and counted, or refused.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from outlay.errors import InputError
from outlay.evals.checks import choose
from outlay.evals.factuality.graph import MAX_TRIPLES, Graph

Unlabelled = Literal["drop", "error"]

MAX_BYTES = 2_000_000_000
LABELS = (
    "http://www.w3.org/2000/01/rdf-schema#label",
    "http://www.w3.org/2004/02/skos/core#prefLabel",
    "http://schema.org/name",
)
ALIASES = ("http://www.w3.org/2004/02/skos/core#altLabel",)

_IRI = r"<([^<>\"{}|^`\\\s]*(?:\\u[0-9A-Fa-f]{4}[^<>\"{}|^`\\\s]*)*)>"
_BLANK = r"_:([\w][\w.\-]*)"
_STATEMENT = re.compile(
    rf"\s*(?:{_IRI}|{_BLANK})\s+{_IRI}\s+"
    rf"(?:{_IRI}|{_BLANK}|\"((?:[^\"\\\r\n]|\\.)*)\"(?:@([A-Za-z]+(?:-[A-Za-z0-9]+)*)|\^\^{_IRI})?)"
    r"\s*\.\s*(?:#.*)?"
)
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))")
_SHORT = {"t": "\t", "b": "\b", "n": "\n", "r": "\r", "f": "\f", '"': '"', "'": "'", "\\": "\\"}


def load_graph(
    path: str | os.PathLike[str],
    *,
    labels: str | os.PathLike[str] | None = None,
    language: str = "en",
    unlabelled: Unlabelled = "drop",
    max_triples: int = MAX_TRIPLES,
    max_bytes: int = MAX_BYTES,
) -> Graph:
    """The graph of a file: `.tsv`, `.jsonl` or `.nt`, by its ending.

    Args:
        path: TSV of subject, relation, object; JSON lines of such lists or of objects with these
            keys; or N-Triples.
        labels: TSV of id, label and any number of aliases, for TSV and JSON lines.
        language: of N-Triples labels; text without a language serves where there is none.
        unlabelled: what happens to N-Triples facts with an IRI that has no label: dropped and
            counted in `Graph.notes`, or an error.
        max_triples, max_bytes: refuse larger input.

    Raises:
        InputError: for a missing, oversized or malformed file, with the line.
    """
    choose("unlabelled", unlabelled, ("drop", "error"))
    source = _file(path, max_bytes)
    kind = source.suffix.lower()
    if kind == ".nt":
        if labels is not None:
            raise InputError("labels= is for TSV and JSON lines; an .nt file holds its own labels")
        return _ntriples(source, language, unlabelled, max_triples)
    if kind not in (".tsv", ".jsonl"):
        raise InputError(f"{source} ends with {kind!r}; give a .tsv, .jsonl or .nt file")
    names: dict[str, str] = {}
    aliases: dict[str, Sequence[str]] = {}
    if labels is not None:
        for at, row in _rows(_file(labels, max_bytes)):
            if len(row) < 2:
                raise InputError(f"{labels}, line {at}: give id, label and aliases")
            names[row[0].strip()], aliases[row[0].strip()] = row[1], row[2:]
    triples = _rows(source) if kind == ".tsv" else _json_rows(source)
    return Graph(
        (_three(source, at, row) for at, row in triples),
        labels=names,
        aliases=aliases,
        name=source.stem,
        max_triples=max_triples,
    )


def _file(path: str | os.PathLike[str], max_bytes: int) -> Path:
    source = Path(path)
    if not source.is_file():
        raise InputError(f"{source} is no file; give the path of a graph")
    if (size := source.stat().st_size) > max_bytes:
        raise InputError(f"{source} has {size} bytes, at most max_bytes={max_bytes} are read")
    return source


def _lines(source: Path) -> Iterator[tuple[int, str]]:
    try:
        with source.open(encoding="utf-8", newline="\n") as lines:
            for at, line in enumerate(lines, 1):
                if line.strip():
                    yield at, line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not UTF-8 ({error.reason}); convert it first") from error


def _rows(source: Path) -> Iterator[tuple[int, list[str]]]:
    for at, line in _lines(source):
        yield at, next(csv.reader([line], delimiter="\t", quoting=csv.QUOTE_NONE))


def _json_rows(source: Path) -> Iterator[tuple[int, object]]:
    for at, line in _lines(source):
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{source}, line {at}: no JSON ({error})") from error
        if isinstance(value, Mapping):
            value = [value.get(key) for key in ("subject", "relation", "object")]
        yield at, value


def _three(source: Path, at: int, row: object) -> list[str]:
    good = isinstance(row, list) and len(row) == 3
    if not good or not all(isinstance(part, str) and part.strip() for part in row):  # type: ignore[attr-defined]
        raise InputError(
            f"{source}, line {at}: {row!r} is no triple; give subject, relation and object, none "
            "of them empty"
        )
    return row  # type: ignore[return-value]


def _ntriples(source: Path, language: str, unlabelled: Unlabelled, max_triples: int) -> Graph:
    facts: list[tuple[str, str, str]] = []
    found: dict[str, list[tuple[int, int, str]]] = defaultdict(list)  # rank of predicate, language
    aliases: dict[str, list[str]] = defaultdict(list)
    labels: dict[str, str] = {}
    for at, line in _lines(source):
        if line.lstrip().startswith("#"):
            continue
        subject, relation, target, literal, tag = _statement(source, at, line)
        if literal is None:
            facts.append((subject, relation, target))
        elif relation in LABELS or relation in ALIASES:
            if tag and tag.lower().split("-")[0] != language.lower():
                continue
            if not literal.strip():
                raise InputError(f"{source}, line {at}: the label of {subject} is empty")
            if relation in ALIASES:
                aliases[subject].append(literal)
            else:
                found[subject].append((LABELS.index(relation), int(not tag), literal))
        elif literal.strip():
            node = f'"{literal}"'
            labels[node] = literal
            facts.append((subject, relation, node))
        if len(facts) > max_triples:
            raise InputError(f"{source} has more than max_triples={max_triples} facts")
    labels |= {node: min(names)[2] for node, names in found.items()}
    notes: Counter[str] = Counter()
    kept = []
    for fact in facts:
        bare = [part for part in fact if part not in labels]
        if bare and unlabelled == "error":
            raise InputError(
                f"{source}: {bare[0]} has no label in {language!r}; add one, give another "
                "language=, or set unlabelled='drop'"
            )
        if bare:
            notes["facts with an unlabelled part"] += 1
        else:
            kept.append(fact)
    if not kept:
        raise InputError(
            f"{source} has {len(facts)} facts, none of them with labels in {language!r}; give a "
            "file that holds rdfs:label statements, or another language="
        )
    return Graph(
        kept,
        labels=labels,
        aliases=aliases,
        name=source.stem,
        notes=notes,
        max_triples=max_triples,
    )


def _statement(source: Path, at: int, line: str) -> tuple[str, str, str, str | None, str | None]:
    parts = _STATEMENT.fullmatch(line)
    if parts is None:
        raise InputError(f"{source}, line {at}: no N-Triples statement: {line[:80]!r}")
    iri, blank, relation, target, other, literal, tag, _ = parts.groups()
    try:
        subject = f"_:{blank}" if iri is None else _plain(iri)
        goal = (
            ""
            if target is None and other is None
            else (f"_:{other}" if target is None else _plain(target))
        )
        text = None if literal is None else _plain(literal)
        return subject, _plain(relation), goal, text, tag
    except (ValueError, OverflowError, KeyError) as error:
        raise InputError(f"{source}, line {at}: bad escape ({error})") from error


def _plain(text: str) -> str:
    def one(match: re.Match[str]) -> str:
        four, eight, short = match.groups()
        return chr(int(four or eight, 16)) if four or eight else _SHORT[short]

    return _ESCAPE.sub(one, text)
