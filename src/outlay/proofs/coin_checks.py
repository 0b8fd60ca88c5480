"""The targets of the CoIn proof, and its checks against them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from outlay.audit.baselines import Disclosed
from outlay.audit.coin import CoIn
from outlay.audit.commitment import detection
from outlay.audit.embedding import Embedder
from outlay.audit.heads import Heads
from outlay.audit.simulation import Seen
from outlay.proofs.base import Check
from outlay.proofs.coin_count import caught, naive
from outlay.proofs.coin_runs import CUT, Cell, Size, audited, rivals
from outlay.stats import Interval, mean_interval
from outlay.testbeds.coin.calibrate import REPEATS
from outlay.testbeds.coin.make import quality
from outlay.testbeds.coin.traces import Trace
from outlay.testbeds.coin.train import TrainConfig, pairs

BLOCK = 32
DELTA = 0.05

# Targets, written before the first run.
FALSE_ALARMS = 0.05
RANDOM, FOREIGN = 0.95, 0.90  # detection at IR 1
ERRORS = 2.0  # standard errors around the formula
SETTINGS = ((480, 48, 5), (480, 4, 20), (1000, 10, 40))  # tokens, false ones, opened
RISING = ("random_vocab", "foreign_text", "shuffle_own")
CLEAR, HARD = ("random_vocab", "foreign_text"), ("nearest_text", "shuffle_own")
COMPARED = ("random_vocab", "foreign_text")


# -- count ----------------------------------------------------------------------------------------


def count(size: Size, seed: int) -> list[Check]:
    """Altered leaves and false counts against the formula, in both trees."""
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


def mutated(tried: Mapping[str, tuple[int, int]]) -> Check:
    """Altered proofs: none may pass."""
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


def ends(interval: Interval) -> tuple[float, float] | None:
    """An interval as a check holds it."""
    return None if interval.lo is None or interval.hi is None else (interval.lo, interval.hi)


def content(main: Mapping[tuple[str, float], Cell], calm: Cell, size: Size) -> list[Check]:
    """False alarms, detection of every attack, and how it moves with the rate."""
    alarms = mean_interval(calm.caught)
    checks = [
        Check(
            "honest traces: false alarms",
            "visible (review of its figure 6)",
            alarms.mean,
            alarms.mean <= FALSE_ALARMS,
            ends(alarms),
            f"{REPEATS} audits of each of {alarms.n} traces; benign {calm.share('benign'):.2f}, "
            f"inconclusive {calm.share('inconclusive'):.2f}; target: at most {FALSE_ALARMS}",
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
                ends(interval),
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
            ends(mean_interval(main[best].caught)),
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
                    ends(gain),
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
                    ends(gap),
                    f"at IR 1: mean of {' and '.join(CLEAR)} minus {hard}; target: above 0",
                )
            )
    for ir in [ir for name, ir in main if name == "lm_filler"]:
        got = mean_interval(main["lm_filler", ir].caught)
        checks.append(
            Check(
                f"lm_filler at IR {ir:g}: detection",
                "a language model's padding",
                got.mean,
                None,
                ends(got),
                f"SmolLM2-135M continues {got.n} traces, which are {CUT} tokens long with it",
            )
        )
    return checks


def duplicates(
    main: Mapping[tuple[str, float], Cell], plain: Mapping[float, Cell], calm: Cell, size: Size
) -> list[Check]:
    """Copies of own blocks, with and without `dedup`."""
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
            ends(blind),
            f"false alarms {alarms:.3f}; target: at most 0.1 above them",
        ),
        Check(
            f"dedup catches copies at IR {max(size.rates):g}",
            "not in the paper",
            gap.mean,
            gap.lo is not None and gap.lo > 0,
            ends(gap),
            f"with {deduped.dsr:.2f}, without {plain[max(size.rates)].dsr:.2f}; whole aligned "
            "blocks are copied; target: above 0",
        ),
    ]


def exposure(
    good: Sequence[Seen], seen: Mapping[tuple[str, float], Sequence[Seen]], coin: CoIn
) -> list[Check]:
    """The largest shares that any audit opened."""
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


FULL = "full disclosure"


def compared(
    calibration: Sequence[Seen],
    good: Sequence[Seen],
    seen: Mapping[tuple[str, float], Sequence[Seen]],
    disclosed: Disclosed,
) -> dict[str, dict[str, float]]:
    """Per baseline, the share of audits over its threshold: honest ones, and attacks at IR 1."""
    found: dict[str, dict[str, float]] = {}
    for name, (evidence, limit) in rivals(calibration, disclosed, DELTA).items():
        row = {"false alarms": float(np.mean([evidence(each) > limit for each in good[::REPEATS]]))}
        for (attack, ir), views in seen.items():
            if ir == 1.0:
                row[attack] = float(np.mean([evidence(each) > limit for each in views]))
        found[name] = row
    return found


def against(
    main: Mapping[tuple[str, float], Cell], compared: Mapping[str, Mapping[str, float]]
) -> list[Check]:
    """CoIn beside its baselines."""
    used = [name for name in COMPARED if (name, 1.0) in main]
    ours = float(np.mean([main[name, 1.0].dsr for name in used]))
    content = {k: row for k, row in compared.items() if k not in ("length predictor", FULL)}
    best = max(content, key=lambda k: np.mean([content[k][name] for name in used]))
    theirs = float(np.mean([content[best][name] for name in used]))
    length, full = compared["length predictor"], compared[FULL]
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
            f"false alarms {length['false alarms']:.3f}; padded traces are as long as honest ones",
        ),
        Check(
            "full disclosure: detection at IR 1",
            "upper bound",
            float(np.mean([full[name] for name in used])),
            None,
            None,
            f"false alarms {full['false alarms']:.3f}; the same heads judge every block and token; "
            f"audits within the limits: {ours:.3f}",
        ),
    ]


def placed(cells: Mapping[tuple[str, str], Cell]) -> list[Check]:
    """Detection by place at IR 1: reported, and no target was set."""
    checks = []
    for attack in dict.fromkeys(name for name, _ in cells):
        mine = {place: cell for (name, place), cell in cells.items() if name == attack}
        low = min(mine, key=lambda place: mine[place].dsr)
        said = ", ".join(f"{place}: {cell.dsr:.2f}" for place, cell in mine.items())
        checks.append(
            Check(
                f"{attack} at IR 1: least detection over where it is put",
                "the paper does not say where padding goes",
                mine[low].dsr,
                None,
                ends(mean_interval(mine[low].caught)),
                said,
            )
        )
    return checks


def changed(
    checks: Sequence[Check],
    coin: CoIn,
    heads: Heads,
    good: Sequence[Seen],
    seen: Mapping[tuple[str, float], Sequence[Seen]],
) -> list[Check]:
    """Two changes for every target of content that was missed: reported, without a target."""
    changes = {
        "delta_fp=0.1": replace(coin, delta_fp=0.1),
        "delta_fn=0.01": replace(coin, delta_fn=0.01),
    }
    found = []
    for check in checks:
        attack, _, rest = check.claim.partition(": ")
        if check.holds is not False or attack not in {*RISING, "honest traces"}:
            continue
        for name, other in changes.items():
            calm = audited(other, good, heads, REPEATS)
            if rest == "false alarms":
                got = mean_interval(calm.caught)
            else:
                rates = sorted(ir for known, ir in seen if known == attack)
                cells = {ir: audited(other, seen[attack, ir], heads) for ir in rates}
                high, low = cells[rates[-1]].caught, cells[rates[0]].caught
                rises = rest == "detection rises with IR"
                got = mean_interval(high - low if rises else cells[1.0].caught)
            found.append(
                Check(
                    f"{check.claim}, with {name}",
                    check.paper,
                    got.mean,
                    None,
                    ends(got),
                    f"a change after the target was missed; false alarms {calm.dsr:.3f}",
                )
            )
    return found


def heads_apart(heads: Heads, traces: Sequence[Trace], embed: Embedder, seed: int) -> list[Check]:
    """The trained heads beside the raw cosine."""
    checks = []
    data = pairs(traces, embed, TrainConfig(block=BLOCK, seed=seed + 7, noise=0))
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
