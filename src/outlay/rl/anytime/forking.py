"""Answers at several cuts of a thinking without a second pass over it.

While thinkings are sampled, their keys and values are kept (`recorded`). A cut is a slice of these:
the rows that are cut together are cropped, read the template once, are repeated for every answer,
and go on. Only templates and answers are computed; the question and the thinking are not (section
3.2 of arXiv 2505.13438 has this from a server's prefix caching).

The last token of a cut is fed again, because the last token of a thinking was sampled but never
read.

Shapes: B thinkings, F forks, R answers, L cached tokens, U tokens of a template.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from outlay.errors import InputError
from outlay.rl.anytime.outcomes import Fork

if TYPE_CHECKING:
    from torch import Tensor

AT_ONCE = 512  # answers that are sampled together


@dataclass(frozen=True)
class Spent:
    """Tokens of answers.

    Args:
        answers: how many were sampled.
        generated: their tokens.
        computed: tokens that the model read before them.
        reused: tokens before them whose keys and values were there already.
        once: tokens that reading every cut once anew would take.
        anew: tokens that reading every answer's prefix anew would take.
    """

    answers: int = 0
    generated: int = 0
    computed: int = 0
    reused: int = 0
    once: int = 0
    anew: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.answers + other.answers,
            self.generated + other.generated,
            self.computed + other.computed,
            self.reused + other.reused,
            self.once + other.once,
            self.anew + other.anew,
        )

    @property
    def ratio(self) -> float | None:
        """Tokens computed against reading every cut once anew, answers included on both sides."""
        whole = self.once + self.generated
        return (self.computed + self.generated) / whole if whole else None

    @property
    def ratio_anew(self) -> float | None:
        """The same against reading the prefix of every answer anew."""
        whole = self.anew + self.generated
        return (self.computed + self.generated) / whole if whole else None


@dataclass
class Record:
    """Keys and values of the rows that a model has just sampled.

    Args:
        cache: as the model left it; None if it kept none.
        mask_BP: of the questions, left-padded.
    """

    cache: Any = None
    mask_BP: Tensor | None = None
    calls: int = field(default=0)

    @property
    def usable(self) -> bool:
        """Every layer keeps all tokens, so that it can be cropped."""
        layers = getattr(self.cache, "layers", None)
        if not layers or self.mask_BP is None:
            return False
        return all(type(layer) is DynamicLayer and layer.is_initialized for layer in layers)


@contextmanager
def recorded(model: Any) -> Iterator[Record]:
    """Keep the cache of the `generate` call inside.

    Args:
        model: of transformers; the one whose forward `generate` calls.
    """
    record = Record()

    def keep(_: Any, __: Any, named: dict[str, Any], output: Any) -> None:
        record.cache = getattr(output, "cache", None)
        if record.calls == 0:
            mask_BP = named.get("attention_mask")  # left out where nothing is padded
            record.mask_BP = torch.ones_like(named["input_ids"]) if mask_BP is None else mask_BP
        record.calls += 1

    handle = model.register_forward_hook(keep, with_kwargs=True)
    try:
        yield record
    finally:
        handle.remove()


@torch.no_grad()
def fork(
    model: Any,
    record: Record,
    prompts: Sequence[Sequence[int]],
    thinkings: Sequence[Sequence[int]],
    forks: Sequence[Fork],
    config: Any,
    most: int,
    at_once: int = AT_ONCE,
) -> tuple[list[list[list[int]]], Spent]:
    """Sample answers from cuts of recorded thinkings.

    Args:
        model: that sampled them, unchanged since.
        record: of that call, one row a thinking.
        prompts: questions of the thinkings.
        thinkings: tokens.
        forks: where and how often.
        config: a `GenerationConfig` for the answers.
        most: new tokens of an answer.
        at_once: most answers that are sampled together.

    Raises:
        InputError: for a record that cannot be cropped, or a cut beyond what was recorded.
    """
    if not record.usable or record.mask_BP is None or len(record.mask_BP) != len(thinkings):
        raise InputError(
            "no keys and values of these thinkings; record the generate() that made them"
        )
    have = record.cache.get_seq_length() - record.mask_BP.shape[1]
    for one in forks:
        if not 1 <= one.cut <= min(have + 1, len(thinkings[one.row])):
            raise InputError(
                f"cut={one.cut} of a thinking of {len(thinkings[one.row])} tokens, of which {have} "
                "were recorded"
            )
    settings = copy(config)
    settings.max_new_tokens = most
    found: list[list[list[int]]] = [[] for _ in forks]
    spent = Spent()
    for part in _parts(forks, at_once):
        group = [replace(forks[at], copies=copies) for at, copies in part]
        answers = _sample(model, record, prompts, thinkings, group, settings)
        for (at, _), given in zip(part, answers, strict=True):
            found[at] += given
            spent += Spent(answers=len(given), generated=sum(map(len, given)))
    for one in forks:
        kept, read = len(prompts[one.row]) + one.cut - 1, len(one.suffix) + 1
        spent += Spent(
            computed=read - 1 + one.copies,
            reused=kept * one.copies,
            once=kept + read,
            anew=(kept + read) * one.copies,
        )
    return found, spent


def _parts(forks: Sequence[Fork], at_once: int) -> list[list[tuple[int, int]]]:
    """Forks (index and copies) that are sampled together: of similar cuts, few enough."""
    parts: list[list[tuple[int, int]]] = []
    room = 0
    for at in sorted(range(len(forks)), key=lambda at: (forks[at].cut, at)):
        left = forks[at].copies
        while left:
            if room == 0:
                parts.append([])
                room = at_once
            taken = min(left, room)
            parts[-1].append((at, taken))
            left -= taken
            room -= taken
    return parts


def _sample(
    model: Any,
    record: Record,
    prompts: Sequence[Sequence[int]],
    thinkings: Sequence[Sequence[int]],
    forks: Sequence[Fork],
    settings: Any,
) -> list[list[list[int]]]:
    assert record.mask_BP is not None
    device = record.mask_BP.device
    before = record.mask_BP.shape[1]
    kept = before + max(one.cut for one in forks) - 1
    rows_F = torch.tensor([one.row for one in forks], device=device)
    tails = [[thinkings[one.row][one.cut - 1], *one.suffix] for one in forks]
    longest = max(map(len, tails))
    # [question | thinking, hidden beyond the cut | template, left-padded]
    ids_FS = torch.full((len(forks), kept + longest), settings.pad_token_id or 0, device=device)
    mask_FS = torch.zeros_like(ids_FS)
    mask_FS[:, :before] = record.mask_BP[rows_F]
    for at, (one, tail) in enumerate(zip(forks, tails, strict=True)):
        asked = list(prompts[one.row])
        ids_FS[at, before - len(asked) : before] = torch.tensor(asked, device=device)
        inside = slice(before, before + one.cut - 1)
        ids_FS[at, inside] = torch.tensor(thinkings[one.row][: one.cut - 1], device=device).long()
        mask_FS[at, inside] = 1
        ids_FS[at, kept + longest - len(tail) :] = torch.tensor(tail, device=device)
        mask_FS[at, kept + longest - len(tail) :] = 1
    cache = DynamicCache(config=model.config)
    for number, layer in enumerate(record.cache.layers):
        cache.update(layer.keys[rows_F, :, :kept], layer.values[rows_F, :, :kept], number)
    if longest > 1:
        # Once a cut; its answers begin with the template's last token.
        positions_FS = (mask_FS.cumsum(1) - 1).clamp(min=0)
        read = slice(kept, kept + longest - 1)
        model(
            input_ids=ids_FS[:, read],
            attention_mask=mask_FS[:, :-1],
            position_ids=positions_FS[:, read],
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    copies_F = torch.tensor([one.copies for one in forks], device=device)
    owner_R = torch.arange(len(forks), device=device).repeat_interleave(copies_F)
    cache.batch_select_indices(owner_R)
    output_RS = model.generate(
        input_ids=ids_FS[owner_R],
        attention_mask=mask_FS[owner_R],
        cache=cache,
        generation_config=settings,
    )
    ends = settings.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    answers: list[list[list[int]]] = [[] for _ in forks]
    new = output_RS[:, kept + longest :].tolist()
    for owner, ids in zip(owner_R.tolist(), new, strict=True):
        stop = next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))
        answers[owner].append(ids[:stop])
    return answers
