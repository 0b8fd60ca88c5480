"""Calibrating audits on traces that trained nothing: thresholds, verifiers, bounds.

Half of the traces trains the learned verifiers; the other half sets thresholds and bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from outlay.audit.attacks import Hidden, World, pad
from outlay.audit.coin import CoIn
from outlay.audit.embedding import Embedder
from outlay.audit.fingerprints import block_texts
from outlay.audit.heads import Heads
from outlay.audit.simulation import Seen, Subject, decide, judged, look, path
from outlay.audit.verifiers import Kind, Verifier
from outlay.testbeds.coin.traces import SOURCES, Trace, pieces, vocabulary
from outlay.testbeds.coin.train import TrainConfig, train_verifier

PER_BLOCK = 0.05  # false alarms per block of the rule, over both heads
TRAINED = ("random_vocab", "shuffle_own", "foreign_text", "nearest_text", "embed_swap")
TRAINED_RATES = (0.25, 0.5, 1.0, 2.0, 3.0)
DESIGN = ("random_vocab", "foreign_text")  # what "benign" must not miss, at this rate and above
DESIGN_RATES = (1.0, 2.0, 3.0)
WEIGHED = ("foreign_text",)  # whose detectable rate is reported
DETECTED = 0.8  # share of audits from which a rate of inflation counts as detectable
LEARNED: tuple[Kind, ...] = ("deepset", "rnn")
REPEATS = 3  # honest audits per trace, each with challenges of its own


def hidden(trace: Trace) -> Hidden:
    """A trace as an attacker sees it."""
    return Hidden(trace.tokens, pieces(trace.answer), pieces(trace.prompt))


def world(traces: Sequence[Trace], block: int, embed: Embedder, but: Trace) -> World:
    """An attacker's world: all whole blocks of other traces of the same source."""
    others = [t for t in traces if t.name != but.name and t.source == but.source]
    found = [
        trace.tokens[at : at + block]
        for trace in others
        for at in range(0, len(trace.tokens) - block + 1, block)
    ]
    vectors = embed([text for t in others for text in _whole(t, block)])
    return World(block, vocabulary(), found, vectors)


def _whole(trace: Trace, block: int) -> list[str]:
    return block_texts(trace.tokens[: len(trace.tokens) // block * block], block)


def subject(
    trace: Trace, attack: str, ir: float, seed: int, setting: World, embed: Embedder
) -> Subject:
    """One inflated trace to audit."""
    answer_D = embed.whole(trace.answer)
    return Subject(pad(attack, hidden(trace), ir, setting, seed, answer_D=answer_D), answer_D, seed)


def honest(traces: Sequence[Trace], embed: Embedder, first: int, block: int) -> list[Subject]:
    """Honest traces, `REPEATS` audits each."""
    empty = World(block)
    return [
        subject(trace, "naive_count", 0.0, first + REPEATS * number + repeat, empty, embed)
        for number, trace in enumerate(traces)
        for repeat in range(REPEATS)
    ]


def inflated(
    traces: Sequence[Trace],
    attacks: Sequence[str],
    rates: Sequence[float],
    embed: Embedder,
    first: int,
    block: int,
) -> list[Subject]:
    """Every trace under every attack, at a rate drawn for each."""
    rng = np.random.default_rng(first)
    found = []
    for number, trace in enumerate(traces):
        setting = world(traces, block, embed, trace)
        for at, attack in enumerate(attacks):
            seed = first + 100 * number + at
            ir = float(rng.choice(rates))
            found.append(subject(trace, attack, ir, seed, setting, embed))
    return found


def halves(traces: Sequence[Trace]) -> tuple[list[Trace], list[Trace]]:
    """Every other trace of each source, and the rest."""
    parts: tuple[list[Trace], list[Trace]] = ([], [])
    for source in SOURCES:
        own = [trace for trace in traces if trace.source == source]
        for number in (0, 1):
            parts[number].extend(own[number::2])
    return parts


def calibrate(heads: Heads, traces: Sequence[Trace], embed: Embedder, config: TrainConfig) -> Heads:
    """Heads with thresholds, verifiers and bounds from held-out traces."""
    coin = CoIn(block=config.block)
    bare = Verifier("rule")
    teach, fit = halves(traces)
    seen = look(coin, honest(fit, embed, 10_000, config.block), embed)
    heads = replace(heads, thresholds=_thresholds(seen, heads, bare))
    design = look(coin, inflated(fit, DESIGN, DESIGN_RATES, embed, 20_000, config.block), embed)
    p0, p1 = (_bad(each, heads, bare) for each in (seen, design))
    made = {"rule": Verifier("rule", prior=(max(p0, 0.005), min(0.99, max(p1, p0 + 0.05))))}
    good = look(coin, honest(teach, embed, 30_000, config.block), embed)
    wrong = look(coin, inflated(teach, TRAINED, TRAINED_RATES, embed, 40_000, config.block), embed)
    scores = [_scores(each, heads, bare) for each in (*good, *wrong)]
    flags = [False] * len(good) + [True] * len(wrong)
    for kind in LEARNED:
        made[kind] = replace(train_verifier(kind, scores, flags, config), prior=made["rule"].prior)
    for name, verifier in made.items():
        made[name] = replace(
            verifier,
            honest=tuple(max(path(each, heads, verifier)) for each in seen),
            padded=tuple(min(path(each, heads, verifier)) for each in design),
        )
    return replace(heads, verifiers=made)


def detectable(
    heads: Heads, traces: Sequence[Trace], embed: Embedder, block: int
) -> dict[str, Any]:
    """Per attack, the smallest rate from which `DETECTED` of audits are right; None for none."""
    coin = CoIn(block=block)
    found: dict[str, Any] = {}
    for number, attack in enumerate(WEIGHED):
        caught = {}
        for ir in TRAINED_RATES:
            subjects = inflated(traces, (attack,), (ir,), embed, 60_000 + 1000 * number, block)
            seen = look(coin, subjects, embed)
            caught[ir] = float(
                np.mean([decide(coin, each, heads).verdict == "malicious" for each in seen])
            )
        enough = [ir for ir in TRAINED_RATES if caught[ir] >= DETECTED]
        found[attack] = min(enough) if enough else None
    return found


def _thresholds(seen: Sequence[Seen], heads: Heads, bare: Verifier) -> tuple[float, float]:
    blocks = [each for one in seen for each in judged(one, heads, bare)]
    low_a = float(np.quantile([each.a for each in blocks], PER_BLOCK / 2))
    return low_a, float(np.quantile([each.b for each in blocks], PER_BLOCK / 2))


def _bad(seen: Sequence[Seen], heads: Heads, bare: Verifier) -> float:
    return float(np.mean([each.bad for one in seen for each in judged(one, heads, bare)]))


def _scores(seen: Seen, heads: Heads, bare: Verifier) -> list[tuple[float, float]]:
    return [
        (0.0, 0.0) if each.duplicate else (each.a, each.b) for each in judged(seen, heads, bare)
    ]
