"""Many audits at once: what they would open is embedded together, and judged once.

The tree is left out: these audits are of providers that answer truthfully about what they committed
to, whose proofs all verify. Everything else is as in `CoIn.audit`, from the same plan.

Shapes: N cases, D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from outlay.audit.attacks import Padded
from outlay.audit.coin import CoIn, Verdict
from outlay.audit.embedding import Embedder
from outlay.audit.fingerprints import Partition, Vectors, block_texts, quantise
from outlay.audit.heads import Heads
from outlay.audit.judge import Judge, Judged
from outlay.audit.rounds import Plan, draw
from outlay.audit.verifiers import Verifier


@dataclass(frozen=True)
class Subject:
    """A reasoning that was committed to, its answer, and the seed of the audit's challenges."""

    padded: Padded
    answer_D: Vectors = field(repr=False)
    seed: int


@dataclass(frozen=True)
class Seen:
    """All that an audit may see of a subject.

    Args:
        subject: what was audited.
        plan: what was opened.
        blocks_BD: embeddings of the judged blocks, in the plan's order.
        tokens: per judged block, its opened tokens' embeddings.
        texts: of the opened tokens: an embedding gives its token away.
    """

    subject: Subject
    plan: Plan
    blocks_BD: Vectors = field(repr=False)
    tokens: tuple[Vectors, ...] = field(repr=False)
    texts: tuple[str, ...] = field(repr=False)


def look(coin: CoIn, subjects: Sequence[Subject], embed: Embedder) -> list[Seen]:
    """Draw every subject's plan and embed all that it opens."""
    plans, wanted = [], []
    for subject in subjects:
        padded = subject.padded
        partition = Partition(len(padded.tokens), coin.block)
        rng = np.random.default_rng(subject.seed)
        plan = draw(partition, rng, s=coin.s, b_1=coin.b_1, b=coin.b, q=coin.q, limits=coin.limits)
        texts = block_texts(padded.tokens, coin.block)
        plans.append((plan, texts))
        stated = padded.false_blocks(coin.block) if padded.swapped else [False] * len(texts)
        wanted += [texts[block] for block in plan.blocks if not stated[block]]
        wanted += [padded.tokens[index] for index in plan.tokens]
    if wanted:
        embed(wanted)
    found = []
    for subject, (plan, texts) in zip(subjects, plans, strict=True):
        padded = subject.padded
        false = padded.false_blocks(coin.block)
        blocks, tokens = [], []
        for each in plan.rounds:
            for block, opened in each:
                swap = padded.swapped and false[block]
                blocks.append(subject.answer_D if swap else embed([texts[block]])[0])
                tokens.append(quantise(embed([padded.tokens[i] for i in opened]), coin.quant))
        blocks_BD = quantise(np.stack(blocks), coin.quant) if blocks else np.zeros((0, 1))
        opened_texts = tuple(padded.tokens[i] for i in plan.tokens)
        found.append(
            Seen(subject, plan, np.asarray(blocks_BD, np.float32), tuple(tokens), opened_texts)
        )
    return found


def judged(seen: Seen, heads: Heads, verifier: Verifier, *, dedup: bool = True) -> list[Judged]:
    """The scores of all blocks of a plan."""
    answer_D = quantise(seen.subject.answer_D)
    judge = Judge(heads, verifier, answer_D, dedup)
    for at, block in enumerate(seen.plan.blocks):
        judge.see(block, seen.blocks_BD[at], seen.tokens[at])
    return judge.seen


def path(seen: Seen, heads: Heads, verifier: Verifier, *, dedup: bool = True) -> list[float]:
    """Evidence after every judged block of a plan."""
    judge = Judge(heads, verifier, quantise(seen.subject.answer_D), dedup)
    values = []
    for at, block in enumerate(seen.plan.blocks):
        judge.see(block, seen.blocks_BD[at], seen.tokens[at])
        values.append(judge.evidence)
    return values


@dataclass(frozen=True)
class Outcome:
    """How one audit ended, and after how many rounds, blocks and tokens."""

    verdict: Verdict
    rounds: int
    blocks: int
    tokens: int


def decide(coin: CoIn, seen: Seen, heads: Heads) -> Outcome:
    """The verdict of an audit, as `CoIn.audit` reaches it."""
    verifier = heads.verifiers[coin.verifier]
    padded = seen.subject.padded
    if padded.billed != len(padded.tokens):
        return Outcome("malicious", 0, 0, 0)
    opened: set[int] = set(seen.plan.count)
    blocks = {index // coin.block for index in opened}
    values, known = path(seen, heads, verifier, dedup=coin.dedup), 0
    for number, each in enumerate(seen.plan.rounds, 1):
        known += len(each)
        value = values[known - 1]
        lower, upper = coin.bounds(verifier, known)
        for block, tokens in each:
            opened |= set(tokens)
            blocks.add(block)
        if value >= upper or value <= lower:
            verdict: Verdict = "malicious" if value >= upper else "benign"
            return Outcome(verdict, number, len(blocks), len(opened))
    return Outcome("inconclusive", len(seen.plan.rounds), len(blocks), len(opened))
