"""What earlier steps of an episode a prompt repeats, and how many tokens of it.

Policies of arXiv 2309.15943 ("step history"): `none`; `state_action`, the paper's choice; `full`,
with the whole dialogue; and `summary`, with each step's dialogue shortened by one more model call
(in the code, not in the paper's table). The newest steps go in first, while prompt and history stay
within the limit; they are printed oldest first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from outlay.errors import InputError

Policy = Literal["none", "state_action", "full", "summary"]

HEAD = (
    "Earlier steps of this task, oldest first. Learn from them: do not repeat what failed, and "
    "avoid going round in circles.\n"
)


@dataclass(frozen=True)
class Past:
    """One finished step.

    Args:
        number: from 1.
        state: before the step, in one line.
        action: the plan that was taken.
        feedback: what the world reported.
        dialogue: what was said.
        summary: of the dialogue, where the policy asks for one.
    """

    number: int
    state: str
    action: str
    feedback: str = ""
    dialogue: str = ""
    summary: str = ""


def check_policy(policy: str) -> None:
    """Raise `InputError` for an unknown policy."""
    if policy not in get_args(Policy):
        raise InputError(f"history={policy!r}; choose one of {', '.join(get_args(Policy))}")


def past_lines(past: Past, policy: Policy) -> list[str]:
    """The lines of one step; those of a richer policy contain those of a poorer one."""
    if policy == "none":
        return []
    n = past.number
    lines = [f"State_{n}: {past.state}"]
    if policy == "full" and past.dialogue:
        lines.append(f"Dialogue_{n}: {past.dialogue}")
    if policy == "summary" and past.summary:
        lines.append(f"DialogueSummary_{n}: {past.summary}")
    lines.append(f"Action_{n}: {past.action}")
    if past.feedback:
        lines.append(f"EnvironmentFeedback_{n}: {past.feedback}")
    return lines


def history_text(
    pasts: Sequence[Past],
    policy: Policy,
    assemble: Callable[[str], str],
    *,
    count: Callable[[str], int],
    limit: int,
    fixed: str = "",
) -> str:
    """The history for one prompt: as many of the newest steps as fit.

    Args:
        pasts: oldest first.
        policy: what is told of a step.
        assemble: the whole prompt with a given history text in its place.
        count: tokens of a text.
        limit: tokens that prompt and history may have together.
        fixed: the part of the prompt that the robots did not write themselves: where this alone
            exceeds the limit, no step would ever fit.

    Raises:
        InputError: if `fixed` alone is longer than the limit.
    """
    if policy == "none":
        return ""
    if (size := count(fixed)) > limit:
        raise InputError(
            f"the prompt without any history has {size} tokens, history_tokens={limit}; raise "
            "history_tokens, take a smaller world, or history='none'"
        )
    if not pasts:
        return ""
    blocks: list[str] = []
    room = limit - count(assemble("")) - count(HEAD)
    for past in reversed(pasts):
        block = "\n".join(past_lines(past, policy)) + "\n"
        room -= count(block)
        if room < 0:
            break
        blocks.insert(0, block)
    # Tokens of parts need not sum to those of the whole: the whole decides.
    while blocks:
        text = HEAD + "".join(blocks)
        if count(assemble(text)) <= limit:
            return text
        blocks.pop(0)
    return ""
