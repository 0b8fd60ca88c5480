"""Calibrating audits on traces that trained nothing: thresholds, verifiers, bounds.

A third of the traces trains the learned verifiers; the others set thresholds and bounds, which
must hold for traces that come later: with few of them, a bound of 5 % would be a matter of luck.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np

from outlay.audit.attacks import Hidden, Place, World, pad
from outlay.audit.coin import CoIn
from outlay.audit.embedding import Embedder
from outlay.audit.heads import Heads
from outlay.audit.simulation import Seen, Subject, decide, judged, look, path
from outlay.audit.verifiers import Kind, Track, Verifier
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
PLACES: tuple[Place, ...] = get_args(Place)
FOREIGN = 1000  # blocks of others that an attacker has


def hidden(trace: Trace, ir: float) -> Hidden:
    """A trace as an attacker sees it, cut so that it is as long as the trace once it is inflated.

    Else length alone would tell: no honest trace would be as long as the inflated ones.
    """
    own = trace.tokens[: round(len(trace.tokens) / (1 + ir))]
    return Hidden(own, pieces(trace.answer), pieces(trace.prompt))


def world(traces: Sequence[Trace], block: int, embed: Embedder, but: Trace) -> World:
    """An attacker's world: whole blocks of other traces of the same source, at most `FOREIGN`."""
    found = [
        trace.tokens[at : at + block]
        for trace in traces
        if trace.name != but.name and trace.source == but.source
        for at in range(0, len(trace.tokens) - block + 1, block)
    ]
    rng = np.random.default_rng(list(but.name.encode()))
    found = [found[i] for i in rng.permutation(len(found))[:FOREIGN]]
    return World(block, vocabulary(), found, embed(["".join(tokens) for tokens in found]))


def subject(
    trace: Trace,
    attack: str,
    ir: float,
    seed: int,
    setting: World,
    embed: Embedder,
    place: Place = "end",
) -> Subject:
    """One inflated trace to audit."""
    answer_D = embed.whole(trace.answer)
    made = pad(attack, hidden(trace, ir), ir, setting, seed, place=place, answer_D=answer_D)
    return Subject(made, answer_D, seed)


def honest(traces: Sequence[Trace], embed: Embedder, first: int, block: int) -> list[Subject]:
    """Honest traces, `REPEATS` audits each, in the order of the traces."""
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
    """Every trace under every attack, at a rate and a place drawn for each."""
    rng = np.random.default_rng(first)
    found = []
    for number, trace in enumerate(traces):
        setting = world(traces, block, embed, trace)
        for at, attack in enumerate(attacks):
            seed = first + 100 * number + at
            ir, place = float(rng.choice(rates)), PLACES[int(rng.integers(len(PLACES)))]
            found.append(subject(trace, attack, ir, seed, setting, embed, place))
    return found


def parted(traces: Sequence[Trace]) -> tuple[list[Trace], list[Trace]]:
    """Every third trace of each source, and the rest."""
    third: list[Trace] = []
    rest: list[Trace] = []
    for source in SOURCES:
        own = [trace for trace in traces if trace.source == source]
        for number, trace in enumerate(own):
            (rest if number % 3 else third).append(trace)
    return third, rest


def calibrate(heads: Heads, traces: Sequence[Trace], embed: Embedder, config: TrainConfig) -> Heads:
    """Heads with thresholds, verifiers and bounds from held-out traces."""
    coin = CoIn(block=config.block)
    bare = Verifier("rule")
    teach, fit = parted(traces)
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
    # One audit a trace: several of one trace are alike, and would promise too much.
    once = seen[::REPEATS]
    every = [design[len(DESIGN) * at + at % len(DESIGN)] for at in range(len(fit))]
    for name, verifier in made.items():
        made[name] = replace(
            verifier,
            honest=Track.of([path(each, heads, verifier) for each in once], 1, coin.b_1),
            padded=Track.of([path(each, heads, verifier) for each in every], -1, coin.b_1),
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
