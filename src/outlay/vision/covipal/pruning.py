"""Removal as it is deployed: modules (or given scores) rank tokens, a dropper takes the rest out.

B rows, T prompt tokens, N visual tokens of a row, M that entered the decoder, K of one image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from outlay.errors import InputError
from outlay.vision.base import Choice, Kept, Positions, Ranking, Seen, top
from outlay.vision.counts import check_rate, half_up, staircase
from outlay.vision.covipal.places import places
from outlay.vision.covipal.ppm import PPM
from outlay.vision.covipal.tokens import Tokens, gather, shown
from outlay.vision.dropper import Dropper
from outlay.vision.parts import parts

Ratio = float | tuple[float, ...]
ALMOST_ALL = 1 - 1e-9


@dataclass(frozen=True)
class Amount:
    """How many visual tokens live.

    Args:
        stairs: (layer, reserve ratio) of the original tokens, rising and falling.
        per_image: reserve ratio of each image of a row, before layer 0; None ranks all of a row's
            tokens together.
        max_tokens: most tokens of a row; None is no limit.
        min_keep: least tokens of a row; 0 refuses a ratio that rounds to none.
    """

    stairs: tuple[tuple[int, float], ...]
    per_image: tuple[float, ...] | None = None
    max_tokens: int | None = None
    min_keep: int = 1

    def of(self, ratio: float, n: int) -> int:
        """Tokens that stay of `n`: half up, within the limits.

        Raises:
            InputError: if none would stay.
        """
        if ratio == 1 and self.max_tokens is None:
            return n
        k = max(half_up(ratio * n), self.min_keep)
        k = k if self.max_tokens is None else min(k, self.max_tokens)
        if k < 1:
            raise InputError(
                f"ratio={ratio:g} of {n} visual tokens rounds to none; raise ratio, or set "
                "min_keep=1"
            )
        return min(k, n)


def amount(
    ratio: Ratio,
    schedule: Sequence[tuple[int, float]],
    prune_layer: int,
    max_tokens: int | None,
    min_keep: int,
) -> Amount:
    """Knobs, checked.

    Raises:
        InputError: names the knob.
    """
    if max_tokens is not None:
        _whole("max_tokens", max_tokens, 1)
    _whole("min_keep", min_keep, 0)
    if max_tokens is not None and min_keep > max_tokens:
        raise InputError(f"min_keep={min_keep} is more than max_tokens={max_tokens}")
    _whole("prune_layer", prune_layer, 0)
    per_image = tuple(ratio) if isinstance(ratio, tuple | list) else None
    if schedule:
        if per_image is not None:
            raise InputError("schedule has its own ratios; give ratio or schedule")
        stairs = tuple((layer, rate) for layer, rate in schedule)
    else:
        stairs = ((prune_layer, 1.0 if isinstance(ratio, tuple | list) else ratio),)
    if per_image is not None:
        if prune_layer != 0:
            raise InputError(
                f"a ratio for each image needs prune_layer=0, not {prune_layer}: layers drop the "
                "same number from every row"
            )
        if not per_image:
            raise InputError("ratio=() names no image; give one ratio for each, or a number")
        for value in per_image:
            check_rate(value, "ratio")
    last = 1.0
    for index, (layer, rate) in enumerate(stairs):
        check_rate(rate, "ratio" if not schedule else f"schedule[{index}]")
        _whole(f"layer of schedule[{index}]", layer, 0)
        if index and layer <= stairs[index - 1][0]:
            raise InputError(f"schedule={tuple(stairs)}; layers must rise")
        if rate > last:
            raise InputError(
                f"schedule={tuple(stairs)}; ratios must not grow: a dropped token cannot come back"
            )
        last = rate
    return Amount(stairs, per_image, max_tokens, min_keep)


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}={value!r}; need an int >= {least}")


Scores = Callable[[int, Tokens, Tensor], Tensor]
"""Layer, streams, numbers (B, N) of the visual tokens in the original prompt -> scores (B, N)."""


def of_modules(ppms: Mapping[int, PPM]) -> Scores:
    """Scores by trained modules."""

    @torch.no_grad()
    def scores(layer: int, tokens: Tokens, alive_BN: Tensor) -> Tensor:
        return tokens.scores(ppms[layer])

    return scores


def given(scores_BN: Tensor) -> Scores:
    """Scores that are known for every original token, such as a deeper layer's true attention.

    Args:
        scores_BN: of a batch, rows filled up at their ends.
    """

    def scores(layer: int, tokens: Tokens, alive_BN: Tensor) -> Tensor:
        if len(scores_BN) != len(alive_BN) or scores_BN.shape[1] <= int(alive_BN.max()):
            raise InputError(
                f"scores of shape {tuple(scores_BN.shape)} for {len(alive_BN)} rows of up to "
                f"{int(alive_BN.max()) + 1} visual tokens"
            )
        return scores_BN.to(alive_BN.device).gather(1, alive_BN)

    return scores


class Pruning:
    """A context in which prompts lose the visual tokens that scored least.

    Args:
        model: a vision-language model.
        much: how many stay.
        scores: ranks them.
        positions: of tokens that enter the decoder.
        hide: (B, T) True at text that scores must not depend on: a known answer's.

    Raises:
        CapabilityError: for a model without vision tower or decoder layers.
        InputError: for a layer that does not exist.
    """

    def __init__(
        self,
        model: Any,
        much: Amount,
        scores: Scores,
        positions: Positions = "original",
        hide: Tensor | None = None,
    ) -> None:
        self.parts = parts(model)
        self.hide = hide
        self.much, self.scores = much, scores
        stairs = dict(much.stairs)
        self.entry = stairs.pop(0, None)
        if much.max_tokens is not None:  # a limit may bind where the ratio does not
            stairs = {layer: min(ratio, ALMOST_ALL) for layer, ratio in stairs.items()}
        rates = staircase(stairs, self.parts.num_layers)
        self.dropper = _Counted(
            model,
            much,
            choose=self._choose,
            rates=rates,
            score=self._score if stairs else None,
            positions=positions,
        )
        self._places: Tensor | None = None
        self._text_BS: Tensor | None = None  # of the prompt's text in order, what may be read
        self._position_ids: Tensor | None = None
        self._prefills = 0
        self._handles: list[Any] = []

    def __enter__(self) -> Kept:
        decoder = self.parts.decoder
        self._handles = [decoder.register_forward_pre_hook(self._start, with_kwargs=True)]
        try:
            kept = self.dropper.__enter__()
        except BaseException:
            self._close()
            raise
        self._handles.append(decoder.register_forward_pre_hook(self._check, with_kwargs=True))
        return kept

    def __exit__(self, *_: object) -> None:
        self._close()
        self.dropper.__exit__()

    def _close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _start(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._position_ids = kwargs.get("position_ids")
        self._prefills = self.dropper.kept.prefills

    def _check(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("cache")
        first = cache is None or cache.get_seq_length() == 0
        if first and self.dropper.kept.prefills == self._prefills:
            raise InputError(
                "no image in the prompt; CoViPAL prunes visual tokens: run text without it"
            )

    def _choose(self, seen: Seen) -> Choice:
        places_BT3 = places(seen, self.parts, self._position_ids)
        device = seen.visual_BT.device
        rows = [0] * len(seen.visual_BT)
        for picture in seen.pictures:
            rows[picture.row] += len(picture.host_K)
        front_BN = (~seen.visual_BT).to(torch.int8).sort(dim=1, stable=True).indices
        front_BN = front_BN[:, : max(rows)]
        index = front_BN[..., None].expand(-1, -1, 3)
        self._places = places_BT3.gather(1, index)
        text_BT = shown(seen.text, self.hide)
        words = int(seen.text.sum(1).max())
        front_BS = (~seen.text).to(torch.int8).sort(dim=1, stable=True).indices[:, :words]
        self._text_BS = text_BT.gather(1, front_BS)
        if self.entry is None:
            return Choice(torch.ones_like(seen.visual_BT))
        wanted = self._wanted(seen, rows)
        if all(k == n for row in wanted for k, n in row):
            return Choice(torch.ones_like(seen.visual_BT))
        tokens = gather(seen.embeds_BTD, seen.visual_BT, text_BT, places_BT3)
        number_BN = torch.arange(tokens.visual_BN.shape[1], device=device)
        number_BN = number_BN.expand(len(tokens.visual_BN), -1)
        score_BN = self.scores(0, tokens, number_BN * tokens.visual_BN)
        keep_BT = ~seen.visual_BT
        if all(row == wanted[0] for row in wanted) and len(wanted[0]) == 1:  # all at once
            best_Bk = top(score_BN, wanted[0][0][0])
            keep_BT.scatter_(1, tokens.at_BN.gather(1, best_Bk), True)
            return Choice(keep_BT, scores=_by_picture(seen, score_BN))
        for row, parts_of_row in enumerate(wanted):
            start = 0
            for k, n in parts_of_row:
                best = start + top(score_BN[row, start : start + n][None], k)[0]
                keep_BT[row, tokens.at_BN[row, best]] = True
                start += n
        return Choice(keep_BT, scores=_by_picture(seen, score_BN))

    def _wanted(self, seen: Seen, rows: Sequence[int]) -> list[list[tuple[int, int]]]:
        """Of each row, (tokens that stay, tokens) of the sets that are ranked together."""
        assert self.entry is not None
        if self.much.per_image is None:
            return [[(self.much.of(self.entry, n), n)] if n else [] for n in rows]
        of_row: list[list[int]] = [[] for _ in rows]
        for picture in seen.pictures:
            of_row[picture.row].append(len(picture.at_K))
        for row, sizes in enumerate(of_row):
            if len(sizes) != len(self.much.per_image):
                raise InputError(
                    f"ratio has {len(self.much.per_image)} entries and row {row} of the batch has "
                    f"{len(sizes)} images; give one ratio for each image, or one number for all"
                )
        return [
            [(self.much.of(r, n), n) for r, n in zip(self.much.per_image, sizes, strict=True)]
            for sizes in of_row
        ]

    def _score(self, seen: Ranking) -> Tensor:
        assert self._places is not None
        assert self._text_BS is not None
        at_BND = seen.visual_BN[..., None].expand(-1, -1, seen.hidden_BMD.shape[-1])
        alive_BN3 = seen.alive_BN[..., None].expand(-1, -1, 3)
        most = int(seen.text_BM.sum(1).max())
        order_BS = (~seen.text_BM).to(torch.int8).sort(dim=1, stable=True).indices[:, :most]
        at_BSD = order_BS[..., None].expand(-1, -1, seen.hidden_BMD.shape[-1])
        tokens = Tokens(
            seen.hidden_BMD.gather(1, at_BND),
            self._places.gather(1, alive_BN3),
            torch.ones_like(seen.visual_BN, dtype=torch.bool),
            seen.hidden_BMD.gather(1, at_BSD),
            self._text_BS,
            seen.visual_BN,
        )
        return self.scores(seen.layer, tokens, seen.alive_BN)


class _Counted(Dropper):
    """A dropper whose counts between layers keep to absolute limits, too."""

    def __init__(self, model: Any, much: Amount, **knobs: Any) -> None:
        super().__init__(model, **knobs)
        self.much = much

    def _plan(self) -> list[int] | None:
        found = super()._plan()
        if found is None:
            return None
        total = self.kept.total[0]
        most = found[0]  # what entered
        return [min(most, self.much.of(rate, total)) if rate < 1 else most for rate in self.rates]


def _by_picture(seen: Seen, score_BN: Tensor) -> list[Tensor]:
    start: dict[int, int] = {}
    found = []
    for picture in seen.pictures:
        first = start.get(picture.row, 0)
        start[picture.row] = first + len(picture.at_K)
        found.append(score_BN[picture.row, first : start[picture.row]].detach())
    return found
