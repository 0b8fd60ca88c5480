"""The runs behind the CoIn proof: count checks, mutations, audits of inflated traces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from outlay.audit.attacks import Hidden, World
from outlay.audit.baselines import BASELINES, Evidence, LengthPredictor, threshold
from outlay.audit.coin import CoIn
from outlay.audit.commitment import Auditor, Challenge, Commitment, Opening, Provider, bind
from outlay.audit.embedding import Embedder
from outlay.audit.exposure import Limits
from outlay.audit.fingerprints import Fingerprints, Partition, Vectors, quantise
from outlay.audit.heads import Heads
from outlay.audit.simulation import Outcome, Seen, decide, look
from outlay.audit.tree import verify
from outlay.errors import InputError
from outlay.testbeds.coin.calibrate import REPEATS, honest, subject, world
from outlay.testbeds.coin.traces import Trace, pieces

ALL = Limits(1.0, 1.0)
_WIDTH = 16  # numbers of a vector where only hashing matters


def unit(n: int, rng: np.random.Generator) -> Vectors:
    """(N, D) random unit vectors."""
    drawn = rng.normal(size=(n, _WIDTH))
    return quantise(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


def made(m: int, block: int, seed: int, form: Any = "bound") -> Provider:
    """A provider of `m` random tokens."""
    rng = np.random.default_rng(seed)
    part = Partition(m, block)
    provider = Provider(Fingerprints(part, unit(part.blocks, rng), unit(m, rng), form), limits=ALL)
    provider.commit()
    return provider


def answered(provider: Provider, challenge: Challenge) -> list[Opening]:
    """The provider's openings, without its books of what it answered."""
    return [provider._open(index) for index in challenge.indices]


def caught(m: int, f: int, s: int, runs: int, seed: int) -> float:
    """Share of audits that meet one of `f` leaves whose content was altered after the commitment.

    The last token, which every audit asks for, is left as it is.
    """
    provider = made(m, 16, seed)
    held = provider.commit()
    rng = np.random.default_rng(seed)
    hits = 0
    for run in range(runs):
        auditor = Auditor(held, m, seed=seed + run, limits=ALL)
        challenge = auditor.challenge(s)
        false = set(rng.choice(m - 1, size=f, replace=False).tolist())
        openings = [
            replace(each, token_D=-each.token_D) if each.index in false else each
            for each in answered(provider, challenge)
        ]
        hits += not auditor.check(challenge, openings).accepted
    return hits / runs


def naive(m: int, extra: int, s: int, runs: int, seed: int, form: Any) -> float:
    """Share of audits that catch a claim of `extra` tokens that are repeats of the last leaf.

    The provider has the tree of m leaves, and opens what lies beyond as the last one.
    """
    provider = made(m, 4096, seed, form)
    true = provider.commit()
    claim = Commitment(
        m + extra,
        1,
        4096,
        true.root,
        bind(form, true.hash, m + extra, 1, 4096, true.root),
        form,
        true.hash,
        _WIDTH,
    )
    hits = 0
    for run in range(runs):
        auditor = Auditor(claim, m + extra, seed=seed + run, limits=ALL)
        challenge = auditor.challenge(s)
        openings = []
        for index in challenge.indices:
            beyond = replace(provider._open(min(index, m - 1)), index=index)
            if form == "paper":
                beyond = replace(beyond, path=provider._tree.prove(index))
            openings.append(beyond)
        hits += not auditor.check(challenge, openings).accepted
    return hits / runs


KINDS = ("vector", "index", "block", "path", "length", "order", "foreign", "root", "size", "field")


def mutations(n: int, seed: int) -> dict[str, tuple[int, int]]:
    """Altered proofs by kind: how many were tried, and how many were accepted."""
    rng = np.random.default_rng(seed)
    m = 97
    provider, other = made(m, 8, seed), made(m, 8, seed + 1)
    held = provider.commit()
    auditor = Auditor(held, m, seed=seed, limits=ALL)
    counts = {kind: [0, 0] for kind in KINDS}
    for number in range(n):
        kind = KINDS[number % len(KINDS)]
        opening = provider._open(int(rng.integers(m)))
        counts[kind][0] += 1
        counts[kind][1] += _accepted(kind, opening, other, auditor, rng)
    return {kind: (tried, passed) for kind, (tried, passed) in counts.items()}


def _accepted(
    kind: str, opening: Opening, other: Provider, auditor: Auditor, rng: np.random.Generator
) -> bool:
    held = auditor.commitment
    if kind == "field":
        fields: dict[str, Any] = {
            "tokens": held.tokens ^ _bit(24, rng),
            "blocks": held.blocks ^ _bit(24, rng),
            "block": held.block ^ _bit(24, rng),
            "root": _flip(held.root, rng),
            "digest": _flip(held.digest, rng),
        }
        name = list(fields)[int(rng.integers(len(fields)))]
        changed: dict[str, Any] = {name: fields[name]}
        try:
            return replace(held, **changed).sound()
        except InputError:
            return False
    if kind in ("root", "size"):
        index = opening.index
        leaf = _payload(held, opening)
        root = _flip(held.root, rng) if kind == "root" else held.root
        # Another size whose path has another shape; a like shape is what the digest is for.
        size = held.tokens if kind == "root" else int(rng.integers(1, 33))
        return verify(leaf, index, size, opening.path, root)
    if kind == "vector":
        if rng.random() < 0.5:
            raw = _flip(opening.block_D.tobytes(), rng)
            opening = replace(opening, block_D=np.frombuffer(raw, np.float32))
        else:
            raw = _flip(opening.token_D.tobytes(), rng)
            opening = replace(opening, token_D=np.frombuffer(raw, np.float32))
    elif kind == "index":
        opening = replace(opening, index=int(opening.index + rng.integers(1, held.tokens)))
        opening = replace(opening, index=opening.index % held.tokens)
        opening = replace(opening, block=held.partition.of(opening.index))
    elif kind == "block":
        opening = replace(opening, block=opening.block ^ _bit(16, rng))
    elif kind == "path":
        path, at = list(opening.path), int(rng.integers(len(opening.path)))
        path[at] = _flip(path[at], rng)
        opening = replace(opening, path=tuple(path))
    elif kind == "length":
        cut = opening.path[:-1] if rng.random() < 0.5 else (*opening.path, opening.path[-1])
        opening = replace(opening, path=cut)
    elif kind == "order":
        path = [opening.path[i] for i in rng.permutation(len(opening.path))]
        if tuple(path) == opening.path:
            path = path[1:] + path[:1]
        opening = replace(opening, path=tuple(path))
    else:
        opening = replace(opening, path=other._tree.prove(opening.index))
    return not auditor._wrong(opening)


def _payload(held: Commitment, opening: Opening) -> bytes:
    from outlay.audit.fingerprints import payload

    return payload(held.form, opening.index, opening.block, opening.block_D, opening.token_D)


def _flip(raw: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(raw)
    at = int(rng.integers(8 * len(changed)))
    changed[at // 8] ^= 1 << at % 8
    return bytes(changed)


def _bit(width: int, rng: np.random.Generator) -> int:
    return 1 << int(rng.integers(width))


# -- inflated traces ------------------------------------------------------------------------------


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
) -> list[Seen]:
    """What audits see of every trace under one attack."""
    subjects = [
        subject(trace, attack, ir, seed + number, setting, embed)
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


def rivals(calibration: Sequence[Seen], delta: float) -> dict[str, tuple[Evidence, float]]:
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
        "length predictor": (predictor, threshold([predictor(each) for each in rest], delta))
    }


def filler(traces: Sequence[Trace], n: int, seed: int) -> dict[tuple[str, ...], tuple[str, ...]]:
    """`n` tokens or more by which SmolLM2-135M continues every trace, keyed by its tokens."""
    import torch

    from outlay.models import embedded

    model = embedded.load()
    reader = model.tokenizer
    heads = ["".join(trace.tokens[-96:]) for trace in traces]
    reader.padding_side = "left"
    batch = reader(heads, return_tensors="pt", padding=True)
    torch.manual_seed(seed)
    with torch.inference_mode():
        ids_BT = model.model.generate(
            **batch,
            do_sample=True,
            temperature=0.8,
            top_p=0.95,
            repetition_penalty=1.1,
            min_new_tokens=n + 16,
            max_new_tokens=n + 16,
            pad_token_id=reader.eos_token_id,
        )
    texts = reader.batch_decode(ids_BT[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return {trace.tokens: pieces(text) for trace, text in zip(traces, texts, strict=True)}


def filling(
    settings: Sequence[World], texts: dict[tuple[str, ...], tuple[str, ...]]
) -> list[World]:
    """Worlds whose attackers have these continuations; a short one is gone through again."""

    def fill(hidden: Hidden, n: int) -> tuple[str, ...]:
        text = texts[hidden.tokens]
        return (text * (-(-n // len(text))))[:n]

    return [replace(setting, fill=fill) for setting in settings]
