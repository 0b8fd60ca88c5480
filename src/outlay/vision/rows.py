"""Which tokens of a prompt are still there, and what that does to masks, positions and caches.

Three numberings: a token's place in the prompt (T), among those that entered the decoder (M), and
among those that a layer has (m). Rows that let different numbers in are padded on the left.

B rows, T prompt tokens, M that entered, m that a layer has, N visual ones of those, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from outlay.errors import CapabilityError
from outlay.vision.base import Living, Positions, Seen, true_places


class Rows:
    """The state of one prompt on its way through the decoder, and of its cache after.

    Args:
        seen: the prompt.
        keep_BT: what enters.
        layers: of the decoder.
    """

    def __init__(self, seen: Seen, keep_BT: Tensor, layers: int) -> None:
        self.keep_BT = keep_BT
        self.decoding = False
        self.prompt = keep_BT.shape[1]
        # The host waits once, for the counts that decide shapes.
        counts = torch.stack(
            [
                part.sum(1)
                for part in (
                    keep_BT,
                    keep_BT & seen.visual_BT,
                    keep_BT & seen.valid_BT,
                    seen.visual_BT,
                    seen.text,
                )
            ]
        ).tolist()
        kept, self.entered_counts, valid, self.total, self.text = counts
        self.everything = min(kept) == self.prompt
        self.length = max(kept)
        self.padded = min(valid) < self.length
        order_BT = keep_BT.to(torch.int8).sort(dim=1, stable=True).indices  # dropped ones first
        self.from_BM = order_BT[:, self.prompt - self.length :]
        self.real_BM = keep_BT.gather(1, self.from_BM)
        self.valid_BM = self.real_BM & seen.valid_BT.gather(1, self.from_BM)
        visual_BM = self.real_BM & seen.visual_BT.gather(1, self.from_BM)
        self.text_BM = self.valid_BM & ~visual_BM
        self._number_BM = (seen.visual_BT.cumsum(1) - 1).gather(1, self.from_BM)
        self._visual_BM = visual_BM
        # Alive in the current layer, as places among those that entered.
        self.alive_Bm = torch.arange(self.length, device=keep_BT.device).expand(len(keep_BT), -1)
        self._by_layer: list[Tensor | None] = [None] * layers
        self._visual_counts = list(self.entered_counts)
        self._entered_valid_BM = self.valid_BM
        self._cut: dict[str, tuple[Any, Any]] = {}  # what a layer was given, and cut to

    @property
    def visual(self) -> Tensor:
        """(B, N): places of the visual tokens among the layer's; rows have equally many."""
        mask_Bm = self._visual_BM.gather(1, self.alive_Bm)
        return true_places(mask_Bm, self._visual_counts[0])

    @property
    def alive(self) -> Tensor:
        """(B, N): the same tokens, numbered among the row's original visual ones."""
        return self._number_BM.gather(1, self.alive_Bm).gather(1, self.visual)

    def snapshot(self) -> Living:
        """The visual tokens that the layer has."""
        return Living(
            self._visual_BM.gather(1, self.alive_Bm),
            self._number_BM.gather(1, self.alive_Bm),
            list(self._visual_counts),
        )

    def shorten(self, kwargs: dict[str, Any], positions: Positions) -> None:
        """Cut a prompt's embeddings, mask and positions to what enters."""
        mask = kwargs.get("attention_mask")
        place = kwargs.get("position_ids")
        if self.everything:
            return
        if isinstance(mask, dict) or (mask is not None and mask.ndim == 4):
            raise CapabilityError(
                "tokens cannot be dropped before the decoder under a ready-made 4-D mask; give "
                "the 2-D attention mask"
            )
        embeds_BTD = kwargs["inputs_embeds"]
        index = self.from_BM[..., None].expand(-1, -1, embeds_BTD.shape[-1])
        kwargs["inputs_embeds"] = embeds_BTD.gather(1, index)
        if mask is not None or self.padded:
            kwargs["attention_mask"] = self.valid_BM.long()
        kwargs["position_ids"] = self._positions(place, positions)

    def _positions(self, place: Tensor | None, positions: Positions) -> Tensor:
        if positions == "compact":
            if place is not None and place.ndim == 3:
                raise CapabilityError(
                    "positions='compact' has no meaning for positions in several dimensions; "
                    "use positions='original'"
                )
            return (self.valid_BM.cumsum(1) - 1).clamp_min(0)
        if place is None:
            place = torch.arange(self.prompt, device=self.from_BM.device)[None]
        wanted = (*place.shape[:-2], *self.from_BM.shape)
        place = place.expand(*place.shape[:-2], len(self.from_BM), -1)
        return place.gather(-1, self.from_BM.expand(wanted)) * self.real_BM

    def continue_with(self, kwargs: dict[str, Any], positions: Positions) -> None:
        """Cut the 2-D mask of a later call to what the cache holds, and fix positions."""
        if self.everything:
            return
        mask, place = kwargs.get("attention_mask"), kwargs.get("position_ids")
        cache, size = kwargs["cache"], len(self.from_BM)
        new = kwargs["inputs_embeds"].shape[1]
        past = cache.get_seq_length() - self.length  # tokens after the prompt
        if mask is not None:
            if isinstance(mask, dict) or mask.ndim != 2:
                raise CapabilityError("give the 2-D attention mask while tokens are dropped")
            kwargs["attention_mask"] = torch.cat(
                [self._for(mask).to(mask.dtype), mask[:, self.prompt :]], dim=1
            )
        elif self.padded:
            tail = torch.ones(size, past + new, device=self.from_BM.device, dtype=torch.long)
            kwargs["attention_mask"] = torch.cat([self._entered_valid_BM.long(), tail], dim=1)
        if place is None:
            start = self.prompt + past
            place = torch.arange(start, start + new, device=self.from_BM.device)[None]
            place = place.expand(size, -1)
        if positions == "compact":
            gone = (~self.keep_BT).sum(1, keepdim=True)
            place = place - _expanded(gone, place)
        kwargs["position_ids"] = place

    def _for(self, mask: Tensor) -> Tensor:
        """(B, M) of the mask's rows: beams repeat rows."""
        valid = self._entered_valid_BM
        return (
            valid
            if len(valid) == len(mask)
            else valid.repeat_interleave(len(mask) // len(valid), 0)
        )

    def cut_layer(self, kwargs: dict[str, Any], index: int) -> None:
        """In a prompt: cut what the model's loop passes to a layer to the tokens alive there.

        The loop passes the same tensors to every layer, so that each is cut once for all layers
        that have the same tokens.
        """
        alive_Bm = self.alive_Bm
        self._by_layer[index] = alive_Bm
        if alive_Bm.shape[1] == self.length:
            return
        for name, cut in (
            ("attention_mask", self._cut_mask),
            ("position_embeddings", self._cut_rotary),
            ("position_ids", self._cut_places),
        ):
            given = kwargs.get(name)
            if given is None:
                continue
            source, made = self._cut.get(name, (None, None))
            if source is not given:
                made = cut(given)
                self._cut[name] = (given, made)
            kwargs[name] = made

    def _cut_mask(self, mask: Any) -> Tensor:
        alive_Bm = self.alive_Bm
        _need_dense(mask)
        keys = alive_Bm[:, None, None].expand(-1, mask.shape[1], mask.shape[2], -1)
        mask = mask.expand(len(alive_Bm), -1, -1, -1).gather(3, keys)
        rows = alive_Bm[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3])
        found: Tensor = mask.gather(2, rows)
        return found

    def _cut_rotary(self, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        size = (len(self.alive_Bm), -1, -1)
        pick = self.alive_Bm[..., None].expand(-1, -1, rotary[0].shape[-1])
        return tuple(part.expand(size).gather(1, pick) for part in rotary)

    def _cut_places(self, place: Tensor) -> Tensor:
        return place.expand(len(self.alive_Bm), -1).gather(1, self.alive_Bm)

    def cut_keys(self, kwargs: dict[str, Any], index: int) -> None:
        """After the prompt: cut a 4-D mask's keys to what the layer's cache holds."""
        alive_Bm = self._by_layer[index]
        mask = kwargs.get("attention_mask")
        if alive_Bm is None or mask is None or alive_Bm.shape[1] == self.length:
            return
        _need_dense(mask)
        if len(mask) > len(alive_Bm):  # beams repeat rows
            alive_Bm = alive_Bm.repeat_interleave(len(mask) // len(alive_Bm), 0)
        keep = torch.cat(
            [
                alive_Bm,
                torch.arange(self.length, mask.shape[3], device=mask.device).expand(
                    len(alive_Bm), -1
                ),
            ],
            dim=1,
        )
        mask = mask.expand(len(alive_Bm), -1, -1, -1)
        index_Bk = keep[:, None, None].expand(-1, mask.shape[1], mask.shape[2], -1)
        kwargs["attention_mask"] = mask.gather(3, index_Bk)

    def keep_visual(self, hidden_BmD: Tensor, best_Bn: Tensor) -> Tensor:
        """Go on with these visual tokens (indices among the layer's visual ones) and all else."""
        visual_BN = self.visual
        stay = torch.ones(hidden_BmD.shape[:2], dtype=torch.bool, device=hidden_BmD.device)
        stay.scatter_(1, visual_BN, False)
        stay.scatter_(1, visual_BN.gather(1, best_Bn), True)
        gone = visual_BN.shape[1] - best_Bn.shape[1]
        at_Bm = true_places(stay, stay.shape[1] - gone)
        self.alive_Bm = self.alive_Bm.gather(1, at_Bm)
        self._visual_counts = [best_Bn.shape[1]] * len(stay)
        self._cut = {}
        for name in ("valid_BM", "text_BM"):
            setattr(self, name, getattr(self, name).gather(1, at_Bm))
        return hidden_BmD.gather(1, at_Bm[..., None].expand(-1, -1, hidden_BmD.shape[-1]))

    def spread_entered(self, hidden_BmD: Tensor) -> Tensor:
        """Back to the length that entered, zeros at what was dropped between layers."""
        if hidden_BmD.shape[1] == self.length:
            return hidden_BmD
        return _scatter(hidden_BmD, self.alive_Bm, self.length)

    def spread_prompt(self, hidden_BMD: Tensor) -> Tensor:
        """Back to the prompt's length, zeros at what did not enter."""
        self._cut = {}
        if self.everything:
            return hidden_BMD
        shown = hidden_BMD * self.real_BM[..., None]
        return _scatter(shown, self.from_BM, self.prompt)


def _scatter(hidden: Tensor, at: Tensor, length: int) -> Tensor:
    spread = hidden.new_zeros(len(hidden), length, hidden.shape[-1])
    return spread.scatter(1, at[..., None].expand(-1, -1, hidden.shape[-1]), hidden)


def _need_dense(mask: Any) -> None:
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        raise CapabilityError(
            "layers drop tokens under eager or SDPA attention only; load the model with "
            "attn_implementation='sdpa'"
        )


def _expanded(gone_B1: Tensor, place: Tensor) -> Tensor:
    repeats = place.shape[-2] // len(gone_B1)
    return gone_B1.repeat_interleave(repeats, 0) if repeats > 1 else gone_B1
