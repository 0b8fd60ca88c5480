"""Tokens of a tree whose keys and values are not computed yet, and computing them, each once.

Forced text is pending until something is built on it, and so is the last token that was sampled.

Shapes: B rows, T time, C hidden size, N branches that end, V vocabulary.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from outlay.models import trail as trails
from outlay.models.base import Branch
from outlay.models.kv import columns, segment

if TYPE_CHECKING:
    from outlay.models.local import LocalModel


def most_flops(model: LocalModel, branches: Sequence[Branch]) -> float:
    """At most what `materialise` will spend: every pending token as if it came last."""
    pending = {b.id: _pending(b) for leaf in branches for b in leaf.lineage()}
    stale = sum(_stale(leaf) for leaf in branches)
    return (sum(pending.values()) + stale) * model.flops(1, _longest(branches))


@torch.inference_mode()
def materialise(model: LocalModel, branches: Sequence[Branch]) -> float:
    """Compute the KV of all pending tokens on the branches' paths; the FLOPs spent."""
    leaves = list({b.id: b for b in branches}.values())
    paths = {leaf.id: leaf.lineage() for leaf in leaves}
    uses: dict[str, int] = {}
    for path in paths.values():
        for branch in path:
            if _pending(branch):
                uses[branch.id] = uses.get(branch.id, 0) + 1
    shared = {b.id: b for path in paths.values() for b in path if uses.get(b.id, 0) > 1}
    spent = 0.0
    if shared:  # first what several paths need, so that nothing is computed twice
        spent += materialise(model, _deepest(list(shared.values())))
    todo = [leaf for leaf in leaves if _pending(leaf) or _stale(leaf)]
    room = max((len(p) for p in map(_pending_ids, todo)), default=0)
    step = max(1, model.max_batch_tokens // (room + _longest(todo) or 1))
    for at in range(0, len(todo), step):
        spent += _fill(model, todo[at : at + step])
    return spent


def _fill(model: LocalModel, leaves: Sequence[Branch]) -> float:
    paths = [leaf.lineage() for leaf in leaves]
    fresh = [_pending_ids(leaf) for leaf in leaves]
    width = max(map(len, fresh))
    ids_BT = torch.zeros((len(leaves), width), dtype=torch.long)
    for i, row in enumerate(fresh):
        ids_BT[i, : len(row)] = torch.tensor(row)
    cache, past = model.gather(paths, width)
    widest = max(past)
    model.computed_tokens += sum(map(len, fresh))
    missing = [[_pending(branch) for branch in path] for path in paths]
    with _absorbing(model, paths, missing, width):
        hidden_BTC = model.network.behind(ids_BT.to(model.device), cache, past)
    # What comes next is kept for every branch that ends here, not for the leaves alone: the
    # branches on the way may be extended later, and must not be fed again for it.
    ends = [_ends(path, fed) for path, fed in zip(paths, missing, strict=True)]
    rows = [i for i, each in enumerate(ends) for _ in each]
    places = [place for each in ends for _, place in each]
    logits_NV = model.network.head(hidden_BTC[rows, places])
    for logits_V, (branch, _) in zip(logits_NV, itertools.chain(*ends), strict=True):
        segment(branch).next_logits_V = logits_V.clone()
    for i, (path, each) in enumerate(zip(paths, missing, strict=True)):
        at = widest
        for branch, fed in zip(path, each, strict=True):
            if fed:
                segment(branch).append(*columns(cache, i, at, at + fed))
                at += fed
    return sum(
        model.flops(len(f), p, logits_rows=len(e))
        for f, p, e in zip(fresh, past, ends, strict=True)
    )


@contextlib.contextmanager
def _absorbing(
    model: LocalModel,
    paths: Sequence[Sequence[Branch]],
    missing: Sequence[Sequence[int]],
    width: int,
) -> Iterator[None]:
    """The pass inside is taken in by the trails of the paths' branches, where there are any."""
    rows = [trails.pieces(*each) for each in zip(paths, missing, strict=True)]
    chosen = tuple(sorted({n for row in rows for piece in row for n in piece.walk.layers}))
    if not chosen:
        yield
        return
    with model.watch(chosen) as watch:
        watch.weights_BPT = trails.weights(rows, width, model.device)
        yield
        for path, row, sums_PLC in zip(paths, rows, watch.take(), strict=True):
            trails.absorb(path, row, sums_PLC, chosen)


def _pending(branch: Branch) -> int:
    return len(branch.token_ids) - segment(branch).length


def _stale(branch: Branch) -> bool:
    return segment(branch).next_logits_V is None


def _pending_ids(leaf: Branch) -> list[int]:
    """The tokens to feed so that the leaf's KV is complete and its next logits are known."""
    return [t for b in leaf.lineage() for t in b.token_ids[segment(b).length :]]


def _ends(path: Sequence[Branch], fed: Sequence[int]) -> list[tuple[Branch, int]]:
    """The branches of a path whose last token is fed now, and its place among the fed tokens."""
    found, at = [], 0
    for branch, size in zip(path, fed, strict=True):
        at += size
        if size:
            found.append((branch, at - 1))
    if not fed[-1]:  # an empty leaf: what comes next is what follows the last token of its path
        found.append((path[-1], at - 1))
    return found


def _deepest(branches: list[Branch]) -> list[Branch]:
    """Those of `branches` that are no ancestor of another one."""
    inner = {a.id for b in branches for a in b.lineage()[:-1]}
    return [b for b in branches if b.id not in inner]


def _longest(branches: Sequence[Branch]) -> int:
    return max((sum(len(b.token_ids) for b in x.lineage()) for x in branches), default=0)
