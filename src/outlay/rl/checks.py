"""What users and methods hand to the trainer, checked.

Shapes: N rollouts of all processes, T tokens of a completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from trl.trainer.utils import is_async_callable

from outlay.errors import InputError
from outlay.rl.base import ADDED_KEYS, Context, RewardFunction

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor


def check_columns(dataset: Dataset, difficulty: str | None) -> None:
    """A data set has the columns that training reads, and none that it writes.

    Raises:
        InputError: otherwise.
    """
    columns = dataset.column_names
    if columns is None:
        return
    if "prompt" not in columns:
        raise InputError(f"the data set has no column 'prompt'; it has: {', '.join(columns)}")
    for name in ADDED_KEYS:
        if name in columns:
            raise InputError(f"the data set's column {name!r} is written by the trainer; rename it")
    if difficulty is not None and difficulty not in columns:
        raise InputError(
            f"difficulty={difficulty!r} is no column of the data set: {', '.join(columns)}"
        )


def check_advantages(given: Tensor, context: Context, name: str) -> None:
    """Advantages are finite, (N,) or (N, T), and zero on padding.

    Raises:
        InputError: otherwise.
    """
    n, width = len(context.rows), context.width
    if tuple(given.shape) not in ((n,), (n, width)):
        raise InputError(
            f"{name}.advantages() has shape {tuple(given.shape)}; give ({n},) or ({n}, {width})"
        )
    if not bool(torch.isfinite(given).all()):
        raise InputError(f"{name}.advantages() are not all finite")
    if given.dim() == 2:
        lengths_N = torch.tensor(context.lengths, device=given.device)
        padding_NT = torch.arange(width, device=given.device) >= lengths_N[:, None]
        if bool((given[padding_NT] != 0).any()):
            raise InputError(f"{name}.advantages() are not zero on padding")


def check_rewards(name: str, rewards: Sequence[float | None], n: int) -> None:
    """There is one finite number, or None, a completion.

    Raises:
        InputError: otherwise.
    """
    if len(rewards) != n:
        raise InputError(
            f"reward function {name} returned {len(rewards)} rewards for {n} completions; return "
            "one each"
        )
    for index, reward in enumerate(rewards):
        if reward is not None and not -float("inf") < reward < float("inf"):
            raise InputError(
                f"reward function {name} paid {reward} for completion {index}; pay a finite "
                "number, or None where it does not apply"
            )


def checked(function: RewardFunction) -> Any:
    """The same reward function, sync or async, whose results are checked; a model as it is."""
    if isinstance(function, str | torch.nn.Module):
        return function
    name = getattr(function, "__name__", type(function).__name__)

    if is_async_callable(function):

        async def asynchronous(*, completion_ids: list[list[int]], **columns: Any) -> Any:
            rewards = await function(completion_ids=completion_ids, **columns)  # type: ignore[misc]
            check_rewards(name, rewards, len(completion_ids))
            return rewards

        asynchronous.__name__ = name
        return asynchronous

    def synchronous(*, completion_ids: list[list[int]], **columns: Any) -> Any:
        rewards = function(completion_ids=completion_ids, **columns)
        check_rewards(name, rewards, len(completion_ids))
        return rewards

    synchronous.__name__ = name
    return synchronous
