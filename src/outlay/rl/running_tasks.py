"""What a policy is trained on and judged by: a starting model, problems, a verifier, budgets.

A task is a frozen dataclass, so that a run can be named by a hash of it. `ChainTask` is the testbed
(`outlay.testbeds.chainarith_rl`). No torch at import.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from outlay.errors import BudgetError, InputError

if TYPE_CHECKING:
    from datasets import Dataset

    from outlay.rl.base import Verifier
    from outlay.rl.evaluate import Inference

Cut = Literal["thinking", "completion"]


class TrainingTask(Protocol):
    """What the grid and `outlay train rl` need to know about a task; a frozen dataclass."""

    @property
    def name(self) -> str:
        """In tables and pages."""

    @property
    def difficulty(self) -> str | None:
        """Column by which metrics are given in bins."""

    @property
    def longest(self) -> int:
        """`max_completion_length` where nobody sets it."""

    def load(self) -> tuple[Any, Any]:
        """The starting model and its tokenizer."""

    def train_rows(self) -> Dataset:
        """Problems to train on, with a column `prompt` and what the verifier reads."""

    def test_rows(self) -> Dataset:
        """Problems to judge by, none of them among `train_rows`."""

    def verifier(self, tokenizer: Any) -> Verifier:
        """Judges completions."""

    def inference(self, tokenizer: Any) -> Inference:
        """Budgets, temperatures and seeds of the evaluation."""

    def identity(self) -> dict[str, Any]:
        """What decides a run beside the fields: hashes of weights and files. JSON-ready."""


@dataclass(frozen=True)
class ChainTask:
    """ChainArith-RL: chains of one-digit operations, held-out problems, an exact verifier.

    Args:
        start: name of a shipped checkpoint, or a folder of one.
        train: problems to train on; their order depends on the run's seed.
        test: held-out problems, the operations in turn.
        ops: fewest and most operations.
        data_seed: of the training problems.
        test_seed: of the held-out ones.
        budget: base budget of the evaluation, in tokens; twice it cuts nothing.
        scales: budgets as multiples of it.
        cut: what a budget cuts: the "thinking" (the model is then made to answer), or the whole
            "completion".
        temperatures: 0 is greedy.
        eval_seeds: of sampled evaluations.
        longest: most tokens of a rollout.

    Raises:
        InputError: for an unknown cut, or fewer problems than one.
        BudgetError: for a budget below 1.
    """

    start: str = "sft"
    train: int = 4096
    test: int = 160
    ops: tuple[int, int] = (1, 8)
    data_seed: int = 0
    test_seed: int = 1
    budget: int = 56
    scales: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    cut: Cut = "thinking"
    temperatures: tuple[float, ...] = (0.0, 1.0)
    eval_seeds: tuple[int, ...] = (0,)
    longest: int = 112

    def __post_init__(self) -> None:
        if self.cut not in ("thinking", "completion"):
            raise InputError(f"cut={self.cut!r}; known are 'thinking' and 'completion'")
        if self.train < 1 or self.test < 1:
            raise InputError(f"train={self.train}, test={self.test}; both must be at least 1")
        if self.budget < 1 or self.longest < 1:
            raise BudgetError(
                f"budget={self.budget}, longest={self.longest}; both must be at least 1"
            )

    @property
    def name(self) -> str:
        """In tables and pages."""
        return "chainarith-rl"

    @property
    def difficulty(self) -> str:
        """Operations."""
        return "ops"

    def load(self) -> tuple[Any, Any]:
        """The policy after SFT."""
        from outlay.testbeds.chainarith_rl import load

        return load(Path(self.start) if Path(self.start).is_dir() else self.start)

    def train_rows(self) -> Dataset:
        """From the split "train"."""
        from outlay.testbeds.chainarith_rl import dataset

        return dataset(self.train, self.data_seed, self.ops, "train")

    def test_rows(self) -> Dataset:
        """From the split "heldout"."""
        from outlay.testbeds.chainarith_rl import dataset

        return dataset(self.test, self.test_seed, self.ops, "heldout")

    def verifier(self, tokenizer: Any) -> Verifier:
        """Exact."""
        from outlay.rl.verifiers import ChainArithVerifier

        return ChainArithVerifier()

    def inference(self, tokenizer: Any) -> Inference:
        """All budgets, greedy and sampled."""
        from outlay.rl.evaluate import Inference
        from outlay.testbeds.chainarith_rl import END_THINK, FORCED_END

        cuts = self.cut == "thinking"
        return Inference(
            budget=self.budget,
            scales=self.scales,
            temperatures=self.temperatures,
            seeds=self.eval_seeds,
            forced_ids=tuple(_ids(tokenizer, FORCED_END)) if cuts else (),
            end_of_thinking=tuple(_ids(tokenizer, END_THINK)) if cuts else (),
            answer_tokens=4,
            batch_size=80,
        )

    def identity(self) -> dict[str, Any]:
        """The hash of the starting weights."""
        from outlay.testbeds.chainarith_rl import checkpoint_path

        at = Path(self.start)
        return {"weights": weights_hash(at if at.is_dir() else checkpoint_path(self.start))}


def weights_hash(folder: Path) -> str:
    """SHA-256 over the safetensors files of a checkpoint; "" for none (a hub's name)."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest() if files else ""


def _ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found
