"""Count checks and altered proofs of the CoIn proof: what cheating providers answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from outlay.audit.commitment import Auditor, Commitment, Opening, Provider, bind, opening
from outlay.audit.exposure import Limits
from outlay.audit.fingerprints import Fingerprints, Partition, Vectors, payload, quantise
from outlay.audit.tree import Tree, verify
from outlay.errors import InputError

ALL = Limits(1.0, 1.0)
_WIDTH = 16  # numbers of a vector where only hashing matters


def unit(n: int, rng: np.random.Generator) -> Vectors:
    """(N, D) random unit vectors."""
    drawn = rng.normal(size=(n, _WIDTH))
    return quantise(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


@dataclass(frozen=True)
class Cheat:
    """A provider that keeps no books of what it answered, and answers what it likes."""

    prints: Fingerprints
    tree: Tree
    held: Commitment

    def open(self, index: int) -> Opening:
        """The true opening of a token."""
        return opening(self.prints, self.tree, index)


def made(m: int, block: int, seed: int, form: Any = "bound") -> Cheat:
    """A provider of `m` random tokens."""
    rng = np.random.default_rng(seed)
    part = Partition(m, block)
    prints = Fingerprints(part, unit(part.blocks, rng), unit(m, rng), form)
    return Cheat(prints, Tree(prints.leaves(), form), Provider(prints).commit())


def caught(m: int, f: int, s: int, runs: int, seed: int) -> float:
    """Share of audits that meet one of `f` leaves whose content was altered after the commitment.

    The last token, which every audit asks for, is left as it is.
    """
    provider = made(m, 16, seed)
    rng = np.random.default_rng(seed)
    hits = 0
    for run in range(runs):
        auditor = Auditor(provider.held, m, seed=seed + run, limits=ALL)
        challenge = auditor.challenge(s)
        false = set(rng.choice(m - 1, size=f, replace=False).tolist())
        openings = [
            replace(each, token_D=-each.token_D) if each.index in false else each
            for each in map(provider.open, challenge.indices)
        ]
        hits += not auditor.check(challenge, openings).accepted
    return hits / runs


def naive(m: int, extra: int, s: int, runs: int, seed: int, form: Any) -> float:
    """Share of audits that catch a claim of `extra` tokens that are repeats of the last leaf.

    The provider has the tree of m leaves, and opens what lies beyond as the last one.
    """
    provider = made(m, 4096, seed, form)
    true = provider.held
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
            beyond = replace(provider.open(min(index, m - 1)), index=index)
            if form == "paper":
                beyond = replace(beyond, path=provider.tree.prove(index))
            openings.append(beyond)
        hits += not auditor.check(challenge, openings).accepted
    return hits / runs


KINDS = ("vector", "index", "block", "path", "length", "order", "foreign", "root", "size", "field")


def mutations(n: int, seed: int) -> dict[str, tuple[int, int]]:
    """Altered proofs by kind: how many were tried, and how many were accepted."""
    rng = np.random.default_rng(seed)
    m = 97
    provider, other = made(m, 8, seed), made(m, 8, seed + 1)
    auditor = Auditor(provider.held, m, seed=seed, limits=ALL)
    counts = {kind: [0, 0] for kind in KINDS}
    for number in range(n):
        kind = KINDS[number % len(KINDS)]
        true = provider.open(int(rng.integers(m)))
        counts[kind][0] += 1
        counts[kind][1] += _accepted(kind, true, other, auditor, rng)
    return {kind: (tried, passed) for kind, (tried, passed) in counts.items()}


def _accepted(
    kind: str, made: Opening, other: Cheat, auditor: Auditor, rng: np.random.Generator
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
        index = made.index
        leaf = _payload(held, made)
        root = _flip(held.root, rng) if kind == "root" else held.root
        # Another size whose path has another shape; a like shape is what the digest is for.
        size = held.tokens if kind == "root" else int(rng.integers(1, 33))
        return verify(leaf, index, size, made.path, root)
    if kind == "vector":
        if rng.random() < 0.5:
            raw = _flip(made.block_D.tobytes(), rng)
            made = replace(made, block_D=np.frombuffer(raw, np.float32))
        else:
            raw = _flip(made.token_D.tobytes(), rng)
            made = replace(made, token_D=np.frombuffer(raw, np.float32))
    elif kind == "index":
        made = replace(made, index=int(made.index + rng.integers(1, held.tokens)))
        made = replace(made, index=made.index % held.tokens)
        made = replace(made, block=held.partition.of(made.index))
    elif kind == "block":
        made = replace(made, block=made.block ^ _bit(16, rng))
    elif kind == "path":
        path, at = list(made.path), int(rng.integers(len(made.path)))
        path[at] = _flip(path[at], rng)
        made = replace(made, path=tuple(path))
    elif kind == "length":
        cut = made.path[:-1] if rng.random() < 0.5 else (*made.path, made.path[-1])
        made = replace(made, path=cut)
    elif kind == "order":
        path = [made.path[i] for i in rng.permutation(len(made.path))]
        if tuple(path) == made.path:
            path = path[1:] + path[:1]
        made = replace(made, path=tuple(path))
    else:
        made = replace(made, path=other.tree.prove(made.index))
    return not auditor.fault(made)


def _payload(held: Commitment, made: Opening) -> bytes:
    return payload(held.form, made.index, made.block, made.block_D, made.token_D)


def _flip(raw: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(raw)
    at = int(rng.integers(8 * len(changed)))
    changed[at // 8] ^= 1 << at % 8
    return bytes(changed)


def _bit(width: int, rng: np.random.Generator) -> int:
    return 1 << int(rng.integers(width))
