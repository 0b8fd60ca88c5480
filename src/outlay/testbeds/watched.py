"""Progress bars over training steps, for the training commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Watch:
    """Called with every state that training reports (`step`, `loss`); keeps the last.

    Args:
        show: step and loss, on the bar.
    """

    def __init__(self, show: Callable[[int, float], None]) -> None:
        self._show = show
        self.last: Any = None

    def __call__(self, state: Any) -> None:
        """Show a state."""
        self._show(state.step, state.loss)
        self.last = state


def progress_bar() -> Progress:
    """A bar for tasks with a description and a field `loss`."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )


@contextmanager
def watched(steps: int) -> Iterator[Watch]:
    """A bar of `steps` steps that remembers the last state, while the context is open."""
    with progress_bar() as bar:
        job = bar.add_task("training", total=steps, loss=float("nan"))
        yield Watch(lambda step, loss: bar.update(job, completed=step, loss=loss))
