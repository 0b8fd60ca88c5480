"""A transformers cache that drops rows by a policy and keeps positions without gaps.

What LaCache and its baselines share: a policy says, from row numbers alone, what stays; the cache
gathers it and turns moved keys to their new positions; a retention is the user's form of a policy,
reads prompts (in chunks, or at once) and brings the loop for `generate(custom_generate=...)`.

Shapes: B sequences, T tokens, V vocabulary, L layers, H key heads, N rows, D head width.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from outlay.cache.base import Prefilled
from outlay.cache.ladder import IntArray, State, whole
from outlay.cache.loop import booked, forward
from outlay.cache.rotary import angles, frequencies, turn
from outlay.errors import CapabilityError, InputError, ResultsError
from outlay.models.base import Account

if TYPE_CHECKING:
    from outlay.models.local import LocalModel

Rotate = Literal["reindex", "absolute"]
Mode = Literal["stream", "prefill_once", "both"]


class RowPolicy(Protocol):
    """Which rows of a cache stay; pure arithmetic."""

    def begin(self) -> State:
        """The state of an empty cache."""
        ...

    def keep(self, rows: int, state: State) -> tuple[IntArray | None, State]:
        """Indices that stay of `rows` rows, (L, N') increasing, or None for all; and the state."""
        ...


class LateLayer(DynamicLayer):
    """Rows that are turned when they are read: keys stay as they came.

    For half precision. A key that moves by a row or two, a thousand times over, would be rounded
    each time, and its slow dimensions would not turn at all.
    """

    keys: Any
    values: Any

    def __init__(self) -> None:
        super().__init__()
        self.shift_N = torch.zeros(0, dtype=torch.long)  # of the first rows; later ones: 0
        self._turns: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append rows; the keys that are returned are at their positions."""
        self.shift_N = self.shift_N[: self.get_seq_length()]  # a decoder may have taken rows back
        keys_BHND, values_BHND = super().update(key_states, value_states, *args, **kwargs)
        settled = len(self.shift_N)
        if self._turns is None or not settled:
            return keys_BHND, values_BHND
        cos_NF, sin_NF = (each[:settled] for each in self._turns)
        turned_BHND = turn(keys_BHND[..., :settled, :], cos_NF, sin_NF)
        return torch.cat([turned_BHND, keys_BHND[..., settled:, :]], dim=-2), values_BHND

    def settle(self, kept_N: torch.Tensor, frequency_F: Any) -> None:
        """Keep some rows, which move down to 0, 1, ..."""
        later = torch.zeros(self.get_seq_length(), dtype=torch.long)
        later[: len(self.shift_N)] = self.shift_N[: len(later)]
        kept_M = kept_N.to(self.keys.device)
        self.keys = self.keys.index_select(-2, kept_M)
        self.values = self.values.index_select(-2, kept_M)
        self.turn_by(later[kept_N] + torch.arange(len(kept_N)) - kept_N, frequency_F)

    def turn_by(self, shift_N: torch.Tensor, frequency_F: Any) -> None:
        """How far the first rows have moved since they came."""
        self.shift_N = shift_N
        self._turns = angles(shift_N.to(self.keys.device), frequency_F.to(self.keys.device))

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.shift_N = self.shift_N[:0]


class CompactedCache(DynamicCache):
    """A `DynamicCache` that a policy thins between forward passes.

    The next token's position is `get_seq_length()`. In "reindex" that is the number of rows, and
    rows are numbered from 0 whatever was dropped. In "absolute" it is the number of tokens seen.

    Args:
        network: the transformers causal LM that fills it.
        policy: what stays.
        rotate: "reindex" turns moved keys; "absolute" leaves them, and the window of the model
            ends the text.

    Raises:
        CapabilityError: for layers without full attention, or keys that cannot be moved.
    """

    def __init__(self, network: Any, policy: RowPolicy, *, rotate: Rotate = "reindex") -> None:
        super().__init__(config=network.config)
        self.layers: list[Any]
        for index, layer in enumerate(self.layers):
            if type(layer) is not DynamicLayer:
                raise CapabilityError(
                    f"layer {index} of {type(network).__name__} keeps a {type(layer).__name__}, "
                    "whose rows cannot be dropped one by one; use a model with full attention in "
                    "every layer"
                )
        self._frequency_F = frequencies(network) if rotate == "reindex" else None
        self._late = rotate == "reindex" and network.dtype.itemsize < 4
        if self._late:
            self.layers = [LateLayer() for _ in self.layers]
        self.policy = policy
        self.state = policy.begin()
        self.rotate = rotate
        self.active = True
        self.dropped = 0
        self.peak_rows = 0
        self._device = network.device
        self._window = int(
            getattr(network.config.get_text_config(), "max_position_embeddings", 0) or 2**62
        )

    @property
    def rows(self) -> int:
        """Rows of every layer."""
        return int(self.layers[0].get_seq_length())

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The position of the next token; transformers calls it the length."""
        rows = int(super().get_seq_length(layer_idx))
        return rows + self.dropped if self.rotate == "absolute" else rows

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length of the keys, and the position of the first of them."""
        length, offset = super().get_mask_sizes(query_length, layer_idx)
        return length, offset + (self.dropped if self.rotate == "absolute" else 0)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.state = self.policy.begin()
        self.dropped = self.peak_rows = 0

    @torch.inference_mode()
    def compact(self) -> None:
        """Drop what the policy does not keep.

        Raises:
            CapabilityError: if the layers hold unequal numbers of rows.
            InputError: for absolute positions beyond the model's window.
        """
        lengths = {layer.get_seq_length() for layer in self.layers}
        if len(lengths) > 1:
            raise CapabilityError(
                f"the layers hold {sorted(lengths)} rows; a shared mask needs equal numbers"
            )
        rows = lengths.pop()
        self.peak_rows = max(self.peak_rows, rows)
        if self.rotate == "absolute" and rows + self.dropped > self._window:
            raise InputError(
                f"{rows + self.dropped} tokens exceed the window of {self._window} positions; "
                "use rotate='reindex', whose positions never pass the capacity"
            )
        if not self.active:
            return
        kept_LN, self.state = self.policy.keep(rows, self.state)
        if kept_LN is None:
            return
        self._gather(kept_LN)
        self.dropped += rows - kept_LN.shape[1]

    def _gather(self, kept_LN: IntArray) -> None:
        """Rows before the first gap stay where they are; later ones move down."""
        if self._late:
            for layer, kept_N in zip(self.layers, kept_LN, strict=True):
                layer.settle(torch.from_numpy(kept_N), self._frequency_F)
            return
        moves: dict[bytes, tuple[Any, ...]] = {}  # layers on one rung move alike
        for layer, kept_N in zip(self.layers, kept_LN, strict=True):
            key = kept_N.tobytes()
            if key not in moves:
                moves[key] = self._move(torch.from_numpy(kept_N), layer.keys.device)
            still, moved_M, turns = moves[key]
            keys_BHMD = layer.keys.index_select(-2, moved_M)
            if turns is not None:
                keys_BHMD = turn(keys_BHMD, *turns)
            layer.keys = torch.cat([layer.keys[..., :still, :], keys_BHMD], dim=-2)
            layer.values = torch.cat(
                [layer.values[..., :still, :], layer.values.index_select(-2, moved_M)], dim=-2
            )

    def _move(self, kept_N: torch.Tensor, device: torch.device) -> tuple[Any, ...]:
        place_N = torch.arange(len(kept_N))
        still = int((kept_N == place_N).sum())  # indices increase, so these come first
        moved_M = kept_N[still:].to(device)
        if self._frequency_F is None:
            return still, moved_M, None
        frequency_F = self._frequency_F.to(device)
        # Few shifts differ: their angles are computed once and picked.
        shifts_S, which_M = (place_N - kept_N)[still:].unique(return_inverse=True)
        cos_SF, sin_SF = angles(shifts_S.to(device), frequency_F)
        which_M = which_M.to(device)
        return still, moved_M, (cos_SF[which_M], sin_SF[which_M])

    def save(self, path: str | Path) -> None:
        """Write rows and state as safetensors, to go on in another process."""
        from safetensors.torch import save_file

        tensors = {
            f"{name}.{index}": getattr(layer, name).contiguous()
            for index, layer in enumerate(self.layers)
            for name in ("keys", "values")
            if layer.get_seq_length()
        }
        if self._late:
            shifts = {f"shift.{i}": layer.shift_N for i, layer in enumerate(self.layers)}
            tensors |= {name: shift_N.contiguous() for name, shift_N in shifts.items()}
        save_file(tensors, path, metadata={"cache": json.dumps(self._about())})

    def restore(self, path: str | Path) -> None:
        """Take over what `save` wrote; this cache must have the same policy and model shape.

        Raises:
            ResultsError: for a file that cannot be read or is of another cache.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                about = json.loads((file.metadata() or {}).get("cache", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError) as error:
            raise ResultsError(f"cannot read the cache {path} ({error}); save it again") from error
        mine = self._about()
        for name in ("policy", "rotate", "layers", "late"):
            if about.get(name) != mine[name]:
                raise ResultsError(
                    f"{path} is of {name} {about.get(name)!r}, this cache of {mine[name]!r}; "
                    "restore it with the method and model that saved it"
                )
        names = ("keys", "values", "shift") if self._late else ("keys", "values")
        wanted = {f"{name}.{index}" for name in names for index in range(len(self.layers))}
        if about["rows"] and set(tensors) != wanted:
            raise ResultsError(f"{path} holds {len(tensors)} tensors; it was cut, save it again")
        self.reset()
        for index, layer in enumerate(self.layers if about["rows"] else ()):
            keys, values = (tensors[f"{name}.{index}"].to(self._device) for name in names[:2])
            layer.update(keys, values)
            if self._late:
                layer.turn_by(tensors[f"shift.{index}"], self._frequency_F)
        self.state = tuple(about["state"])
        self.active, self.dropped = about["active"], about["dropped"]
        self.peak_rows = about["peak_rows"]

    def _about(self) -> dict[str, Any]:
        return {
            "policy": repr(self.policy),
            "rotate": self.rotate,
            "layers": len(self.layers),
            "late": self._late,
            "rows": self.rows,
            "state": list(self.state),
            "active": self.active,
            "dropped": self.dropped,
            "peak_rows": self.peak_rows,
        }


@dataclass(frozen=True)
class Retention(ABC):
    """A cache of a fixed number of rows: what every method of this kind is told.

    Args:
        capacity: rows per layer.
        budget: the same as a share of the prompt's tokens, in (0, 1]; at most one of the two. With
            neither, 512 rows.
        start: the first rows, never dropped; None for 4, and with the prompt read at once for what
            the paper takes on LongBench: up to 128.
        protect_last: the newest rows, never dropped; None for one per layer.
        rotate: see `CompactedCache`.
        mode: "stream" reads the prompt in chunks and compacts after each, so that memory is
            bounded; "prefill_once" reads it at once and compacts once, and what is generated then
            is added; "both" reads it at once and compacts ever after.
        chunk: tokens per forward pass of a prompt in "stream".

    Raises:
        InputError: for sizes that are no whole numbers, or knobs out of range.
    """

    capacity: int | None = None
    budget: float | None = None
    start: int | None = None
    protect_last: int | None = None
    rotate: Rotate = "reindex"
    mode: Mode = "stream"
    chunk: int = 64

    def __post_init__(self) -> None:
        if self.capacity is not None and self.budget is not None:
            raise InputError("give capacity= or budget=, not both")
        if self.capacity is not None:
            whole("capacity", self.capacity, 1)
        if self.budget is not None and not (
            isinstance(self.budget, int | float)
            and not isinstance(self.budget, bool)
            and 0 < self.budget <= 1
        ):
            raise InputError(f"budget={self.budget!r}; must be a share in (0, 1]")
        if self.start is not None:
            whole("start", self.start, 0)
        if self.protect_last is not None:
            whole("protect_last", self.protect_last, 1)
        whole("chunk", self.chunk, 1)
        if self.rotate not in ("reindex", "absolute"):
            raise InputError(f"rotate={self.rotate!r}; choose reindex or absolute")
        if self.mode not in ("stream", "prefill_once", "both"):
            raise InputError(f"mode={self.mode!r}; choose stream, prefill_once or both")

    @abstractmethod
    def policy(self, layers: int, tokens: int) -> RowPolicy:
        """What stays, for a model of `layers` layers and a prompt of `tokens` tokens.

        Raises:
            BudgetError: for a capacity below what is never dropped.
        """

    def rows(self, tokens: int) -> int:
        """The capacity for a prompt of `tokens` tokens."""
        if self.budget is not None:
            return max(1, int(self.budget * tokens))
        return 512 if self.capacity is None else self.capacity

    def first(self, tokens: int, least: int, tail: int) -> int:
        """The protected prefix; `least` rows besides it are needed, `tail` of them the newest."""
        if self.start is not None:
            return self.start
        if self.mode == "stream":
            return 4
        return max(1, min(128, tokens - tail - 1, self.rows(tokens) - least))

    def open(self, network: Any, tokens: int) -> CompactedCache:
        """An empty cache for a prompt of `tokens` tokens."""
        layers = int(network.config.get_text_config().num_hidden_layers)
        return CompactedCache(network, self.policy(layers, tokens), rotate=self.rotate)

    def prefill(
        self, model: LocalModel, ids_BT: torch.Tensor, *, account: Account | None = None
    ) -> Prefilled:
        """Read B prompts of equal length; see `CacheMethod.prefill`.

        Raises:
            CapabilityError: for a model whose rows cannot be dropped or moved.
            InputError: for an empty prompt.
            BudgetError: for a capacity below what is never dropped.
        """
        account = account or Account()
        begun = time.perf_counter()
        batch, width = _checked(ids_BT)
        cache = self.open(model.model, width)
        step = self.chunk if self.mode == "stream" else width
        flops = sum(
            model.flops(
                min(step, width - at), min(at, self.rows(width)), logits_rows=1, batch=batch
            )
            for at in range(0, width, step)
        )
        with booked(account, batch * width, flops, begun):
            for at in range(0, width, step):
                logits_BV = forward(model, ids_BT[:, at : at + step], cache)
        cache.active = self.mode != "prefill_once"
        return Prefilled(cache, logits_BV)

    def custom_generate(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Any:
        """The loop for `model.generate(..., custom_generate=method.custom_generate)`.

        transformers numbers positions by the tokens seen; this numbers them by the rows left.
        Greedy or sampled, any batch of prompts of equal length.

        Raises:
            CapabilityError: for beams, or what `open` refuses.
            InputError: for padded prompts or a cache that already holds something.
        """
        from outlay.cache.generation import decode

        return decode(
            self,
            model,
            input_ids,
            logits_processor,
            stopping_criteria,
            generation_config,
            model_kwargs,
        )


def _checked(ids_BT: torch.Tensor) -> tuple[int, int]:
    if ids_BT.ndim != 2 or not ids_BT.numel():
        raise InputError(f"prompts of shape {tuple(ids_BT.shape)}; give ids (B, T), T >= 1")
    return int(ids_BT.shape[0]), int(ids_BT.shape[1])
