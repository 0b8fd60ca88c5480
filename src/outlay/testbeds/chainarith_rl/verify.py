"""What a completion says and what it cost: answer, style, tokens of thinking and answer.

A completion is read as a flat list of tokens after the open think tag: at most one budget tag, the
style's tag, the thinking, `</think><answer>`, a number and `<eos>`. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from outlay.errors import InputError
from outlay.testbeds.reasoner.tokenizer import (
    ANSWER,
    BUDGET_TAGS,
    CONTEXT,
    END_THINK,
    EOS,
    FORMATS,
    PAD,
    TAGS,
    WAIT,
    build_tokenizer,
    vocabulary,
)

MAX_CHARACTERS = 100_000
_STYLES = {f"<{name}>": name for name in FORMATS}
_NESTED = {*TAGS, WAIT}


@dataclass(frozen=True)
class Verdict:
    """One completion, judged.

    Args:
        right: the text after the last answer tag is exactly the answer.
        given: the text after the last answer tag, None without that tag.
        style: named by the first tag (after a budget tag), None without one.
        budget: the budget tag that it starts with, None without one.
        thinking_tokens: before the first `</think>` (all of them without one); style and budget
            tags included.
        answer_tokens: the rest, with `</think>`, the answer tag and `<eos>`.
        truncated: it did not end by `<eos>`.
        well_formed: it follows the grammar exactly, once each: budget tag (optional), style,
            thinking without tags, end tag, answer tag, number, `<eos>`.
    """

    right: bool
    given: str | None
    style: str | None
    budget: str | None
    thinking_tokens: int
    answer_tokens: int
    truncated: bool
    well_formed: bool

    @property
    def tokens(self) -> int:
        """All tokens of the completion, `<eos>` included."""
        return self.thinking_tokens + self.answer_tokens


@cache
def _names() -> dict[int, str]:
    return {index: token for token, index in vocabulary().items()}


@cache
def _tokenizer() -> Any:
    return build_tokenizer()


def _read(completion: str | Sequence[int]) -> list[str]:
    if isinstance(completion, str):
        if len(completion) > MAX_CHARACTERS:
            raise InputError(f"a completion of {len(completion)} characters; cut it first")
        try:
            ids = _tokenizer()(completion)["input_ids"]
        except Exception as error:  # tokenizers raises nothing narrower
            raise InputError(
                f"{completion[:40]!r}... has a character that this testbed's tokenizer lacks"
            ) from error
    else:
        ids = [int(token) for token in completion]
    if len(ids) > CONTEXT:
        raise InputError(f"a completion of {len(ids)} tokens; the context holds {CONTEXT}")
    unknown = [token for token in ids if token not in _names()]
    if unknown:
        raise InputError(f"token id {unknown[0]} is not in this testbed's vocabulary")
    tokens = [_names()[token] for token in ids]
    if EOS in tokens:
        return tokens[: tokens.index(EOS) + 1]
    return [token for token in tokens if token != PAD]


def verify(completion: str | Sequence[int], answer: str, *, prefill: str = "") -> Verdict:
    """Judge one completion.

    Args:
        completion: token ids (`<pad>` after the end is ignored), or text decoded with its special
            tokens: without `<eos>` a completion counts as truncated.
        answer: the right one.
        prefill: what the prompt held after the think tag, such as `<short>` or a cut thinking with
            `FORCED_END`; it is read, and counted, as if the policy had written it.

    Raises:
        InputError: for ids or characters that the tokenizer does not know, or a completion longer
            than the context.
    """
    tokens = _read(completion)
    if prefill:
        tokens = _read(prefill) + tokens
    truncated = not tokens or tokens[-1] != EOS
    budget = tokens[0] if tokens and tokens[0] in BUDGET_TAGS else None
    rest = tokens[1:] if budget else tokens
    style = _STYLES.get(rest[0]) if rest else None
    thinking = tokens.index(END_THINK) if END_THINK in tokens else len(tokens)
    given = None
    if ANSWER in tokens:
        last = len(tokens) - 1 - tokens[::-1].index(ANSWER)
        given = "".join(token for token in tokens[last + 1 :] if token != EOS)
    closed = tokens[thinking:]
    head = rest[1 : len(rest) - len(closed)]
    well_formed = (
        style is not None
        and not _NESTED.intersection(head)
        and len(closed) == 4
        and closed[1] == ANSWER
        and re.fullmatch(r"\d+", closed[2]) is not None
        and closed[3] == EOS
    )
    return Verdict(
        right=given == answer,
        given=given,
        style=style,
        budget=budget,
        thinking_tokens=thinking,
        answer_tokens=len(closed),
        truncated=truncated,
        well_formed=well_formed,
    )


def correct(
    completion_ids: Sequence[Sequence[int]], answer: Sequence[str], **_: object
) -> list[float]:
    """Reward function for TRL: 1 for a right answer, else 0.

    Args:
        completion_ids: of every completion; TRL gives them.
        answer: column of the dataset.
    """
    return [
        float(verify(ids, given).right) for ids, given in zip(completion_ids, answer, strict=True)
    ]
