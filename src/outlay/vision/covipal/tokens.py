"""The two streams that a pruning module reads, taken out of a prompt on its way through a model.

B rows, T prompt tokens, N visual tokens of a row, S text tokens, D width, Q query rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from outlay.errors import CapabilityError, InputError
from outlay.vision.attention import Tap, decoder_rows
from outlay.vision.base import Choice, Seen
from outlay.vision.covipal.places import places
from outlay.vision.covipal.ppm import PPM
from outlay.vision.dropper import Dropper
from outlay.vision.parts import parts


@dataclass(frozen=True)
class Tokens:
    """Visual and text tokens side by side, rows filled up with padding at their ends.

    Args:
        visual_BND: hidden states of visual tokens.
        places_BN3: row, column and image of each.
        visual_BN: False at padding.
        text_BSD: hidden states of text.
        text_BS: False at padding.
        at_BN: places of the visual tokens in the prompt; 0 at padding.
    """

    visual_BND: Tensor
    places_BN3: Tensor
    visual_BN: Tensor
    text_BSD: Tensor
    text_BS: Tensor
    at_BN: Tensor

    def scores(self, ppm: PPM) -> Tensor:
        """(B, N) logits of a module.

        Raises:
            InputError: for tokens of another width, or scores that are no numbers, naming the row.
        """
        scores_BN = ppm(
            self.visual_BND, self.places_BN3, self.text_BSD, self.visual_BN, self.text_BS
        )
        bad_B = (~torch.isfinite(scores_BN) & self.visual_BN).any(1)
        if bool(bad_B.any()):
            raise InputError(
                f"the pruning module gave scores that are no numbers for row "
                f"{int(bad_B.nonzero()[0])} of the batch; check that row's pixels and the "
                "module's weights"
            )
        return scores_BN


def gather(hidden_BTD: Tensor, visual_BT: Tensor, text_BT: Tensor, places_BT3: Tensor) -> Tokens:
    """The streams of a prompt.

    Args:
        hidden_BTD: hidden states.
        visual_BT: True at visual tokens.
        text_BT: True at text; padding is neither.
        places_BT3: row, column and image.
    """
    at_BN, visual_BN = _fronted(visual_BT)
    at_BS, text_BS = _fronted(text_BT)
    return Tokens(
        _pick(hidden_BTD, at_BN),
        _pick(places_BT3, at_BN),
        visual_BN,
        _pick(hidden_BTD, at_BS),
        text_BS,
        at_BN * visual_BN,
    )


def _fronted(mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Places of the True ones, in order, and which of them are real."""
    most = int(mask_BT.sum(1).max())
    index = (~mask_BT).to(torch.int8).sort(dim=1, stable=True).indices[:, :most]
    return index, mask_BT.gather(1, index)


def _pick(of_BTD: Tensor, at_BN: Tensor) -> Tensor:
    return of_BTD.gather(1, at_BN[..., None].expand(-1, -1, of_BTD.shape[-1]))


class Watch:
    """A context in which a model runs as ever and its prompt can be looked at.

    Args:
        model: a vision-language model.
        entering: layers whose input hidden states are kept.
        attention: layers whose attention may be asked for afterwards.

    Raises:
        CapabilityError: for a model without vision tower or decoder layers.
        InputError: for a layer out of range.
    """

    def __init__(
        self, model: Any, *, entering: Sequence[int] = (), attention: Sequence[int] = ()
    ) -> None:
        self.parts = parts(model)
        check_layers((*entering, *attention), self.parts.num_layers)
        self.entering, self.looked = tuple(entering), tuple(attention)
        self.hide: Tensor | None = None  # (B, T) True at words that the module must not read
        self.hidden: dict[int, Tensor] = {}
        self._seen: Seen | None = None
        self._places: Tensor | None = None
        self._position_ids: Tensor | None = None
        self._rotary: dict[int, tuple[Tensor, Tensor]] = {}
        self._dropper = Dropper(model, choose=self._choose)
        layers = self.parts.decoder.layers
        self._taps = {i: Tap(layers[i].self_attn, f"decoder layer {i}") for i in self.looked}
        self._handles: list[Any] = []

    def __enter__(self) -> Watch:
        decoder = self.parts.decoder
        self._handles = [decoder.register_forward_pre_hook(self._start, with_kwargs=True)]
        try:
            self._dropper.__enter__()
        except BaseException:
            self._close()
            raise
        for index in {*self.entering, *self.looked}:
            hook = self._layer(index)
            self._handles.append(
                decoder.layers[index].register_forward_pre_hook(hook, with_kwargs=True)
            )
        for tap in self._taps.values():
            tap.open()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        for tap in self._taps.values():
            tap.close()
        self._dropper.__exit__()

    def _close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @property
    def seen(self) -> Seen:
        """The prompt that ran last.

        Raises:
            InputError: if it had no image, or none has run.
        """
        if self._seen is None:
            raise InputError("no image in the prompt; CoViPAL scores visual tokens, give some")
        return self._seen

    @property
    def places(self) -> Tensor:
        """(B, T, 3) of the prompt that ran last."""
        assert self._places is not None
        return self._places

    @property
    def text(self) -> Tensor:
        """(B, T): True at text that a module reads: no padding, and nothing that is hidden."""
        return shown(self.seen.text, self.hide)

    def tokens(self, layer: int) -> Tokens:
        """The streams that entered a layer."""
        return gather(self.hidden[layer], self.seen.visual_BT, self.text, self.places)

    def rows(self, layer: int, rows_BQ: Tensor) -> Tensor:
        """(B, H, Q, T): attention of a layer's query rows."""
        cos, sin = self._rotary[layer]
        return decoder_rows(self._taps[layer], cos, sin, rows_BQ, self.seen.valid_BT)

    def _start(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._position_ids = kwargs.get("position_ids")
        self._seen = None

    def _choose(self, seen: Seen) -> Choice:
        self._seen = seen
        self._places = places(seen, self.parts, self._position_ids)
        return Choice(torch.ones_like(seen.visual_BT))

    def _layer(self, index: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if index in self.entering:
                self.hidden[index] = args[0] if args else kwargs["hidden_states"]
            self._rotary[index] = kwargs["position_embeddings"]

        return hook


def answers(batch: Mapping[str, Any]) -> Tensor | None:
    """(B, T): True at labelled tokens. They are there to be learned from, and at inference they
    are not there yet: a module must not read them."""
    labels_BT = batch.get("labels")
    return None if labels_BT is None else labels_BT != -100


def shown(text_BT: Tensor, hide_BT: Tensor | None) -> Tensor:
    """Text without what is hidden.

    Raises:
        InputError: for a mask of another shape.
    """
    if hide_BT is None:
        return text_BT
    if hide_BT.shape != text_BT.shape:
        raise InputError(
            f"labels have shape {tuple(hide_BT.shape)} and the prompt {tuple(text_BT.shape)}; give "
            "one label for each token"
        )
    return text_BT & ~hide_BT.to(text_BT.device)


def check_layers(layers: Sequence[int], depth: int) -> None:
    """Refuse decoder layers that do not exist.

    Raises:
        InputError: names the layer.
    """
    for layer in layers:
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < depth:
            raise InputError(f"layer {layer!r}; the decoder has layers 0..{depth - 1}")


def need_mask_attention(decoder: Any) -> None:
    """Refuse attention that takes no float mask.

    Raises:
        CapabilityError: names the implementation.
    """
    name = getattr(decoder.config, "_attn_implementation", "eager")
    if name not in ("eager", "sdpa"):
        raise CapabilityError(
            f"attn_implementation={name!r} takes no float mask, which stage 2 needs; load the "
            "model with attn_implementation='sdpa'"
        )
