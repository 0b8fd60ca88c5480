"""Synthetic speeches by rule: the shipped sample, and worlds with a signal of chosen strength.

Every (event, sector) draws a mood from -2 to 2. The wording tells the mood; the return is
`SPREAD * (signal * mood + noise)`, scaled to the same spread for every signal. With signal 0 the
words say nothing about prices, and nothing can rank them. No sentence is taken from a real speech.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from importlib import resources
from random import Random
from typing import Any

from outlay.errors import InputError
from outlay.evals.basir.data import Excerpt
from outlay.evals.basir.labels import Label, LabelSet, load_labels
from outlay.evals.basir.prices import Price
from outlay.evals.checks import check_whole

SPREAD = 0.02
"""Standard deviation of a sector's return."""
MOODS = (-2, -1, 0, 1, 2)

OPENINGS = (
    "I now turn to {name}.",
    "Let me speak about {name}.",
    "The next proposal concerns {name}.",
    "Members have asked about {name}.",
)
WORDING = {
    -2: (
        "The concessions end this year and the levy doubles.",
        "Support is withdrawn at once, and a new duty will be charged.",
        "We will cut the outlay by half and abolish the exemption.",
    ),
    -1: (
        "The allocation is reduced slightly and a small cess is added.",
        "Some of the relief will be phased out.",
        "The rate of duty goes up by a little.",
    ),
    0: (
        "The present arrangements continue without change.",
        "A committee will study the matter and report next year.",
        "The existing rates and schemes remain in force.",
    ),
    1: (
        "A modest rise in the allocation is proposed.",
        "Some procedures will be made simpler and cheaper.",
        "The rate of duty comes down by a little.",
    ),
    2: (
        "The outlay doubles, and a tax holiday of ten years is granted.",
        "I propose a large new programme and remove the duty altogether.",
        "Investment will triple, with full exemption from the levy.",
    ),
}
PROVENANCE = (
    "Synthetic by rule: every sentence, date, company and price was made by "
    "outlay.evals.basir.synthetic (python -m outlay.evals.basir.synthetic > sample.json). Nothing "
    "is taken from a speech, a market or the BASIR data set. Licence: Apache-2.0."
)


def world(
    labels: Sequence[Label],
    *,
    years: int = 40,
    signal: float = 1.0,
    joint: float = 0.0,
    companies: int = 1,
    first: int = 1981,
    detail: bool = False,
    seed: int = 0,
) -> tuple[list[Excerpt], list[Price]]:
    """Excerpts and prices of `years` events that mention every label.

    Args:
        labels: at least two.
        years: events, one a year.
        signal: how much the mood of the words moves the price, against noise of size 1.
        joint: chance that a sector shares its excerpt with the next one.
        companies: per sector; their moves differ a little.
        first: year of the first event.
        detail: add the label's definition to the excerpt.
        seed: of everything.

    Raises:
        InputError: for numbers out of range.
    """
    check_whole("years", years, least=1)
    check_whole("companies", companies, least=1)
    if len(labels) < 2 or not 0 <= joint <= 1 or not (signal >= 0 and math.isfinite(signal)):
        raise InputError(f"labels={len(labels)}, joint={joint}, signal={signal}; out of range")
    random = Random(f"basir world:{seed}")
    rows: list[Excerpt] = []
    prices: list[Price] = []
    scale = SPREAD / math.sqrt(1 + signal**2)
    for year in range(first, first + years):
        event, date = f"budget-{year}", f"{year}-02-01"
        order = random.sample(list(labels), len(labels))
        while order:
            group = [order.pop()]
            if order and random.random() < joint:
                group.append(order.pop())
            mood = random.choice(MOODS)
            rows.append(
                Excerpt(
                    event,
                    date,
                    f"{event}-{len(rows):05d}",
                    _sentence(random, group, mood, detail),
                    tuple(label.id for label in group),
                )
            )
            for label in group:
                noise = random.gauss(0.0, 1.0)
                move = scale * (signal * mood / math.sqrt(2) + noise)
                for number in range(companies):
                    before = round(random.uniform(50.0, 500.0), 2)
                    own = random.gauss(0.0, 0.1 * SPREAD) if companies > 1 else 0.0
                    after = round(before * (1 + max(-0.3, min(0.3, move + own))), 4)
                    prices.append(Price(event, f"{label.id}-{number + 1}", label.id, before, after))
    return rows, prices


def _sentence(random: Random, group: Sequence[Label], mood: int, detail: bool) -> str:
    names = [
        random.choice((label.name, *label.aliases)) if detail else label.name for label in group
    ]
    parts = [random.choice(OPENINGS).format(name=" and ".join(names))]
    if detail:
        parts += [f"This is about {_lower(random.choice(group).definition)}"]
    parts.append(random.choice(WORDING[mood]))
    return " ".join(parts)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


SAMPLE_LABELS = (
    "agriculture",
    "fertilisers",
    "textiles",
    "pharmaceuticals",
    "hospitals",
    "education",
    "steel",
    "cement",
    "roads-highways",
    "railways",
    "ports",
    "airlines",
    "automobiles",
    "electric-vehicles",
    "renewable-energy",
    "oil-gas",
    "defence",
    "telecom",
    "banks",
    "insurance",
)


def make_sample() -> dict[str, Any]:
    """What `sample.json` holds: 15 events, 20 sectors, two companies each."""
    known = {label.id: label for label in load_labels()}
    rows, prices = world(
        [known[name] for name in SAMPLE_LABELS],
        years=15,
        signal=1.5,
        joint=0.35,
        companies=2,
        first=2010,
        detail=True,
        seed=2025,
    )
    return {
        "provenance": PROVENANCE,
        "excerpts": [
            {name: value for name, value in asdict(row).items() if value != ""} for row in rows
        ],
        "prices": [[p.event, p.company, p.sector, p.open_before, p.open_after] for p in prices],
    }


@lru_cache(maxsize=1)
def load_sample() -> tuple[tuple[Excerpt, ...], tuple[Price, ...], LabelSet]:
    """The shipped sample: excerpts, prices, and the 81 labels."""
    text = resources.files(__package__).joinpath("sample.json").read_text(encoding="utf-8")
    data = json.loads(text)
    rows = tuple(Excerpt(**{**row, "sectors": tuple(row["sectors"])}) for row in data["excerpts"])
    return rows, tuple(Price(*row) for row in data["prices"]), load_labels()


if __name__ == "__main__":
    print(json.dumps(make_sample(), ensure_ascii=False, indent=None, separators=(",", ":")))
