"""Fewer image and video tokens: the room's one protocol.

A method is a frozen dataclass that is called with a model and gives a context manager:

    with HiRED(rate=0.2)(model) as kept:
        model.generate(**inputs)

The inputs are the processor's, with all their placeholders. While the context is open, every
prefill runs on fewer visual tokens, logits keep their places, and decoding goes on over the shorter
cache. `kept` says which tokens lived where. Methods that only rank tokens build on
`outlay.vision.dropper.Dropper`: they choose what enters the decoder (`Choose`), or how tokens are
ranked inside it (`Score`).

Shapes: B rows of a batch, T tokens of a prompt, N visual tokens of a row, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from outlay.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

Positions = Literal["original", "compact"]


@dataclass(frozen=True)
class Picture:
    """One image's visual tokens in a prompt.

    Args:
        row: of the batch.
        at_K: (K,) places of its tokens in the row, ascending.
        host_K: the same in the host's memory, for choices that are made there.
    """

    row: int
    at_K: Tensor
    host_K: Tensor


@dataclass(frozen=True)
class Seen:
    """A prompt as it enters the decoder.

    Args:
        embeds_BTD: embeddings, features merged in.
        visual_BT: True at visual tokens.
        valid_BT: False at padding.
        pictures: images in row-major order.
        ids_BT: token ids; None where the caller gave embeddings.
    """

    embeds_BTD: Tensor
    visual_BT: Tensor
    valid_BT: Tensor
    pictures: Sequence[Picture]
    ids_BT: Tensor | None = None

    def features(self, picture: Picture) -> Tensor:
        """(K, D): an image's features as the decoder sees them."""
        return self.embeds_BTD[picture.row, picture.at_K]

    @property
    def text(self) -> Tensor:
        """(B, T): True at tokens that are neither visual nor padding."""
        return self.valid_BT & ~self.visual_BT


@dataclass(frozen=True)
class Choice:
    """What enters the decoder.

    Args:
        keep_BT: True at tokens that stay; every token that is not visual must stay.
        embeds_BTD: other embeddings for the tokens that stay (merged ones); None for the same.
        scores: of each image's tokens, for pictures; may be empty.
    """

    keep_BT: Tensor
    embeds_BTD: Tensor | None = None
    scores: Sequence[Tensor] = ()

    @classmethod
    def of(cls, seen: Seen, kept: Sequence[Tensor], scores: Sequence[Tensor] = ()) -> Choice:
        """From the tokens that every image keeps.

        Args:
            seen: the prompt.
            kept: of each picture, (k,) indices within the image, in any order.
            scores: of each picture, (K,).

        Raises:
            InputError: for another number of images.
        """
        import torch

        if len(kept) != len(seen.pictures):
            raise InputError(f"{len(kept)} choices for {len(seen.pictures)} images")
        keep_BT = (~seen.visual_BT).contiguous()
        length = keep_BT.shape[1]
        # What was chosen on the host goes to the device in one piece, without waiting for it.
        on_host = all(index_k.device.type == "cpu" for index_k in kept)
        flat = [
            picture.row * length
            + (picture.host_K[index_k] if on_host else picture.at_K[index_k.to(keep_BT.device)])
            for picture, index_k in zip(seen.pictures, kept, strict=True)
        ]
        keep_BT.view(-1)[torch.cat(flat).to(keep_BT.device)] = True
        return cls(keep_BT, scores=scores)


Choose = Callable[[Seen], Choice]
"""What enters the decoder, of a prompt."""


@dataclass(frozen=True)
class Ranking:
    """What a score may look at before a layer drops tokens.

    Args:
        layer: before which tokens go.
        hidden_BMD: hidden states that enter it.
        visual_BN: places of the visual tokens among its M tokens.
        valid_BM: False at padding.
        text_BM: True at text.
        attention: query rows (B, Q) -> attention of the layer before, (B, H, Q, M).
        alive_BN: the same visual tokens, numbered among the row's original ones.
        total: visual tokens of a row before any was dropped.
        previous: scores of the last drop for the same tokens, if there was one.
    """

    layer: int
    hidden_BMD: Tensor
    visual_BN: Tensor
    valid_BM: Tensor
    text_BM: Tensor
    attention: Callable[[Tensor], Tensor]
    alive_BN: Tensor
    total: int
    previous: Tensor | None = None


class Score(Protocol):
    """Ranks visual tokens before a layer: larger stays."""

    def __call__(self, seen: Ranking) -> Tensor:
        """(B, N) scores."""
        ...


@dataclass(frozen=True, eq=False)
class Living:
    """Visual tokens of every row that a layer had.

    Args:
        mask_Bm: True at visual tokens among the layer's.
        number_Bm: their numbers among the row's original visual ones; anything elsewhere.
        counts: of every row.
    """

    mask_Bm: Tensor
    number_Bm: Tensor
    counts: list[int]

    @cached_property
    def rows(self) -> list[Tensor]:
        """(n,) original numbers of every row, ascending."""
        return [number[mask] for number, mask in zip(self.number_Bm, self.mask_Bm, strict=True)]


@dataclass
class Kept:
    """What lived where in the last prefill; filled while a method's context is open.

    Lists of tokens are made when they are read: a prefill does not wait for them.

    Args:
        total: visual tokens of each row of the batch as the processor gave them.
        text: other tokens of each row, padding not counted.
        sizes: of each image, its number of tokens.
        scores: of each image, scores of all its tokens, where the method has them.
        alive: of each decoder layer, its visual tokens.
        ranked: tokens of a row (all kinds) at each ranking between layers.
        prefills: counted since the context opened.
        seconds: spent on choosing and ranking since then, on the host's clock. A GPU may do the
            work later.
        tower_flops: gives those of one image, where a method changes what the tower computes; None
            from it where there is no closed form.
    """

    total: list[int] = field(default_factory=list)
    text: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    alive: list[Living] = field(default_factory=list)
    ranked: list[int] = field(default_factory=list)
    prefills: int = 0
    seconds: float = 0.0
    tower_flops: Callable[[], int | None] | None = None
    _entered: list[Tensor] | Callable[[], list[Tensor]] = field(default_factory=list)

    @property
    def entered(self) -> list[Tensor]:
        """Of each image, which of its tokens entered the decoder: (k,) ascending."""
        if callable(self._entered):
            self._entered = self._entered()
        return self._entered

    @entered.setter
    def entered(self, found: list[Tensor] | Callable[[], list[Tensor]]) -> None:
        self._entered = found

    @property
    def layers(self) -> list[list[Tensor]]:
        """Of each decoder layer and row, its visual tokens: (n,) original numbers."""
        return [one.rows for one in self.alive]

    def counts(self) -> list[list[int]]:
        """Visual tokens by layer and row."""
        return [list(one.counts) for one in self.alive]

    def mean_rate(self) -> float:
        """Mean over layers and rows of the share of visual tokens that lived.

        Raises:
            InputError: before the first prefill.
        """
        if not self.alive or not sum(self.total):
            raise InputError("no prompt with images has run under this method yet")
        lived = [sum(layer) for layer in self.counts()]
        return sum(lived) / len(lived) / sum(self.total)


@runtime_checkable
class Pruner(Protocol):
    """A way of having fewer visual tokens."""

    def __call__(self, model: Any) -> AbstractContextManager[Kept]:
        """A context in which `model` runs on fewer visual tokens.

        Raises:
            CapabilityError: for a model that cannot be treated so.
        """
        ...


@runtime_checkable
class Budgeted(Protocol):
    """A method that can be told how many visual tokens an image may have."""

    def within(self, tokens: int, total: int, layers: int) -> Pruner:
        """This method at a budget.

        Args:
            tokens: of one image, the mean over the decoder's layers.
            total: of one image before anything is dropped.
            layers: of the decoder.

        Raises:
            InputError: if the method cannot spend so little.
        """
        ...


def top(scores_BN: Tensor, k: int) -> Tensor:
    """(B, k): indices of the k largest scores of each row, ascending; ties go to the first.

    Raises:
        InputError: for NaN, naming the row.
    """
    check_numbers(scores_BN.isnan().any(1))
    return best(scores_BN, k)


def best(scores_BN: Tensor, k: int) -> Tensor:
    """`top` without its check, which waits for the device."""
    order = scores_BN.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :k].sort(dim=-1).values


def true_places(mask_BN: Tensor, count: int) -> Tensor:
    """(B, count): ascending places of True, of which every row has so many.

    The host knows how many, so it need not wait for the device, as `nonzero` would have it.
    """
    return (~mask_BN).char().sort(dim=1, stable=True).indices[:, :count].contiguous()


def last_place(mask_BN: Tensor) -> Tensor:
    """(B, 1): the last place of True in every row."""
    return (mask_BN.cumsum(1) * mask_BN).argmax(1, keepdim=True)


def check_numbers(bad_B: Tensor) -> None:
    """Refuse rows whose scores are NaN.

    Raises:
        InputError: naming the first.
    """
    if bool(bad_B.any()):
        raise InputError(f"row {int(bad_B.nonzero()[0])} has scores that are no numbers (NaN)")


__all__ = [
    "Budgeted",
    "Choice",
    "Choose",
    "Kept",
    "Living",
    "Picture",
    "Positions",
    "Pruner",
    "Ranking",
    "Score",
    "Seen",
    "best",
    "check_numbers",
    "last_place",
    "top",
    "true_places",
]
