"""The page on policies shows the figures of the day that were committed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DAY = json.loads((ROOT / "results" / "benchmarks" / "day.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
ROWS = {row["case"]: row for row in DAY["rows"]}
SIDES = ("longcodezip", "bm25")


def shown() -> dict[str, list[str]]:
    """The page's table of the day: cells by their first."""
    table = PAGE.split("## A day in the life")[1]
    rows = re.findall(r"^\| (.+) \|$", table, re.MULTILINE)
    return {cells[0]: cells[1:] for cells in (row.split(" | ") for row in rows)}


@pytest.mark.parametrize(
    "case",
    [
        "prompt tokens charged",
        "generated tokens",
        "CPU seconds, scoring included",
        "seconds, scoring included",
        "answers that hold the right name or value",
        "edit similarity of the next lines",
        "loss of the right answer",
    ],
)
def test_every_figure_of_the_page_is_a_committed_one(case: str) -> None:
    plain, *rest = shown()[case]
    assert plain == f"{ROWS[f'longcodezip: {case}']['theirs']:.4g}"
    for side, cell in zip(SIDES, rest, strict=True):
        row = ROWS[f"{side}: {case}"]
        gap = re.search(r"difference (\S+ \[.*?\])", row["note"])
        assert gap is not None
        assert cell == f"{row['ours']:.4g} ({gap[1]})"


def test_the_scorers_tokens_are_shown_beside_what_was_charged() -> None:
    assert shown()["tokens that the scorer read"][1:] == [
        f"{ROWS[f'{side}: tokens that the scorer read']['ours']:.4g}" for side in SIDES
    ]


def test_the_picture_is_there() -> None:
    assert "](images/gateway/day.png)" in PAGE
    assert (ROOT / "docs" / "images" / "gateway" / "day.png").stat().st_size > 10_000
