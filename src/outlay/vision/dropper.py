"""Dropping visual tokens before the decoder and between its layers, by hooks alone.

Before the decoder, tokens leave the embeddings, the mask and the positions; rows that keep
different numbers are padded on the left. Between layers, every row loses the same number. Layers
and norm see short sequences, the cache holds short layers, and the decoder's output is spread back
to the prompt's length (zeros where tokens are gone), so logits, labels and `generate` line up. Text
is never dropped; order and, by default, positions are kept. After the prefill, masks of later calls
are cut to what each layer's cache holds.

B rows, T prompt tokens, M tokens that entered, N visual tokens of a row, D width, Q new tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from outlay.errors import CapabilityError, InputError
from outlay.vision.attention import Tap, decoder_rows
from outlay.vision.base import (
    Choice,
    Choose,
    Kept,
    Positions,
    Ranking,
    Score,
    Seen,
    best,
    check_numbers,
)
from outlay.vision.counts import check_schedule, counts_of
from outlay.vision.parts import parts
from outlay.vision.placeholders import Placeholders
from outlay.vision.rows import Rows

_OPEN = "_outlay_vision_dropper"  # on a decoder while a dropper is open


class Dropper:
    """A context in which a model's prompts lose visual tokens.

    Args:
        model: a vision-language model, or a plain decoder together with `visual`.
        choose: decides what enters the decoder; None lets everything in.
        rates: keep rate of every decoder layer, relative to the original count; None drops nothing
            between layers. The first must be 1.
        score: ranks tokens where the rates fall.
        positions: of tokens that enter: as before, or without gaps. Tokens that are dropped between
            layers always leave gaps.
        visual: (B, T) True at visual tokens, for a plain decoder.

    Raises:
        CapabilityError: for a model without decoder layers, or one that a dropper is open on.
        InputError: for rates that cannot be applied, or without a score.
    """

    def __init__(
        self,
        model: Any,
        *,
        choose: Choose | None = None,
        rates: Sequence[float] | None = None,
        score: Score | None = None,
        positions: Positions = "original",
        visual: Tensor | None = None,
    ) -> None:
        self.parts = parts(model)
        self.choose = choose
        self.rates = tuple(rates) if rates is not None else (1.0,) * self.parts.num_layers
        check_schedule(self.rates, self.parts.num_layers, before_first=False)
        self.drops = [i for i in range(1, len(self.rates)) if self.rates[i] < self.rates[i - 1]]
        if self.drops and score is None:
            raise InputError("the rates fall, and no score says which tokens go; give score")
        if positions not in ("original", "compact"):
            raise InputError(f"positions={positions!r}; use 'original' or 'compact'")
        self.score = score
        self.positions = positions
        if self.parts.tower is None and visual is None:
            raise CapabilityError(
                f"{type(model).__name__} has no vision tower, so nothing says which tokens are "
                "visual; give `visual`, or a vision-language model"
            )
        self.places = Placeholders(self.parts, visual)
        self.taps = {
            i - 1: Tap(self.parts.decoder.layers[i - 1].self_attn, f"decoder layer {i - 1}")
            for i in self.drops
        }
        self.kept = Kept()
        self._rows: Rows | None = None
        self._before: Tensor | None = None  # scores of the last drop, for tokens that are alive
        self._bad: Tensor | None = None  # (B,) rows whose scores were no numbers
        self._rotary: dict[int, tuple[Tensor, Tensor]] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Kept:
        decoder = self.parts.decoder
        if getattr(decoder, _OPEN, False):
            raise CapabilityError(
                "a vision method is open on this model already; leave its context first, or "
                "give both to one Dropper"
            )
        setattr(decoder, _OPEN, True)
        self.places.open()
        for tap in self.taps.values():
            tap.open()
        self._handles = [
            decoder.register_forward_pre_hook(self._enter, with_kwargs=True),
            decoder.register_forward_hook(self._leave, with_kwargs=True),
            decoder.norm.register_forward_pre_hook(self._spread),
        ]
        if self.drops:
            self._handles += [
                layer.register_forward_pre_hook(self._layer(i), with_kwargs=True)
                for i, layer in enumerate(decoder.layers)
            ]
        return self.kept

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for tap in self.taps.values():
            tap.close()
        self.places.close()
        self._rows = None
        delattr(self.parts.decoder, _OPEN)

    def _enter(
        self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before the decoder: a prompt loses what was not chosen, later calls get short masks."""
        kwargs = dict(kwargs)
        embeds = kwargs.get("inputs_embeds")
        if embeds is None:
            ids = kwargs.pop("input_ids", args[0] if args else None)
            if ids is None:
                raise InputError("the decoder was called without ids and without embeddings")
            args = ()
            embeds = decoder.get_input_embeddings()(ids)
            kwargs["inputs_embeds"] = embeds
            if self.places.ids is None:
                self.places.ids = ids
        cache = kwargs.get("cache")
        _refuse_static(cache)
        if cache is not None and cache.get_seq_length() > 0:
            if self._rows is not None:
                self._rows.continue_with(kwargs, self.positions)
            return args, kwargs
        started = time.perf_counter()
        seen = self.places.seen(embeds, kwargs.get("attention_mask"))
        self._rows, self._before, self._bad = None, None, None
        self._rotary.clear()
        if seen is None:  # a prompt without images
            return args, kwargs
        keep_BT, scores = self._chosen(seen, kwargs)
        self._rows = Rows(seen, keep_BT, self.parts.num_layers)
        self._rows.shorten(kwargs, self.positions)
        self._note(seen, scores)
        self._counts = self._plan()
        self.kept.seconds += time.perf_counter() - started
        return args, kwargs

    def _chosen(self, seen: Seen, kwargs: dict[str, Any]) -> tuple[Tensor, Sequence[Tensor]]:
        everything = torch.ones_like(seen.visual_BT)
        if self.choose is None:
            return everything, ()
        choice = self.choose(seen)
        _check_choice(choice, seen)
        if choice.embeds_BTD is not None:
            kwargs["inputs_embeds"] = choice.embeds_BTD
        return choice.keep_BT | ~seen.visual_BT, choice.scores

    def _plan(self) -> list[int] | None:
        """Visual tokens of every layer; None where nothing is dropped between layers."""
        if not self.drops:
            return None
        assert self._rows is not None
        totals, entered = set(self.kept.total), set(self._rows.entered_counts)
        if len(totals) > 1 or len(entered) > 1:
            raise InputError(
                f"rows have {sorted(totals if len(totals) > 1 else entered)} visual tokens; layers "
                "drop the same number from every row, so give rows with equally many, or run "
                "them one by one"
            )
        most = entered.pop()
        return [min(most, count) for count in counts_of(self.rates, totals.pop())]

    def _note(self, seen: Seen, scores: Sequence[Tensor]) -> None:
        assert self._rows is not None
        keep_BT, pictures = self._rows.keep_BT, seen.pictures
        kept = self.kept
        kept.total, kept.text = self._rows.total, self._rows.text
        kept.sizes = [len(picture.host_K) for picture in pictures]

        def entered() -> list[Tensor]:
            return [keep_BT[picture.row, picture.at_K].nonzero()[:, 0] for picture in pictures]

        kept.entered = entered
        kept.scores = list(scores)
        kept.ranked = []
        kept.alive = [self._rows.snapshot()] * len(self.rates)
        kept.prefills += 1

    def _layer(self, index: int) -> Callable[..., Any]:
        def hook(
            module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            rows = self._rows
            if rows is None:
                return None
            kwargs = dict(kwargs)
            hidden = args[0] if args else kwargs["hidden_states"]
            if rows.decoding:
                rows.cut_keys(kwargs, index)
                return args, kwargs
            if index in self.drops:
                hidden = self._drop(index, hidden)
            rows.cut_layer(kwargs, index)
            if index in self.taps:
                self._rotary[index] = kwargs["position_embeddings"]
            if args:
                return (hidden, *args[1:]), kwargs
            kwargs["hidden_states"] = hidden
            return args, kwargs

        return hook

    def _drop(self, index: int, hidden_BMD: Tensor) -> Tensor:
        """Rank what is alive, and go on with the best."""
        rows, counts = self._rows, self._counts
        assert rows is not None
        assert counts is not None
        assert self.score is not None
        visual_BN = rows.visual
        if counts[index] >= visual_BN.shape[1]:
            return hidden_BMD
        started = time.perf_counter()
        valid_BM = rows.valid_BM

        def attention(rows_BQ: Tensor) -> Tensor:
            cos, sin = self._rotary[index - 1]
            return decoder_rows(self.taps[index - 1], cos, sin, rows_BQ, valid_BM)

        seen = Ranking(
            layer=index,
            hidden_BMD=hidden_BMD,
            visual_BN=visual_BN,
            valid_BM=valid_BM,
            text_BM=rows.text_BM,
            attention=attention,
            alive_BN=rows.alive,
            total=self.kept.total[0],
            previous=self._before,
        )
        scores_BN = self.score(seen)
        if scores_BN.shape != visual_BN.shape:
            raise InputError(
                f"the score gave {tuple(scores_BN.shape)} values for {tuple(visual_BN.shape)} "
                "visual tokens"
            )
        self.kept.ranked.append(hidden_BMD.shape[1])
        bad_B = scores_BN.isnan().any(1)
        self._bad = bad_B if self._bad is None else self._bad | bad_B
        best_Bn = best(scores_BN, counts[index])
        self._before = scores_BN.gather(1, best_Bn)
        hidden = rows.keep_visual(hidden_BMD, best_Bn)
        for tap in self.taps.values():
            tap.forget()
        left = len(self.kept.alive) - index
        self.kept.alive[index:] = [rows.snapshot()] * left
        self.kept.seconds += time.perf_counter() - started
        return hidden

    def _spread(self, module: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Before the final norm: back to the length that entered."""
        if self._rows is None or self._rows.decoding:
            return None
        return (self._rows.spread_entered(args[0]), *args[1:])

    def _leave(
        self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """After the decoder: back to the prompt's length."""
        rows = self._rows
        for tap in self.taps.values():
            tap.forget()
        if rows is None or rows.decoding:
            return output
        if self._bad is not None:  # once a prompt: looking at every drop would stop the device
            check_numbers(self._bad)
        hidden = rows.spread_prompt(output[0])
        rows.decoding = True
        if isinstance(output, tuple):
            return (hidden, *output[1:])
        output.last_hidden_state = hidden
        return output


def _refuse_static(cache: Any) -> None:
    if cache is not None and getattr(cache, "is_compileable", False):
        raise CapabilityError(
            f"{type(cache).__name__} has layers of one fixed length, and layers here hold "
            "different numbers of tokens; use a DynamicCache (no cache_implementation, no compiled "
            "generate)"
        )


def _check_choice(choice: Choice, seen: Seen) -> None:
    if choice.keep_BT.shape != seen.visual_BT.shape:
        raise InputError(
            f"a choice of shape {tuple(choice.keep_BT.shape)} for a prompt of "
            f"{tuple(seen.visual_BT.shape)}"
        )
    if choice.embeds_BTD is not None and choice.embeds_BTD.shape != seen.embeds_BTD.shape:
        raise InputError(
            f"embeddings of shape {tuple(choice.embeds_BTD.shape)} for a prompt of "
            f"{tuple(seen.embeds_BTD.shape)}"
        )
