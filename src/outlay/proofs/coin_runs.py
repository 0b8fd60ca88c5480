"""The audits of inflated traces behind the CoIn proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from outlay.audit.attacks import Hidden, Place, World
from outlay.audit.baselines import BASELINES, Disclosed, Evidence, LengthPredictor, threshold
from outlay.audit.coin import CoIn
from outlay.audit.embedding import Embedder
from outlay.audit.heads import Heads
from outlay.audit.simulation import Outcome, Seen, decide, look
from outlay.testbeds.coin.calibrate import REPEATS, hidden, honest, subject, world
from outlay.testbeds.coin.traces import SOURCES, Source, Trace, pieces


@dataclass(frozen=True)
class Size:
    """How much is run.

    Args:
        honest: honest test traces per source.
        traces: of these, how many are inflated.
        held: calibration traces per source, for thresholds of baselines.
        audits: of one setting of the count check.
        mutated: proofs.
        rates: of inflation.
        attacks: names.
        filled: traces per source that a language model continues; 0 for none.
        sources: of traces.
    """

    honest: int
    traces: int
    held: int
    audits: int
    mutated: int
    rates: tuple[float, ...]
    attacks: tuple[str, ...]
    filled: int
    sources: tuple[Source, ...] = SOURCES


@dataclass(frozen=True)
class Cell:
    """One attack at one rate: N audits in the order of the traces."""

    outcomes: list[Outcome] = field(repr=False)
    repeats: int = 1

    @property
    def caught(self) -> npt.NDArray[np.float64]:
        """(N,) share of a trace's audits that end as malicious."""
        flags = np.array([float(each.verdict == "malicious") for each in self.outcomes])
        return flags.reshape(-1, self.repeats).mean(axis=1)

    def share(self, verdict: str) -> float:
        """Share of audits with a verdict."""
        return float(np.mean([each.verdict == verdict for each in self.outcomes]))

    @property
    def dsr(self) -> float:
        """Share of audits that end as malicious."""
        return float(self.caught.mean())


def inflated(
    traces: Sequence[Trace],
    attack: str,
    ir: float,
    seed: int,
    settings: Sequence[World],
    embed: Embedder,
    coin: CoIn,
    place: Place = "end",
) -> list[Seen]:
    """What audits see of every trace under one attack."""
    subjects = [
        subject(trace, attack, ir, seed + number, setting, embed, place)
        for number, (trace, setting) in enumerate(zip(traces, settings, strict=True))
    ]
    return look(coin, subjects, embed)


def honestly(traces: Sequence[Trace], seed: int, embed: Embedder, coin: CoIn) -> list[Seen]:
    """What audits see of honest traces, `REPEATS` a trace."""
    return look(coin, honest(traces, embed, seed, coin.block), embed)


def audited(coin: CoIn, seen: Sequence[Seen], heads: Heads, repeats: int = 1) -> Cell:
    """The verdicts."""
    return Cell([decide(coin, each, heads) for each in seen], repeats)


def worlds(traces: Sequence[Trace], embed: Embedder, block: int) -> list[World]:
    """Every trace's attacker."""
    return [world(traces, block, embed, trace) for trace in traces]


def rivals(
    calibration: Sequence[Seen], disclosed: Disclosed, delta: float
) -> dict[str, tuple[Evidence, float]]:
    """Baselines with thresholds set on honest calibration audits."""
    first = calibration[::REPEATS]
    predictor = LengthPredictor.fit(
        np.stack([each.subject.answer_D for each in first[::2]]),
        [each.subject.padded.billed for each in first[::2]],
    )
    rest = [each for number, each in enumerate(calibration) if number // REPEATS % 2]
    found = {
        name: (evidence, threshold([evidence(each) for each in calibration], delta))
        for name, evidence in BASELINES.items()
    }
    return found | {
        "length predictor": (predictor, threshold([predictor(each) for each in rest], delta)),
        "full disclosure": (disclosed, threshold([disclosed(each) for each in first], delta)),
    }


CUT = 720  # tokens of an inflated trace that a language model continues


def short(traces: Sequence[Trace]) -> list[Trace]:
    """Traces cut so that a small model can continue them in little time."""
    return [replace(trace, tokens=trace.tokens[:CUT]) for trace in traces]


def filler(traces: Sequence[Trace], ir: float, seed: int) -> dict[tuple[str, ...], tuple[str, ...]]:
    """How SmolLM2-135M continues the own part of every trace, keyed by that part."""
    import torch

    from outlay.models import embedded

    model = embedded.load()
    reader = model.tokenizer
    own = [hidden(trace, ir).tokens for trace in traces]
    reader.padding_side = "left"
    batch = reader(["".join(each[-96:]) for each in own], return_tensors="pt", padding=True)
    n = round(max(len(each) for each in own) * ir) + 16
    torch.manual_seed(seed)
    with torch.inference_mode():
        ids_BT = model.model.generate(
            **batch,
            do_sample=True,
            temperature=0.8,
            top_p=0.95,
            repetition_penalty=1.1,
            min_new_tokens=n,
            max_new_tokens=n,
            pad_token_id=reader.eos_token_id,
        )
    texts = reader.batch_decode(ids_BT[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return {each: pieces(text) for each, text in zip(own, texts, strict=True)}


def filling(
    settings: Sequence[World], texts: dict[tuple[str, ...], tuple[str, ...]]
) -> list[World]:
    """Worlds whose attackers have these continuations; a short one is gone through again."""

    def fill(hidden: Hidden, n: int) -> tuple[str, ...]:
        text = texts[hidden.tokens]
        return (text * (-(-n // len(text))))[:n]

    return [replace(setting, fill=fill) for setting in settings]
