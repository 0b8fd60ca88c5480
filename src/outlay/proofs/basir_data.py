"""Data of the BASIR proof: package descriptions with their tags, from this machine's apt lists.

Debian's packages carry tags of several facets (`use::editing`, `works-with::audio`), set by people:
a real multi-label problem with short texts and rare labels. Nothing is shipped: the lists are read
where apt keeps them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from random import Random

from outlay.errors import DependencyError, InputError
from outlay.evals.basir.data import Excerpt
from outlay.evals.basir.labels import Label, LabelSet

FACETS = frozenset(
    (
        *("field", "use", "works-with", "works-with-format", "devel", "game", "web", "network"),
        *("security", "admin", "hardware", "sound", "mail", "office", "science", "biology"),
    )
)
LABELS = 81
SPOKEN = {
    "admin": "system administration",
    "devel": "software development",
    "use": "used for",
    "works-with-format": "file format",
}
"""Facets in words, where their names say little."""

_DUMP = ("apt-cache", "dumpavail")
_CLEAN = re.compile(r"[^A-Za-z0-9+.:-]")


def dump() -> str:
    """What apt knows of all packages.

    Raises:
        DependencyError: where there is no apt.
        InputError: where its lists are empty.
    """
    if shutil.which(_DUMP[0]) is None:
        raise DependencyError(
            "the laptop proof of basir reads package descriptions through apt-cache, which this "
            "machine has not; run it on Debian or in a Debian container, or use --scale ci"
        )
    done = subprocess.run(_DUMP, capture_output=True, check=False, timeout=120)
    text = done.stdout.decode("utf-8", "replace")
    if done.returncode or "\nTag:" not in text:
        raise InputError(
            "apt-cache lists no package with tags; run `apt-get update` once (as root, with a "
            "Debian source), or use --scale ci"
        )
    return text


def stanzas(text: str) -> Iterator[dict[str, str]]:
    """Fields of every stanza; continuation lines are joined."""
    for block in text.split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in block.split("\n"):
            if line[:1] in (" ", "\t"):
                if name:
                    fields[name] += " " + line.strip()
            elif ":" in line:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        if fields:
            yield fields


def packages(text: str) -> tuple[list[Excerpt], LabelSet]:
    """One row per distinct synopsis, and the labels: the 81 most frequent tags.

    The event is the source package, so that siblings built from one source (whose descriptions
    repeat each other) never lie in two splits.

    Raises:
        InputError: if there are fewer tags than labels.
    """
    found: dict[str, tuple[str, str, tuple[str, ...]]] = {}
    counts: Counter[str] = Counter()
    for fields in stanzas(text):
        package, synopsis = fields.get("Package", ""), fields.get("Description", "")
        tags = {tag.strip() for tag in fields.get("Tag", "").split(",")}
        wanted = tuple(
            sorted(t for t in tags if t.split("::")[0] in FACETS and not t.endswith("TODO"))
        )
        if not package or not synopsis or package in found or not wanted:
            continue
        source = fields.get("Source", package).split(" ")[0]
        found[package] = (source, synopsis, wanted)
        counts.update(wanted)
    chosen = [tag for tag, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    if len(chosen) < LABELS:
        raise InputError(f"{len(chosen)} tags, {LABELS} needed; the package lists are incomplete")
    labels = LabelSet(tuple(_label(tag) for tag in sorted(chosen[:LABELS])))
    kept, rows = set(chosen[:LABELS]), []
    seen: set[str] = set()
    for package, (source, synopsis, wanted) in sorted(found.items()):
        sectors = tuple(_CLEAN.sub("-", tag) for tag in wanted if tag in kept)
        if sectors and synopsis.casefold() not in seen:
            seen.add(synopsis.casefold())
            rows.append(Excerpt(source, "", package, synopsis, sectors))
    return rows, labels


def _label(tag: str) -> Label:
    facet, _, value = tag.partition("::")
    words = re.sub(r"[-:]+", " ", value)
    return Label(_CLEAN.sub("-", tag), f"{SPOKEN.get(facet, facet.replace('-', ' '))}: {words}")


def draw(
    rows: list[Excerpt], sizes: tuple[int, int, int], seed: int
) -> tuple[list[Excerpt], list[Excerpt], list[Excerpt]]:
    """Train, validation and test of about these sizes, whole sources each.

    Raises:
        InputError: if there are too few rows.
    """
    if sum(sizes) > len(rows):
        raise InputError(f"{len(rows)} rows, {sum(sizes)} wanted; run `apt-get update`")
    by_event: dict[str, list[Excerpt]] = {}
    for row in rows:
        by_event.setdefault(row.event, []).append(row)
    events = sorted(by_event)
    Random(f"basir proof:{seed}").shuffle(events)
    parts: list[list[Excerpt]] = [[], [], []]
    place = 0
    for event in events:
        if len(parts[place]) >= sizes[place]:
            place += 1
        if place == len(sizes):
            break
        parts[place] += by_event[event]
    return parts[0], parts[1], parts[2]
