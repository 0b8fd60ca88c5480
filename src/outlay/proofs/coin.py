"""Proof of CoIn's claims on real text: the count by hashes, the content by heads, and what escapes.

"CoIn" (arXiv 2505.13778) says: a hash tree over fingerprints catches false counts, two matching
heads catch padding, with less than 40 % of embeddings and 4 % of tokens opened. Hidden reasoning
is stood in for by worked solutions of reasoning-gym's gsm_symbolic and by documentation pages, cut
into blocks of 32 tokens; test templates and pages trained nothing.

Every target below was written before the first run. Four things were changed after a small one on
ten test traces: a trace of solutions had mixed six templates, whose blocks the answer as a whole
says little about, and now has one; a page's lead had at least 120 characters and now has 300; the
first round judged three blocks and now judges five, later ones one and now two; fewer traces train
and calibrate. The targets are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from outlay.audit.attacks import ATTACKS
from outlay.audit.coin import CoIn
from outlay.audit.commitment import detection
from outlay.audit.embedding import Embedder
from outlay.audit.heads import Heads
from outlay.audit.simulation import Seen
from outlay.figure import MARKERS, PALETTE
from outlay.proofs.base import Check, Progress, ProofResult, Scale, silent
from outlay.proofs.coin_runs import (
    Cell,
    audited,
    caught,
    filler,
    filling,
    honestly,
    inflated,
    mutations,
    naive,
    rivals,
    worlds,
)
from outlay.stats import Interval, mean_interval
from outlay.testbeds.coin.calibrate import REPEATS
from outlay.testbeds.coin.make import both, quality
from outlay.testbeds.coin.train import TrainConfig, pairs

BLOCK = 32
DELTA = 0.05

# Targets.
FALSE_ALARMS = 0.05
RANDOM, FOREIGN = 0.95, 0.90  # detection at IR 1
ERRORS = 2.0  # standard errors around the formula
SETTINGS = ((480, 48, 5), (480, 4, 20), (1000, 10, 40))  # tokens, false ones, opened
RISING = ("random_vocab", "foreign_text", "shuffle_own")
CLEAR, HARD = ("random_vocab", "foreign_text"), ("nearest_text", "shuffle_own")
COMPARED = ("random_vocab", "foreign_text")


@dataclass(frozen=True)
class Size:
    """How much is run.

    Args:
        traces: test traces per source.
        held: calibration traces per source, for thresholds of baselines.
        audits: of one setting of the count check.
        mutated: proofs.
        rates: of inflation.
        attacks: names.
        filled: traces per source that a language model continues; 0 for none.
    """

    traces: int
    held: int
    audits: int
    mutated: int
    rates: tuple[float, ...]
    attacks: tuple[str, ...]
    filled: int


_LAPTOP = tuple(name for name in ATTACKS if name != "lm_filler")
SIZES: Mapping[Scale, Size] = {
    "ci": Size(
        5, 5, 300, 2000, (0.25, 1.0), ("naive_count", "random_vocab", "duplicate_blocks"), 0
    ),
    "laptop": Size(30, 25, 10_000, 100_000, (0.25, 0.5, 1.0, 3.0), _LAPTOP, 5),
    "gpu": Size(80, 60, 10_000, 100_000, (0.25, 0.5, 1.0, 3.0), _LAPTOP, 40),
}
FILLED_RATES = (0.25, 0.5)


def run(scale: Scale, *, seed: int = 0, progress: Progress = silent) -> ProofResult:
    """Run the experiment; see `SIZES` for what each scale means."""
    size = SIZES[scale]
    result = ProofResult("coin", scale, [seed])
    progress("count checks")
    result.checks += _count(size, seed)
    progress("mutated proofs")
    tried = mutations(size.mutated, seed)
    result.checks.append(_mutated(tried))
    embed, coin, heads = Embedder(), CoIn(block=BLOCK, delta_fp=DELTA), Heads.load()
    traces = both("test", size.traces)
    settings = worlds(traces, embed, BLOCK)
    progress("honest traces")
    good = honestly(traces, 1_000_000 + seed, embed, coin)
    seen: dict[tuple[str, float], list[Seen]] = {}
    for number, attack in enumerate(size.attacks):
        for at, ir in enumerate(size.rates):
            progress(f"{attack} at IR {ir:g}")
            first = 2_000_000 + seed + 100_000 * number + 10_000 * at
            seen[attack, ir] = inflated(traces, attack, ir, first, settings, embed, coin)
    if size.filled:
        some = [*range(2 * size.filled)]
        progress("a language model continues traces")
        texts = filler([traces[i] for i in some], round(max(FILLED_RATES) * 480), seed)
        fillers = filling([settings[i] for i in some], texts)
        for at, ir in enumerate(FILLED_RATES):
            first = 4_000_000 + seed + 10_000 * at
            seen["lm_filler", ir] = inflated(
                [traces[i] for i in some], "lm_filler", ir, first, fillers, embed, coin
            )
    kinds = {name: replace(coin, verifier=each.kind) for name, each in heads.verifiers.items()}
    cells = {
        (name, *key): audited(each, views, heads)
        for name, each in kinds.items()
        for key, views in seen.items()
    }
    calm = {name: audited(each, good, heads, REPEATS) for name, each in kinds.items()}
    plain = {
        ir: audited(replace(coin, dedup=False), seen["duplicate_blocks", ir], heads)
        for ir in size.rates
    }
    main = {key[1:]: cell for key, cell in cells.items() if key[0] == coin.verifier}
    result.checks += _content(main, calm[coin.verifier], size)
    result.checks += _duplicates(main, plain, calm[coin.verifier], size)
    result.checks += _exposure(good, seen, coin)
    progress("baselines")
    calibration = honestly(both("calibrate", size.held), 5_000_000 + seed, embed, coin)
    compared = _compared(calibration, good, seen)
    result.checks += _rivals(main, compared)
    progress("heads against raw cosine")
    result.checks += _heads(heads, traces, embed, seed)
    result.data = {
        "dsr": [
            {"verifier": key[0], "attack": key[1], "ir": key[2], **_row(cell)}
            for key, cell in cells.items()
        ],
        "duplicates_without_dedup": {str(ir): plain[ir].dsr for ir in plain},
        "honest": {name: _row(cell) for name, cell in calm.items()},
        "baselines": compared,
        "mutations": {kind: list(pair) for kind, pair in tried.items()},
        "calibration": dict(heads.about),
    }
    result.draw = _drawer(main, calm[coin.verifier], size)
    return result.finish()


# -- count ----------------------------------------------------------------------------------------


def _count(size: Size, seed: int) -> list[Check]:
    checks = []
    for m, f, s in SETTINGS:
        wanted = detection(m - 1, f, s - 1)
        got = caught(m, f, s, size.audits, seed)
        error = (wanted * (1 - wanted) / size.audits) ** 0.5
        checks.append(
            Check(
                f"bound tree: {f} altered of {m} leaves, {s} opened, are met as the formula says",
                "40.1 % for a tenth of tokens forged, at its default sampling",
                got,
                abs(got - wanted) <= ERRORS * error,
                (got - 1.96 * error, got + 1.96 * error),
                f"formula {wanted:.4f} (the last token is always opened and true here), "
                f"{size.audits} audits; target: within {ERRORS:g} standard errors",
            )
        )
    runs = max(100, size.audits // 20)
    for form, wanted in (("bound", 1.0), ("paper", 0.0)):
        got = naive(100, 28, 5, runs, seed, form)
        checks.append(
            Check(
                f"{form} tree: 100 tokens billed as 128 by repeating the last leaf are "
                + ("refused" if wanted else "accepted"),
                "padding repeats the last leaf, so the root does not change",
                got,
                got == wanted,
                None,
                f"share of {runs} audits that refuse; target: {wanted:g}",
            )
        )
    return checks


def _mutated(tried: Mapping[str, tuple[int, int]]) -> Check:
    accepted = sum(passed for _, passed in tried.values())
    total = sum(number for number, _ in tried.values())
    return Check(
        "no altered proof is accepted",
        "the tree is tamper-evident",
        float(accepted),
        accepted == 0,
        None,
        f"of {total} mutations ({', '.join(tried)}); target: 0",
    )


# -- content --------------------------------------------------------------------------------------


def _ends(interval: Interval) -> tuple[float, float] | None:
    return None if interval.lo is None or interval.hi is None else (interval.lo, interval.hi)


def _content(main: Mapping[tuple[str, float], Cell], calm: Cell, size: Size) -> list[Check]:
    alarms = mean_interval(calm.caught)
    checks = [
        Check(
            "honest traces: false alarms",
            "visible (review of its figure 6)",
            alarms.mean,
            alarms.mean <= FALSE_ALARMS,
            _ends(alarms),
            f"{REPEATS} audits of each of {alarms.n} traces; inconclusive "
            f"{calm.share('inconclusive'):.2f}; target: at most {FALSE_ALARMS}",
        )
    ]
    best = max(main, key=lambda key: main[key].dsr if key[0] != "naive_count" else -1)
    for attack in size.attacks:
        cell = main[attack, 1.0]
        target = {"random_vocab": RANDOM, "foreign_text": FOREIGN, "naive_count": 1.0}.get(attack)
        interval = mean_interval(cell.caught)
        rates = ", ".join(f"{ir:g}: {main[attack, ir].dsr:.2f}" for ir in size.rates)
        checks.append(
            Check(
                f"{attack}: detection at IR 1",
                "usable from IR about 1",
                interval.mean,
                None if target is None else interval.mean >= target,
                _ends(interval),
                f"n={interval.n}; by IR {rates}"
                + ("" if target is None else f"; target: at least {target}"),
            )
        )
    checks.append(
        Check(
            "best detection of content",
            "94.7 %",
            main[best].dsr,
            None,
            _ends(mean_interval(main[best].caught)),
            f"{best[0]} at IR {best[1]:g}",
        )
    )
    for attack in RISING:
        if attack in size.attacks:
            low, high = main[attack, min(size.rates)], main[attack, max(size.rates)]
            gain = mean_interval(high.caught - low.caught)
            checks.append(
                Check(
                    f"{attack}: detection rises with IR",
                    "more inflation is easier to see",
                    gain.mean,
                    gain.lo is not None and gain.lo > 0,
                    _ends(gain),
                    f"IR {max(size.rates):g} minus IR {min(size.rates):g}; target: above 0",
                )
            )
    if set(HARD) <= set(size.attacks):
        for hard in HARD:
            clear = np.mean([main[name, 1.0].caught for name in CLEAR], axis=0)
            gap = mean_interval(clear - main[hard, 1.0].caught)
            checks.append(
                Check(
                    f"{hard} is detected less than random and foreign text",
                    "Adaptive 2 is usable only from IR about 3",
                    gap.mean,
                    gap.lo is not None and gap.lo > 0,
                    _ends(gap),
                    f"at IR 1: mean of {' and '.join(CLEAR)} minus {hard}; target: above 0",
                )
            )
    for ir in FILLED_RATES:
        if ("lm_filler", ir) in main:
            got = mean_interval(main["lm_filler", ir].caught)
            checks.append(
                Check(
                    f"lm_filler at IR {ir:g}: detection",
                    "a language model's padding",
                    got.mean,
                    None,
                    _ends(got),
                    f"SmolLM2-135M continues {got.n} traces",
                )
            )
    return checks


def _duplicates(
    main: Mapping[tuple[str, float], Cell], plain: Mapping[float, Cell], calm: Cell, size: Size
) -> list[Check]:
    without, alarms = plain[1.0], calm.dsr
    deduped = main["duplicate_blocks", max(size.rates)]
    gap = mean_interval(deduped.caught - plain[max(size.rates)].caught)
    blind = mean_interval(without.caught)
    return [
        Check(
            "duplicate_blocks at IR 1 escape both heads without dedup",
            "reviewers' objection: copies pass both heads",
            blind.mean,
            blind.mean <= alarms + 0.1,
            _ends(blind),
            f"false alarms {alarms:.3f}; target: at most 0.1 above them",
        ),
        Check(
            f"dedup catches copies at IR {max(size.rates):g}",
            "not in the paper",
            gap.mean,
            gap.lo is not None and gap.lo > 0,
            _ends(gap),
            f"with {deduped.dsr:.2f}, without {plain[max(size.rates)].dsr:.2f}; whole aligned "
            "blocks are copied; target: above 0",
        ),
    ]


def _exposure(
    good: Sequence[Seen], seen: Mapping[tuple[str, float], Sequence[Seen]], coin: CoIn
) -> list[Check]:
    every = [*good, *(each for views in seen.values() for each in views)]
    tokens = [len(each.plan.tokens) / len(each.subject.padded.tokens) for each in every]
    blocks = [
        len(each.plan.blocks) / -(-len(each.subject.padded.tokens) // coin.block) for each in every
    ]
    inside = max(tokens) <= coin.max_token_exposure and max(blocks) <= coin.max_block_exposure
    return [
        Check(
            "no audit opens more than the limits",
            "under 40 % of embeddings, under 4 % of tokens",
            max(blocks),
            inside,
            None,
            f"largest shares over {len(every)} audits: blocks {max(blocks):.3f}, tokens "
            f"{max(tokens):.4f}; target: {coin.max_block_exposure} and {coin.max_token_exposure}",
        )
    ]


# -- baselines ------------------------------------------------------------------------------------


def _compared(
    calibration: Sequence[Seen],
    good: Sequence[Seen],
    seen: Mapping[tuple[str, float], Sequence[Seen]],
) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name, (evidence, limit) in rivals(calibration, DELTA).items():
        row = {"false alarms": float(np.mean([evidence(each) > limit for each in good]))}
        for (attack, ir), views in seen.items():
            if ir == 1.0:
                row[attack] = float(np.mean([evidence(each) > limit for each in views]))
        found[name] = row
    return found


def _rivals(
    main: Mapping[tuple[str, float], Cell], compared: Mapping[str, Mapping[str, float]]
) -> list[Check]:
    used = [name for name in COMPARED if (name, 1.0) in main]
    ours = float(np.mean([main[name, 1.0].dsr for name in used]))
    content = {k: row for k, row in compared.items() if k != "length predictor"}
    best = max(content, key=lambda k: np.mean([content[k][name] for name in used]))
    theirs = float(np.mean([content[best][name] for name in used]))
    length = compared["length predictor"]
    return [
        Check(
            "CoIn detects more than every baseline of content with the same openings",
            "baselines of the sheet",
            ours - theirs,
            ours > theirs,
            None,
            f"mean over {', '.join(used)} at IR 1: {ours:.3f} against {theirs:.3f} ({best}); "
            "target: above 0",
        ),
        Check(
            "length predictor: detection at IR 1 without any opening",
            "PALACE-like regression",
            float(np.mean([length[name] for name in used])),
            None,
            None,
            f"false alarms {length['false alarms']:.3f}; traces here are all cut at 320 to 480 "
            "tokens, which makes this baseline far stronger than it is on free lengths",
        ),
    ]


def _heads(heads: Heads, traces: Sequence[Any], embed: Embedder, seed: int) -> list[Check]:
    checks = []
    data = pairs(traces, embed, TrainConfig(block=BLOCK, seed=seed + 7))
    named = zip(
        ("Tokens-to-Block", "Block-to-Answer"), (heads.tokens, heads.answer), data, strict=True
    )
    for name, head, each in named:
        found = quality(head, each)
        checks.append(
            Check(
                f"{name} head tells pairs apart better than the raw cosine",
                "74.7 % for Tokens-to-Block on Adaptive 2",
                found["head"],
                found["head"] > found["cosine"],
                None,
                f"AUC on {len(each.labels_N)} test pairs, negatives half random and half near; "
                f"raw cosine {found['cosine']:.4f}; target: above it",
            )
        )
    return checks


# -- data and picture -----------------------------------------------------------------------------


def _row(cell: Cell) -> dict[str, Any]:
    interval = mean_interval(cell.caught)
    return {
        "dsr": round(cell.dsr, 4),
        "ci": _ends(interval),
        "n": interval.n,
        "benign": round(cell.share("benign"), 4),
        "inconclusive": round(cell.share("inconclusive"), 4),
        "rounds": round(float(np.mean([each.rounds for each in cell.outcomes])), 2),
        "blocks": round(float(np.mean([each.blocks for each in cell.outcomes])), 2),
        "tokens": round(float(np.mean([each.tokens for each in cell.outcomes])), 2),
    }


def _drawer(
    main: Mapping[tuple[str, float], Cell], calm: Cell, size: Size
) -> Callable[[Path], None]:
    def draw(path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.0, 4.6), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        names = list(dict.fromkeys(attack for attack, _ in main))
        for index, attack in enumerate(names):
            rates = sorted(ir for name, ir in main if name == attack)
            axes.plot(
                rates,
                [main[attack, ir].dsr for ir in rates],
                color=PALETTE[index % len(PALETTE)],
                marker=MARKERS[index % len(MARKERS)],
                markersize=5,
                linewidth=1.6,
                linestyle="-" if index < len(PALETTE) else "--",
                label=attack,
            )
        axes.axhline(calm.dsr, color="#6B6B6B", linewidth=1.0, linestyle=":", label="false alarms")
        axes.set_xscale("log")
        axes.set_xticks(list(size.rates), [f"{ir:g}" for ir in size.rates])
        axes.set_xlabel("injected / true tokens (IR)")
        axes.set_ylabel("audits that detect it")
        axes.set_title("What an audit sees, and what escapes it", loc="left", fontsize=10)
        axes.set_ylim(-0.02, 1.02)
        axes.grid(True, color="#000000", alpha=0.10, linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(path)

    return draw
