"""CoIn: audit billed hidden tokens without seeing their text.

"CoIn: Counting the Invisible Reasoning Tokens in Commercial Opaque LLM APIs", arXiv 2505.13778.
The provider commits to a fingerprint of every hidden token; the auditor opens a small random part
and checks the count by proofs of inclusion and the content by two matching heads, in rounds.

Where it differs from the paper: a tree that binds the count (`tree="bound"`; the paper's own form
stays as "paper"), vectors on the float16 grid, bounds of the decision calibrated on whole honest
audits, duplicates counted as bad, and `inconclusive` at the limits of exposure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np

from outlay.audit.commitment import (
    Auditor,
    Challenge,
    Commitment,
    Opening,
    Provider,
    detection,
)
from outlay.audit.embedding import Embedder, embedder
from outlay.audit.exposure import Limits
from outlay.audit.fingerprints import Quant, fingerprint, quantise
from outlay.audit.heads import Heads
from outlay.audit.judge import Judge, Judged
from outlay.audit.rounds import Plan, draw
from outlay.audit.tree import Form, check_form, hasher
from outlay.audit.verifiers import Kind, Verifier, wald
from outlay.errors import InputError, OutlayError

Verdict = Literal["benign", "malicious", "inconclusive"]
Ask = Callable[[Challenge], Sequence[Opening]]
"""Sends a challenge to the provider."""
SAID: dict[Verdict, str] = {
    "benign": "no inflation detected",
    "malicious": "the bill does not hold",
    "inconclusive": "not enough could be seen to decide",
}


@dataclass(frozen=True)
class Report:
    """What an audit found. It never says "honest": only what was not detected, at which level.

    Args:
        verdict: "benign" is "no inflation detected at the level of `delta_fn`".
        reasons: why, one line each.
        billed: hidden tokens on the bill.
        rounds: that were run.
        evidence: log-odds of inflation at the end, None before any block was judged.
        p_value: of the number of bad blocks, were blocks independent.
        blocks: what was judged.
        tokens_opened, blocks_opened: exposure; each opened token is disclosed.
        token_share, block_share: of all.
        hashes: that the auditor computed.
        bytes: of the openings.
        noticed: chance that the opened leaves meet one of a tenth false ones.
        warnings: what weakens this audit.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    billed: int
    rounds: int = 0
    evidence: float | None = None
    p_value: float | None = None
    blocks: tuple[Judged, ...] = ()
    tokens_opened: int = 0
    blocks_opened: int = 0
    token_share: float = 0.0
    block_share: float = 0.0
    hashes: int = 0
    bytes: int = 0
    noticed: float = 0.0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class CoIn:
    """Commit to hidden tokens, and audit them ("CoIn", arXiv 2505.13778).

    Args:
        block: S, tokens per block.
        tree: "bound" binds the count; "paper" is the paper's padded tree, which does not.
        hash: sha256, sha384, sha512, sha3_256 or blake2b.
        quant: grid of the vectors; "f16" or "f32".
        s: uniformly drawn tokens of the count check.
        b_1: blocks judged in the first round.
        b: blocks judged in every further round.
        q: tokens opened per judged block.
        heads: folder of trained heads; "" is those that come with the package for the block size.
        verifier: "deepset", "rnn" or "rule".
        hi: probability of benign from which the verdict is benign; None is calibrated.
        lo: probability of benign up to which the verdict is malicious; None is calibrated.
        max_block_exposure: largest share of blocks that may be opened.
        max_token_exposure: largest share of tokens that may be opened.
        delta_fp: false alarms allowed.
        delta_fn: misses allowed before the verdict may be benign.
        embedder: what provider and auditor agreed on.
        seed: of the challenges, for repeatable runs; None draws from the system.
        dedup: whether opened blocks with the same embedding (cosine > .999) count as bad.

    Raises:
        InputError: for a knob out of range.
    """

    block: int = 256
    tree: Form = "bound"
    hash: str = "sha256"
    quant: Quant = "f16"
    s: int = 5
    b_1: int = 5
    b: int = 2
    q: int = 3
    heads: str = ""
    verifier: Kind = "deepset"
    hi: float | None = None
    lo: float | None = None
    max_block_exposure: float = 0.4
    max_token_exposure: float = 0.04
    delta_fp: float = 0.05
    delta_fn: float = 0.05
    embedder: str = "minilm"
    seed: int | None = None
    dedup: bool = True

    def __post_init__(self) -> None:
        check_form(self.tree)
        hasher(self.hash)
        for name in ("block", "s", "b_1", "b", "q"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}; must be at least 1")
        if self.quant not in get_args(Quant):
            raise InputError(f"quant={self.quant!r}; choose {', '.join(get_args(Quant))}")
        if self.verifier not in get_args(Kind):
            raise InputError(f"verifier={self.verifier!r}; choose {', '.join(get_args(Kind))}")
        for name in ("hi", "lo"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise InputError(f"{name}={value}; a probability between 0 and 1, or None")
        if self.hi is not None and self.lo is not None and not self.lo < self.hi:
            raise InputError(f"lo={self.lo}, hi={self.hi}; lo must lie below hi")
        if self.seed is not None and self.seed < 0:
            raise InputError(f"seed={self.seed}; must be 0 or more, or None")
        embedder(self.embedder)
        wald(self.delta_fp, self.delta_fn)
        _ = self.limits

    @property
    def limits(self) -> Limits:
        """Of exposure."""
        return Limits(self.max_token_exposure, self.max_block_exposure)

    def commit(self, texts: Sequence[str], embed: Embedder | None = None) -> Provider:
        """The provider's side for hidden tokens with these texts.

        Raises:
            InputError: without tokens.
        """
        prints = fingerprint(
            texts,
            embed or embedder(self.embedder),
            block=self.block,
            form=self.tree,
            quant=self.quant,
        )
        return Provider(prints, self.hash, self.limits)

    def load_heads(self) -> Heads:
        """The trained heads.

        Raises:
            InputError: if none come with the package for this block size.
            ModelError: if the folder that was given holds none.
        """
        return _heads(self.heads, self.block)

    def bounds(self, verifier: Verifier, blocks: int) -> tuple[float, float]:
        """Evidence from so many blocks at which an audit ends: benign at most, malicious at least.

        Args:
            verifier: whose evidence it is.
            blocks: that were judged.
        """
        lower, upper = verifier.bounds(self.delta_fp, self.delta_fn, blocks)
        if self.hi is not None:
            lower = -float(np.log(self.hi / (1 - self.hi)))
        if self.lo is not None:
            upper = -float(np.log(self.lo / (1 - self.lo)))
        return min(lower, float(np.nextafter(upper, -np.inf))), upper

    def plan(self, commitment: Commitment) -> Plan:
        """What an audit of this commitment opens at most."""
        rng = np.random.default_rng(self.seed)
        return draw(
            commitment.partition,
            rng,
            s=self.s,
            b_1=self.b_1,
            b=self.b,
            q=self.q,
            limits=self.limits,
        )

    def audit(
        self,
        commitment: Commitment,
        billed: int,
        answer: str,
        ask: Ask,
        *,
        embed: Embedder | None = None,
        plan: Plan | None = None,
    ) -> Report:
        """Audit one bill.

        Args:
            commitment: that came with the bill.
            billed: hidden tokens on the bill.
            answer: what the user saw.
            ask: sends a challenge to the provider; what it raises counts as a refusal.
            embed: the agreed embedder, to share its memory.
            plan: of the openings, where it was drawn before: after the commitment, by the auditor.

        Raises:
            InputError: if bill and commitment cannot be audited at all.
        """
        return _Audit(self, commitment, billed, answer, ask, embed).run(plan)


@lru_cache(maxsize=4)
def _heads(folder: str, block: int) -> Heads:
    return Heads.load(folder or None, block=block)


class _Audit:
    """One audit, from the challenge to the report."""

    def __init__(
        self,
        coin: CoIn,
        commitment: Commitment,
        billed: int,
        answer: str,
        ask: Ask,
        embed: Embedder | None,
    ) -> None:
        self.coin, self.commitment, self.billed = coin, commitment, billed
        self.answer, self.ask, self.embed = answer, ask, embed
        self.heads = coin.load_heads()
        self.opened: dict[int, Opening] = {}
        self.hashes = self.bytes = self.rounds = 0
        self.judge: Judge | None = None

    def run(self, plan: Plan | None) -> Report:
        held = self.commitment
        if self.billed < 1:
            raise InputError(f"{self.billed} hidden tokens were billed; there is nothing to audit")
        if held.tokens != self.billed:
            said = f"{self.billed} tokens were billed and {held.tokens} committed to"
            return self._report("malicious", said)
        if not held.sound():
            return self._report("malicious", "the commitment's digest is not that of its fields")
        if held.dimension != self.heads.dimension:
            raise InputError(
                f"embeddings of {held.dimension} numbers; the heads read {self.heads.dimension}"
            )
        self.auditor = Auditor(held, self.billed, seed=self.coin.seed, limits=self.coin.limits)
        plan = plan or self.coin.plan(held)
        if not plan.count:
            return self._report(
                "inconclusive", "the reasoning is too short for the limits of exposure"
            )
        if failures := self._open(plan.count):
            return self._report("malicious", *failures)
        if not self.answer.strip():
            return self._report("inconclusive", "the count holds; without an answer no content")
        return self._rounds(plan)

    def _rounds(self, plan: Plan) -> Report:
        embed = self.embed or embedder(self.coin.embedder)
        answer_D = quantise(embed.whole(self.answer), self.coin.quant)
        if self.coin.verifier not in self.heads.verifiers:
            raise InputError(f"these heads come without a verifier {self.coin.verifier}")
        verifier = self.heads.verifiers[self.coin.verifier]
        judge = self.judge = Judge(self.heads, verifier, answer_D, self.coin.dedup)
        for number, blocks in enumerate(plan.rounds, 1):
            self.rounds = number
            wanted = [i for _, tokens in blocks for i in tokens if i not in self.opened]
            if wanted and (failures := self._open(sorted(wanted))):
                return self._report("malicious", *failures)
            for block, tokens in blocks:
                block_D = self.opened[tokens[0]].block_D
                judge.see(block, block_D, np.stack([self.opened[i].token_D for i in tokens]))
            lower, upper = self.coin.bounds(verifier, len(judge.seen))
            if judge.evidence >= upper:
                bad = sum(each.bad for each in judge.seen)
                return self._report(
                    "malicious",
                    f"the content of opened blocks does not fit ({bad} of {len(judge.seen)} bad)",
                )
            if judge.evidence <= lower:
                return self._report("benign", "the content of opened blocks fits")
        return self._report("inconclusive", "the limits of exposure were reached")

    def _open(self, indices: Sequence[int]) -> tuple[str, ...]:
        challenge = self.auditor.ask(indices)
        try:
            openings = list(self.ask(challenge))
        except OutlayError as error:
            return (f"the provider did not answer a challenge: {error}",)
        checked = self.auditor.check(challenge, openings)
        self.hashes += checked.hashes
        for opening in checked.openings:
            self.opened[opening.index] = opening
        self.bytes += sum(map(_size, openings))
        return checked.failures

    def _report(self, verdict: Verdict, *reasons: str) -> Report:
        held, judge = self.commitment, self.judge
        blocks = {opening.block for opening in self.opened.values()}
        seen = bool(judge and judge.seen)
        return Report(
            verdict,
            reasons,
            self.billed,
            self.rounds,
            judge.evidence if judge and seen else None,
            judge.p_value if judge and seen else None,
            tuple(judge.seen) if judge else (),
            len(self.opened),
            len(blocks),
            len(self.opened) / held.tokens,
            len(blocks) / held.blocks,
            self.hashes,
            self.bytes,
            detection(held.tokens, -(-held.tokens // 10), min(self.coin.s, held.tokens)),
            tuple(_warnings(self.coin, held, self.heads.about)),
        )


def _size(opening: Opening) -> int:
    return 16 + opening.block_D.nbytes + opening.token_D.nbytes + sum(map(len, opening.path))


def _warnings(coin: CoIn, held: Commitment, about: Any) -> list[str]:
    found = []
    if held.form == "paper":
        found.append(
            "the paper's tree does not bind the count: repeating the last leaf up to the next "
            'power of two changes nothing; ask for tree="bound"'
        )
    if held.block != about.get("block", held.block):
        found.append(
            f"the heads were calibrated on blocks of {about['block']} tokens, not {held.block}: "
            "rates of error are not known"
        )
    if weakest := about.get("detectable"):
        found.append(f"smallest inflation that calibration could detect: {weakest}")
    if coin.hi is not None or coin.lo is not None:
        found.append("hi and lo were set by hand: rates of error are not known")
    return found
