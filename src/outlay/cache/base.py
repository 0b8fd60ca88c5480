"""A smaller KV cache: the room's one protocol.

A cache method reads a prompt into a transformers `Cache`. Decoding goes on from there, by the
room's own loop (`outlay.cache.loop`) or by a decoder that can run over a cache method (`Over`).
Rows of the cache are numbered from 0 without gaps, whatever was dropped: a token that is fed next
has the position `cache.get_seq_length()`, a node of a draft tree that position plus its depth.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from outlay.decode.base import Decoder
from outlay.models.base import Account

if TYPE_CHECKING:
    import torch

    from outlay.models.local import LocalModel


@dataclass(frozen=True)
class Prefilled:
    """A prompt that was read.

    Args:
        cache: a transformers `Cache` of the prompt's tokens.
        logits_BV: what follows the prompt's last token.
    """

    cache: Any
    logits_BV: torch.Tensor


@runtime_checkable
class CacheMethod(Protocol):
    """A way of having a prompt's KV cache."""

    def prefill(
        self, model: LocalModel, ids_BT: torch.Tensor, *, account: Account | None = None
    ) -> Prefilled:
        """Read B prompts of equal length; their tokens and FLOPs are booked on `account`.

        Raises:
            CapabilityError: if the model's attention or cache cannot be treated so.
            InputError: if the prompt cannot be read under the method's knobs.
        """
        ...


@runtime_checkable
class Compacting(Protocol):
    """A cache that drops rows between forward passes."""

    def compact(self) -> None:
        """Drop what the budget of rows does not allow; called after every forward pass."""
        ...


@runtime_checkable
class Over(Decoder, Protocol):
    """A decoder that can run over a cache method."""

    def over(self, cache: CacheMethod) -> Decoder:
        """This decoder, with prompts read by `cache`."""
        ...
