"""Reading a text without end over a cache of fixed size: loss, rows and seconds, block by block.

Shapes: B texts, T tokens, W tokens of a window, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache

from outlay.cache.base import Compacting
from outlay.cache.compacted import CompactedCache, Retention
from outlay.cache.ladder import whole
from outlay.cache.loop import kv_bytes
from outlay.errors import InputError

if TYPE_CHECKING:
    from outlay.models.local import LocalModel


@dataclass(frozen=True)
class Block:
    """What one stretch of a stream cost and how well it was predicted.

    Args:
        first: number of its first token, from the cache's beginning.
        tokens: per text.
        nll_texts: mean loss per token in nats, of each text's tokens that had something before.
        seconds: wall time.
        cpu_seconds: the process's own time.
        peak_rows: most rows per layer, just before a compaction.
        mean_rows: rows per layer after a compaction, on average.
        peak_bytes: most bytes of keys and values, of all texts together.
    """

    first: int
    tokens: int
    nll_texts: tuple[float, ...]
    seconds: float
    cpu_seconds: float
    peak_rows: int
    mean_rows: float
    peak_bytes: int

    @property
    def nll(self) -> float:
        """Mean loss per token in nats."""
        return sum(self.nll_texts) / len(self.nll_texts)

    @property
    def perplexity(self) -> float:
        """exp of the loss; infinite where that overflows."""
        return math.exp(self.nll) if self.nll < 700 else math.inf


def stream_text(
    model: LocalModel,
    method: Retention | DynamicCache | None,
    ids_BT: torch.Tensor,
    *,
    window: int = 16,
    block: int = 1024,
) -> Iterator[Block]:
    """Feed texts of equal length through a model, window by window, and report every block.

    Args:
        model: the model.
        method: what stays; None for the full cache; a cache to go on from. A capacity is what is
            left after each window: at most capacity + window rows are held, and what a ladder
            swings.
        ids_BT: the texts.
        window: tokens per forward pass.
        block: tokens per report, a multiple of `window`.

    Raises:
        InputError: for texts of fewer than 2 tokens, or a block that windows do not fill.
        BudgetError: for a capacity below what is never dropped.
        CapabilityError: for a model whose rows cannot be dropped or moved.
    """
    whole("window", window, 1)
    whole("block", block, 1)
    if block % window:
        raise InputError(f"block={block} is no multiple of window={window}")
    if ids_BT.ndim != 2 or ids_BT.shape[1] < 2 or not len(ids_BT):
        raise InputError(f"texts of shape {tuple(ids_BT.shape)}; give ids (B, T), T >= 2")
    network, total = model.model, ids_BT.shape[1]
    whole("tokens", total, 2)
    if isinstance(method, DynamicCache):
        cache = method
    else:
        made = None if method is None else method.open(network, total)
        cache = DynamicCache(config=network.config) if made is None else made
    before_B1V: torch.Tensor | None = None
    for first in range(0, total, block):
        seen = _seen(cache)
        began, cpu = _now(model), time.process_time()
        losses_B = torch.zeros(len(ids_BT), dtype=torch.float64)
        count, rows, peak_rows, peak_bytes = 0, [], 0, 0
        for at in range(first, min(first + block, total), window):
            part_BW = ids_BT[:, at : min(at + window, total)].to(model.device)
            logits_BWV = _feed(network, part_BW, cache)
            if before_B1V is not None:
                losses_B += _loss(before_B1V, part_BW[:, :1])
                count += 1
            losses_B += _loss(logits_BWV[:, :-1], part_BW[:, 1:])
            count += part_BW.shape[1] - 1
            before_B1V = logits_BWV[:, -1:]
            peak_rows = max(peak_rows, cache.layers[0].get_seq_length())
            peak_bytes = max(peak_bytes, kv_bytes(cache))
            if isinstance(cache, Compacting):
                cache.compact()
            rows.append(cache.layers[0].get_seq_length())
        yield Block(
            seen,
            min(block, total - first),
            tuple((losses_B / max(1, count)).tolist()),
            _now(model) - began,
            time.process_time() - cpu,
            peak_rows,
            sum(rows) / len(rows),
            peak_bytes,
        )


def running_text(model: LocalModel, tokens: int, seed: int = 0) -> torch.Tensor:
    """One text of held-out documentation, (1, T): pieces of documents one after the other."""
    from outlay.testbeds import text

    whole("tokens", tokens, 1)
    pieces = text.rows(model.tokenizer, length=512, seed=seed, split="heldout", kinds=("english",))
    return torch.cat([next(pieces) for _ in range(-(-tokens // 512))])[None, :tokens]


def file_text(model: LocalModel, paths: Sequence[str | Path], tokens: int) -> torch.Tensor:
    """The first tokens of files, one after the other, (1, T).

    Raises:
        InputError: for files that cannot be read, or with fewer than `tokens` tokens in all.
    """
    from outlay.files import read_text

    whole("tokens", tokens, 1)
    ids: list[int] = []
    for path in paths:
        ids += model.encode(read_text(path).text)
        if len(ids) >= tokens:
            return torch.tensor([ids[:tokens]])
    raise InputError(
        f"the files have {len(ids)} tokens in all; lower tokens={tokens}, or add files"
    )


def _seen(cache: DynamicCache) -> int:
    rows = int(cache.layers[0].get_seq_length())
    return rows + (cache.dropped if isinstance(cache, CompactedCache) else 0)


def _now(model: LocalModel) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


@torch.inference_mode()
def _feed(network: Any, ids_BW: torch.Tensor, cache: Any) -> torch.Tensor:
    past = cache.get_seq_length()
    position_W = past + torch.arange(ids_BW.shape[1], device=ids_BW.device)
    made = network(
        ids_BW, cache=cache, position_ids=position_W[None].expand(ids_BW.shape), use_cache=True
    )
    logits_BWV: torch.Tensor = made.logits
    return logits_BWV


def _loss(logits_BWV: torch.Tensor, target_BW: torch.Tensor) -> torch.Tensor:
    """Summed loss of each text."""
    chosen_BW = logits_BWV.float().log_softmax(-1).gather(-1, target_BW[..., None])[..., 0]
    return -chosen_BW.sum(-1).double().cpu()
