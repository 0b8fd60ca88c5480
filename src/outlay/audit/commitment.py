"""Commit, prove, verify: the quantity half of CoIn, as a protocol that cannot be run backwards.

The provider commits before it knows what will be asked. The auditor draws its challenge with its
own randomness after it holds the commitment, and each challenge is good once.
"""

from __future__ import annotations

import hmac
import math
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from outlay.audit.exposure import Exposure, Limits
from outlay.audit.fingerprints import NORM, Fingerprints, Partition, Vectors, payload
from outlay.audit.tree import Form, Tree, check_form, hasher, verify
from outlay.errors import InputError

_DOMAIN = b"coin-v1"


@dataclass(frozen=True)
class Commitment:
    """What the auditor gets with the bill.

    Args:
        tokens, blocks, block: m, alpha and S.
        root: of the tree.
        digest: binds all of these in the bound form; the root again in the paper's.
        form: of the tree.
        hash: its name.
        dimension: of an embedding.

    Raises:
        InputError: for sizes that do not fit each other.
    """

    tokens: int
    blocks: int
    block: int
    root: bytes
    digest: bytes
    form: Form = "bound"
    hash: str = "sha256"
    dimension: int = 384

    def __post_init__(self) -> None:
        check_form(self.form)
        width = len(hasher(self.hash)(b""))
        partition = Partition(self.tokens, self.block)
        if self.blocks != partition.blocks:
            raise InputError(
                f"{self.blocks} blocks of {self.block} tokens for {self.tokens} tokens; "
                f"there must be {partition.blocks}"
            )
        if len(self.root) != width or len(self.digest) != width:
            raise InputError(f"a root and a digest of {self.hash} have {width} bytes")
        if not 1 <= self.dimension <= 65_536:
            raise InputError(f"dimension={self.dimension}; between 1 and 65536")

    @property
    def partition(self) -> Partition:
        """Tokens and blocks."""
        return Partition(self.tokens, self.block)

    def sound(self) -> bool:
        """Whether the digest is that of the other fields."""
        wanted = bind(self.form, self.hash, self.tokens, self.blocks, self.block, self.root)
        return hmac.compare_digest(wanted, self.digest)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        row = {name: getattr(self, name) for name in ("tokens", "blocks", "block", "form", "hash")}
        hexed = {"root": self.root.hex(), "digest": self.digest.hex()}
        return {**row, **hexed, "dimension": self.dimension}

    @classmethod
    def from_dict(cls, data: Any) -> Commitment:
        """The inverse of `to_dict`.

        Raises:
            InputError: for anything else.
        """
        try:
            whole = ("tokens", "blocks", "block", "dimension")
            if any(type(data[name]) is not int for name in whole):
                raise InputError("tokens, blocks, block and dimension must be whole numbers")
            return cls(
                **{name: data[name] for name in whole},
                root=bytes.fromhex(data["root"]),
                digest=bytes.fromhex(data["digest"]),
                form=data["form"],
                hash=data["hash"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"no commitment can be read ({error})") from error


def bind(form: Form, hash: str, tokens: int, blocks: int, block: int, root: bytes) -> bytes:
    """The digest of a commitment."""
    if form == "paper":
        return root
    return hasher(hash)(_DOMAIN + struct.pack(">QQQ", tokens, blocks, block) + root)


@dataclass(frozen=True)
class Opening:
    """One opened leaf: its vectors and the path to the root."""

    index: int
    block: int
    block_D: Vectors = field(repr=False)
    token_D: Vectors = field(repr=False)
    path: tuple[bytes, ...] = field(repr=False)


def opening(prints: Fingerprints, tree: Tree, index: int) -> Opening:
    """The opening of a token, whatever its provider may still say about limits."""
    block = prints.partition.of(index)
    return Opening(
        index, block, prints.blocks_AD[block], prints.tokens_MD[index], tree.prove(index)
    )


@dataclass
class Provider:
    """The provider's side: holds fingerprints, commits, opens what is asked, up to limits.

    Args:
        fingerprints: of one reasoning.
        hash: of the tree.
        limits: shares of tokens and blocks that may be opened, over all challenges.
    """

    fingerprints: Fingerprints
    hash: str = "sha256"
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        prints = self.fingerprints
        self._tree = Tree(prints.leaves(), prints.form, self.hash)
        self._answered: set[bytes] = set()
        self._committed: Commitment | None = None
        self.exposure = Exposure(prints.partition, self.limits)

    def commit(self) -> Commitment:
        """The commitment, for the bill: the same one however often it is asked for."""
        if self._committed is None:
            self._committed = self._commit()
        return self._committed

    def _commit(self) -> Commitment:
        prints, part = self.fingerprints, self.fingerprints.partition
        root = self._tree.root
        digest = bind(prints.form, self.hash, part.tokens, part.blocks, part.block, root)
        return Commitment(
            part.tokens,
            part.blocks,
            part.block,
            root,
            digest,
            prints.form,
            self.hash,
            prints.tokens_MD.shape[1],
        )

    def prove(self, challenge: Challenge) -> list[Opening]:
        """Open what is asked.

        Raises:
            InputError: before `commit`, for a challenge to another commitment, one that was
                answered before, indices that have no token, or more than the limits allow.
        """
        if self._committed is None:
            raise InputError("nothing was committed to yet; commit before you answer a challenge")
        if challenge.digest != self._committed.digest:
            raise InputError("the challenge is for another commitment")
        if challenge.nonce in self._answered:
            raise InputError("this challenge was answered before; an auditor draws a new one")
        last = self.fingerprints.partition.tokens - 1
        for index in challenge.indices:
            if not 0 <= index <= last:
                raise InputError(f"index {index}; tokens are numbered 0 to {last}")
        self.exposure.open(challenge.indices)
        self._answered.add(challenge.nonce)
        return [opening(self.fingerprints, self._tree, index) for index in challenge.indices]


@dataclass(frozen=True)
class Challenge:
    """Indices to open, for one commitment, once."""

    digest: bytes
    nonce: bytes
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Checked:
    """What the openings of a challenge showed.

    Args:
        openings: those that verify.
        failures: why others do not, one line each; any is proof of a false commitment or answer.
        hashes: computed by the auditor.
    """

    openings: tuple[Opening, ...]
    failures: tuple[str, ...]
    hashes: int

    @property
    def accepted(self) -> bool:
        """True if everything that was asked was opened and verifies."""
        return not self.failures


class Auditor:
    """The auditor's side of one audit: challenges only what it holds a commitment to.

    Args:
        commitment: from the bill.
        billed: hidden tokens on the bill.
        seed: of its challenges, for repeatable runs; None draws from the system.
        limits: shares of tokens and blocks that it may ask for.

    Raises:
        InputError: if the commitment is not sound or the bill names another number of tokens.
    """

    def __init__(
        self,
        commitment: Commitment,
        billed: int,
        *,
        seed: int | None = None,
        limits: Limits | None = None,
    ) -> None:
        if not commitment.sound():
            raise InputError("the commitment's digest is not that of its fields; it is not valid")
        if commitment.tokens != billed:
            raise InputError(f"{billed} tokens were billed and {commitment.tokens} committed to")
        self.commitment = commitment
        self._rng = np.random.default_rng(seed if seed is not None else secrets.randbits(128))
        self._open: dict[bytes, Challenge] = {}
        self._stated: dict[int, bytes] = {}
        self.exposure = Exposure(commitment.partition, limits or Limits())

    @property
    def asked(self) -> set[int]:
        """Tokens that were asked for so far."""
        return self.exposure.tokens

    def challenge(self, s: int) -> Challenge:
        """Draw `s` tokens that were not asked for yet, the last one among them at first.

        Raises:
            InputError: for fewer than one, or more than are left.
        """
        total = self.commitment.tokens
        left = total - len(self.asked)
        if not 1 <= s <= left:
            raise InputError(f"s={s}; between 1 and the {left} tokens that were not asked for yet")
        first = [] if total - 1 in self.asked else [total - 1]
        rest = np.setdiff1d(np.arange(total), [*self.asked, *first])
        drawn = self._rng.choice(rest, size=s - len(first), replace=False)
        return self.ask(sorted([*first, *(int(index) for index in drawn)]))

    def ask(self, indices: Sequence[int]) -> Challenge:
        """A challenge for these tokens.

        Raises:
            InputError: for tokens that do not exist or were asked for before, or more than the
                limits allow.
        """
        wanted = tuple(indices)
        if not wanted or len(set(wanted)) < len(wanted) or self.asked & set(wanted):
            raise InputError("a challenge asks for tokens that were not asked for yet, each once")
        if min(wanted) < 0 or max(wanted) >= self.commitment.tokens:
            raise InputError(f"tokens are numbered 0 to {self.commitment.tokens - 1}")
        self.exposure.open(wanted)
        made = Challenge(self.commitment.digest, secrets.token_bytes(16), wanted)
        self._open[made.nonce] = made
        return made

    def check(self, challenge: Challenge, openings: Sequence[Opening]) -> Checked:
        """Verify the answer to a challenge.

        Raises:
            InputError: for a challenge that is not ours or was checked before.
        """
        if self._open.pop(challenge.nonce, None) != challenge:
            raise InputError("this challenge is not open; draw one and check its answer once")
        failures: list[str] = []
        good: list[Opening] = []
        answered = {each.index: each for each in openings}
        if [each.index for each in openings] != list(challenge.indices):
            failures.append("the openings are not those that were asked for, in their order")
        for index in challenge.indices:
            found = answered.get(index)
            if found is None:
                failures.append(f"token {index} was not opened")
                continue
            if reason := self.fault(found):
                failures.append(f"token {index}: {reason}")
                continue
            stated = self._stated.setdefault(found.block, found.block_D.tobytes())
            if stated != found.block_D.tobytes():
                failures.append(f"token {index}: block {found.block} has two embeddings")
                continue
            good.append(found)
        hashes = len(challenge.indices) * (1 + math.ceil(math.log2(max(2, self.commitment.tokens))))
        return Checked(tuple(good), tuple(failures), hashes)

    def fault(self, opening: Opening) -> str:
        """Why an opening is no leaf of the commitment; "" for one that is."""
        held = self.commitment
        if opening.block != held.partition.of(opening.index):
            return f"it lies in block {held.partition.of(opening.index)}, not {opening.block}"
        for name, vector in (("block", opening.block_D), ("token", opening.token_D)):
            if vector.shape != (held.dimension,) or not np.isfinite(vector).all():
                return f"its {name} embedding is no vector of {held.dimension} numbers"
            if abs(float(np.linalg.norm(vector.astype(np.float64))) - 1) > NORM:
                return f"its {name} embedding has not the length 1"
        leaf = payload(held.form, opening.index, opening.block, opening.block_D, opening.token_D)
        fits = verify(
            leaf,
            opening.index,
            held.tokens,
            opening.path,
            held.root,
            form=held.form,
            hash=held.hash,
        )
        return "" if fits else "its path does not lead to the root"


def detection(tokens: int, false: int, s: int) -> float:
    """Probability that `s` tokens drawn without replacement meet one of `false` false ones.

    Raises:
        InputError: for numbers that cannot be.
    """
    if not (0 <= false <= tokens and 0 <= s <= tokens):
        raise InputError(f"m={tokens}, f={false}, s={s}; f and s lie between 0 and m")
    if s > tokens - false:
        return 1.0
    missed = math.lgamma(tokens - false + 1) - math.lgamma(tokens - false - s + 1)
    missed -= math.lgamma(tokens + 1) - math.lgamma(tokens - s + 1)
    return -math.expm1(missed)
