"""Proof of CoIn's claims on real text: the count by hashes, the content by heads, and what escapes.

"CoIn" (arXiv 2505.13778) says: a hash tree over fingerprints catches false counts, two matching
heads catch padding, with less than 40 % of embeddings and 4 % of tokens opened. Hidden reasoning
is stood in for by worked solutions of reasoning-gym's gsm_symbolic and by documentation pages, cut
into blocks of 32 tokens; test templates and pages trained and calibrated nothing.

The targets are those written before the first run of all. That run missed four of them, and the
causes were in the experiment as much as in the audit: 35 calibration traces a source were too few
to set a bound of 5 %; the bound was one number, though evidence from few blocks is noisier; and
every inflated trace was longer than every honest one, so that a verifier could learn length (the
recurrent one did: it "detected" near text and shuffled tokens that no head can tell). Now traces
are split anew, longer and of spread lengths, an inflated trace is as long as an honest one, bounds
hold with a stated confidence and move with the number of blocks, and heads saw random tokens beside
answers. The new test traces trained and calibrated nothing, and were audited once, after all that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from outlay.audit.attacks import ATTACKS
from outlay.audit.baselines import Disclosed
from outlay.audit.coin import CoIn
from outlay.audit.embedding import Embedder
from outlay.audit.heads import Heads
from outlay.audit.simulation import Seen
from outlay.proofs import coin_checks as checks
from outlay.proofs.base import Progress, ProofResult, Scale, silent
from outlay.proofs.coin_count import mutations
from outlay.proofs.coin_figure import drawer
from outlay.proofs.coin_runs import (
    Cell,
    Size,
    audited,
    filler,
    filling,
    honestly,
    inflated,
    short,
    worlds,
)
from outlay.stats import mean_interval
from outlay.testbeds.coin.calibrate import PLACES, REPEATS
from outlay.testbeds.coin.make import mixed

_CI = ("naive_count", "random_vocab", "duplicate_blocks")
_LAPTOP = tuple(name for name in ATTACKS if name != "lm_filler")
SIZES: Mapping[Scale, Size] = {
    "ci": Size(3, 2, 2, 300, 1000, (1.0,), _CI, 0, sources=("solutions",)),
    "laptop": Size(40, 30, 25, 10_000, 100_000, (0.25, 0.5, 1.0, 3.0), _LAPTOP, 5),
    "gpu": Size(180, 180, 100, 10_000, 100_000, (0.25, 0.5, 1.0, 3.0), _LAPTOP, 40),
}
FILLED = 0.5  # the rate at which a language model pads


def run(
    scale: Scale, *, seed: int = 0, progress: Progress = silent, embed: Embedder | None = None
) -> ProofResult:
    """Run the experiment; see `SIZES` for what each scale means.

    Args:
        scale: how much.
        seed: of challenges and attacks.
        progress: told of every step.
        embed: an embedder that remembers vectors; None embeds everything anew.
    """
    size = SIZES[scale]
    result = ProofResult("coin", scale, [seed])
    progress("count checks")
    result.checks += checks.count(size, seed)
    progress("mutated proofs")
    tried = mutations(size.mutated, seed)
    result.checks.append(checks.mutated(tried))
    embed = embed or Embedder()
    coin, heads = CoIn(block=checks.BLOCK, delta_fp=checks.DELTA), Heads.load(block=checks.BLOCK)
    calm_traces = mixed("test", size.honest, checks.BLOCK, sources=size.sources)
    traces = calm_traces[: len(size.sources) * size.traces]
    settings = worlds(traces, embed, checks.BLOCK)
    progress("honest traces")
    good = honestly(calm_traces, 1_000_000 + seed, embed, coin)
    seen: dict[tuple[str, float], list[Seen]] = {}
    cells: dict[tuple[str, str], Cell] = {}  # by attack and place
    for number, attack in enumerate(size.attacks):
        for at, ir in enumerate(size.rates):
            progress(f"{attack} at IR {ir:g}")
            first = 2_000_000 + seed + 100_000 * number + 10_000 * at
            seen[attack, ir] = inflated(traces, attack, ir, first, settings, embed, coin)
            for place in PLACES if ir == 1.0 and attack != "naive_count" else ():
                views = seen[attack, ir]
                if place != "end":
                    views = inflated(traces, attack, ir, first, settings, embed, coin, place)
                cells[attack, place] = audited(coin, views, heads)
    if size.filled:
        progress("a language model continues traces")
        some = short(traces[: len(size.sources) * size.filled])
        fillers = filling(settings[: len(some)], filler(some, FILLED, seed))
        seen["lm_filler", FILLED] = inflated(
            some, "lm_filler", FILLED, 4_000_000 + seed, fillers, embed, coin
        )
    kinds = {name: replace(coin, verifier=each.kind) for name, each in heads.verifiers.items()}
    every = {
        (name, *key): audited(each, views, heads)
        for name, each in kinds.items()
        for key, views in seen.items()
    }
    calm = {name: audited(each, good, heads, REPEATS) for name, each in kinds.items()}
    plain = {
        ir: audited(replace(coin, dedup=False), seen["duplicate_blocks", ir], heads)
        for ir in size.rates
    }
    main = {key[1:]: cell for key, cell in every.items() if key[0] == coin.verifier}
    content = checks.content(main, calm[coin.verifier], size)
    result.checks += content
    result.checks += checks.changed(content, coin, heads, good, seen)
    result.checks += checks.placed(cells)
    result.checks += checks.duplicates(main, plain, calm[coin.verifier], size)
    result.checks += checks.exposure(good, seen, coin)
    progress("baselines")
    calibration = honestly(
        mixed("calibrate", size.held, checks.BLOCK, sources=size.sources),
        5_000_000 + seed,
        embed,
        coin,
    )
    compared = checks.compared(calibration, good, seen, Disclosed(heads, coin, embed))
    result.checks += checks.against(main, compared)
    progress("heads against raw cosine")
    result.checks += checks.heads_apart(heads, traces, embed, seed)
    result.data = {
        "dsr": [
            {"verifier": key[0], "attack": key[1], "ir": key[2], **_row(cell)}
            for key, cell in every.items()
        ],
        "places": [
            {"attack": attack, "place": place, **_row(cell)}
            for (attack, place), cell in cells.items()
        ],
        "duplicates_without_dedup": {str(ir): plain[ir].dsr for ir in plain},
        "honest": {name: _row(cell) for name, cell in calm.items()},
        "honest_by_source": {
            source: _row(Cell(_of(calm[coin.verifier], at, len(size.sources)), REPEATS))
            for at, source in enumerate(size.sources)
        },
        "baselines": compared,
        "mutations": {kind: list(pair) for kind, pair in tried.items()},
        "calibration": dict(heads.about),
    }
    shown = {key: cell.dsr for key, cell in main.items()}
    result.draw = drawer(shown, calm[coin.verifier].dsr, size.rates)
    return result.finish()


def _of(cell: Cell, source: int, sources: int) -> list[Any]:
    """The audits of one source's traces: sources take turns."""
    step = cell.repeats * sources
    return [
        each
        for at in range(source * cell.repeats, len(cell.outcomes), step)
        for each in cell.outcomes[at : at + cell.repeats]
    ]


def _row(cell: Cell) -> dict[str, Any]:
    interval = mean_interval(cell.caught)
    return {
        "dsr": round(cell.dsr, 4),
        "ci": checks.ends(interval),
        "n": interval.n,
        "benign": round(cell.share("benign"), 4),
        "inconclusive": round(cell.share("inconclusive"), 4),
        "rounds": round(float(np.mean([each.rounds for each in cell.outcomes])), 2),
        "blocks": round(float(np.mean([each.blocks for each in cell.outcomes])), 2),
        "tokens": round(float(np.mean([each.tokens for each in cell.outcomes])), 2),
    }
