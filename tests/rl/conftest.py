"""Training here is small: one thread is fastest, and equal seeds give equal runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from recording import Recorder


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    """A trainer whose batches and losses are looked at one by one."""
    from trainer_runs import budgeted, short

    from outlay.rl import Plain

    return budgeted(Plain(rewards=(short,)), tmp_path_factory.mktemp("shared"))
