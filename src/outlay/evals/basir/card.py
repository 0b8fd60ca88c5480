"""The model card of a trained identifier, written from its configuration and measurements alone."""

from __future__ import annotations

from collections.abc import Sequence

from outlay.evals.basir.f1 import F1Report
from outlay.evals.basir.identifier import NOTICE, Identifier, knobs_of

_CARD = """---
library_name: outlay
tags: [text-classification, multi-label, economic-sectors]
---

# Sector identifier, route {route}

Tags an excerpt of a policy speech with the economic sectors that it touches. {notice}

## How it was made

    outlay basir train ROWS --route {route} ...

Knobs: {knobs}. {threshold}

| split | rows | from | to |
|---|---:|---|---|
{splits}

Events never lie in two splits. The threshold saw the validation split only; the test split was
read once, for the table below.

## Measured

| split | micro-F1 | macro-F1 | weighted | samples | labels never predicted |
|---|---:|---:|---:|---:|---:|
{measured}

Macro-F1 counts all {labels} labels, also those without a text.

| best labels | F1 | texts | | worst labels | F1 | texts |
|---|---:|---:|---|---|---:|---:|
{extremes}

## Limits

{warnings}- It knows the label file that lies beside it, and the language of its training texts.
- Scores are not probabilities; thresholds are for texts like those of the validation split.
- {notice}
"""


def model_card(
    identifier: Identifier,
    validation: F1Report,
    test: F1Report,
    warnings: Sequence[str] = (),
) -> str:
    """The card as Markdown."""
    about = identifier.about
    rule = identifier.thresholds
    low, high = float(rule.values.min()), float(rule.values.max())
    cut = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}, one per label"
    threshold = f"Threshold: {cut}" + ("; at least the top label." if rule.min_one else ".")
    knobs = ", ".join(f"{k}={v}" for k, v in knobs_of(identifier.route).items()) or "none"
    splits = [
        f"| {name} | {count} | " + " | ".join(day or "-" for day in about["dates"][name]) + " |"
        for name, count in about["rows"].items()
    ]
    measured = [
        f"| {name} | {r.micro:.3f} | {r.macro:.3f} | {r.weighted:.3f} | {r.samples:.3f} "
        f"| {r.never_predicted} |"
        for name, r in (("validation", validation), ("test", test))
    ]
    order = sorted(
        (score for score in test.per_label if score.support), key=lambda s: (-s.f1, s.id)
    )
    half = min(5, (len(order) + 1) // 2)
    extremes = [
        f"| {a.id} | {a.f1:.2f} | {a.support} | | {b.id} | {b.f1:.2f} | {b.support} |"
        for a, b in zip(order[:half], order[::-1][:half], strict=True)
    ]
    return _CARD.format(
        route=identifier.route.name,
        notice=NOTICE,
        knobs=knobs,
        threshold=threshold,
        splits="\n".join(splits),
        measured="\n".join(measured),
        labels=len(identifier.labels),
        extremes="\n".join(extremes),
        warnings="".join(f"- {text}.\n" for text in warnings),
    )
