"""Tasks beyond the testbed: reasoning-gym by name, and data sets in files. No torch at import."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.errors import BudgetError, DependencyError, InputError, ModelError
from outlay.rl.running_tasks import weights_hash

if TYPE_CHECKING:
    from datasets import Dataset

    from outlay.rl.base import Verifier
    from outlay.rl.evaluate import Inference

MAX_FILE = 1_000_000_000  # bytes
MAX_ROWS = 1_000_000


@dataclass(frozen=True)
class ModelTask:
    """What tasks with a model of one's own share.

    Args:
        model: a folder, a hub's name, or "embedded".
        train: problems to train on, at most.
        test: held-out problems.
        data_seed: of the choice of problems.
        end_of_thinking: text that ends the model's thinking; "" for models that do not think.
        thinking_opened: the chat template opens the thinking.
        forced: text that ends the thinking where a budget does; "" to cut the whole completion.
        answer_tokens: most tokens after a forced end.
        budget: base budget of the evaluation.
        scales: budgets as multiples of it.
        temperatures: 0 is greedy.
        eval_seeds: of sampled evaluations.
        longest: most tokens of a rollout.
        batch_size: of the evaluation.
        workers: processes that grade.

    Raises:
        InputError: for fewer than one problem or worker.
        BudgetError: for a budget below 1.
    """

    model: str = "embedded"
    train: int = 2000
    test: int = 64
    data_seed: int = 0
    end_of_thinking: str = ""
    thinking_opened: bool = False
    forced: str = ""
    answer_tokens: int = 32
    budget: int = 128
    scales: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    temperatures: tuple[float, ...] = (0.0, 1.0)
    eval_seeds: tuple[int, ...] = (0,)
    longest: int = 256
    batch_size: int = 16
    workers: int = 2

    def __post_init__(self) -> None:
        for name in ("train", "test", "workers", "batch_size", "answer_tokens"):
            if not 1 <= getattr(self, name) <= MAX_ROWS:
                raise InputError(f"{name}={getattr(self, name)}; must be in 1..{MAX_ROWS:,}")
        if self.budget < 1 or self.longest < 1:
            raise BudgetError(
                f"budget={self.budget}, longest={self.longest}; both must be at least 1"
            )
        if self.forced and not self.end_of_thinking:
            raise InputError("forced needs end_of_thinking, the text that ends a thought")

    @property
    def difficulty(self) -> str | None:
        """Unknown."""
        return None

    def load(self) -> tuple[Any, Any]:
        """The model in fp32 on CPUs, in bf16 on GPUs.

        Raises:
            ModelError: if it cannot be loaded.
        """
        try:
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise DependencyError("training needs torch: pip install 'outlay[train]'") from error
        path = self._path()
        dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(path, padding_side="left")
            model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"model={self.model!r} cannot be loaded ({error}); give a folder, a hub's name or "
                "'embedded'"
            ) from error
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return model, tokenizer

    def _path(self) -> str:
        if self.model != "embedded":
            return self.model
        from outlay.models import embedded

        return str(embedded.fetch()[0])

    def reading(self, tokenizer: Any) -> Any:
        """How completions are read."""
        from outlay.rl.verifiers import Reading

        return Reading(tokenizer, self.end_of_thinking, self.thinking_opened)

    def inference(self, tokenizer: Any) -> Inference:
        """All budgets, greedy and sampled."""
        from outlay.rl.evaluate import Inference

        def ids(text: str) -> tuple[int, ...]:
            return tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()

        return Inference(
            budget=self.budget,
            scales=self.scales,
            temperatures=self.temperatures,
            seeds=self.eval_seeds,
            forced_ids=ids(self.forced),
            end_of_thinking=ids(self.end_of_thinking) if self.forced else (),
            answer_tokens=self.answer_tokens,
            batch_size=self.batch_size,
        )

    def identity(self) -> dict[str, Any]:
        """The hash of the model's weights where it is a folder."""
        return {"weights": weights_hash(Path(self._path()))}


@dataclass(frozen=True)
class GymTask(ModelTask):
    """A data set of reasoning-gym.

    Args:
        task: its name there.
        config: its settings.
    """

    task: str = ""
    config: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """The data set's."""
        return self.task

    def train_rows(self) -> Dataset:
        """Generated from `data_seed`."""
        from outlay.rl.verifiers import gym_dataset

        return gym_dataset(self.task, self.train, self.data_seed, **self.config)

    def test_rows(self) -> Dataset:
        """Generated from another seed, without problems that are trained on.

        Raises:
            InputError: if the data set is so small that none is left.
        """
        from outlay.rl.verifiers import gym_dataset

        known = {row["prompt"][0]["content"] for row in self.train_rows()}
        more = gym_dataset(self.task, 4 * self.test, self.data_seed + 1_000_003, **self.config)
        kept = [at for at, row in enumerate(more) if row["prompt"][0]["content"] not in known]
        if not kept:
            raise InputError(
                f"task={self.task!r} has no problem that is not trained on; lower train"
            )
        return more.select(kept[: self.test])

    def verifier(self, tokenizer: Any) -> Verifier:
        """reasoning-gym's own grading."""
        from outlay.rl.verifiers import GymVerifier

        return GymVerifier(
            self.reading(tokenizer), self.task, dict(self.config), workers=self.workers
        )


@dataclass(frozen=True)
class FileTask(ModelTask):
    """Problems with a `prompt` (text or chat) and an `answer`, one JSON object a line.

    Answers are compared by math-verify. Every problem is either trained on or held out, decided by
    a hash of its prompt and `data_seed`.

    Args:
        path: of the file.
    """

    path: str = ""

    @property
    def name(self) -> str:
        """The file's."""
        return Path(self.path).name

    def train_rows(self) -> Dataset:
        """What is not held out."""
        from datasets import Dataset

        return Dataset.from_list(self._split()[0])

    def test_rows(self) -> Dataset:
        """What is held out."""
        from datasets import Dataset

        return Dataset.from_list(self._split()[1])

    def verifier(self, tokenizer: Any) -> Verifier:
        """math-verify."""
        from outlay.rl.verifiers import MathVerifier

        return MathVerifier(self.reading(tokenizer), workers=self.workers)

    def identity(self) -> dict[str, Any]:
        """Hashes of weights and file."""
        return {
            **super().identity(),
            "file": hashlib.sha256(_bytes(Path(self.path))).hexdigest(),
        }

    def _split(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        rows = read_rows(Path(self.path))

        def rank(row: Mapping[str, Any]) -> str:
            text = f"{self.data_seed}:{json.dumps(row['prompt'], sort_keys=True)}"
            return hashlib.sha256(text.encode()).hexdigest()

        ordered = sorted(rows, key=rank)
        edge = min(self.test, len(ordered) // 2)
        while 0 < edge < len(ordered) and rank(ordered[edge - 1]) == rank(ordered[edge]):
            edge += 1  # equal prompts stay on one side
        held, trained = ordered[:edge], ordered[edge:]
        if not held or not trained:
            raise InputError(
                f"{self.path} has {len(rows)} rows, too few different ones to train on some and "
                "hold out others"
            )
        return trained[: self.train], held


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file with `prompt` and `answer`.

    Raises:
        InputError: for a file that is missing, larger than 1 GB, not JSONL, or whose rows lack a
            column or have one of the wrong kind.
    """
    rows = []
    for number, line in enumerate(_bytes(path).decode("utf-8", "replace").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{number} is not JSON ({error})") from error
        if not isinstance(row, dict) or not {"prompt", "answer"} <= row.keys():
            has = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise InputError(f"{path}:{number} needs the columns prompt and answer; it has: {has}")
        chat = isinstance(row["prompt"], list) and all(
            isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in row["prompt"]
        )
        if not row["prompt"] or not (chat or isinstance(row["prompt"], str)):
            raise InputError(
                f"{path}:{number}: prompt must be a text, or a chat as a list of role and content"
            )
        rows.append({"prompt": row["prompt"], "answer": str(row["answer"])})
        if len(rows) > MAX_ROWS:
            raise InputError(f"{path} has more than {MAX_ROWS:,} rows; split it")
    if len({isinstance(row["prompt"], str) for row in rows}) > 1:
        raise InputError(f"{path} mixes texts and chats as prompts; use one kind")
    return rows


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(f"{path} is no file; give a JSONL file with prompt and answer")
    if path.stat().st_size > MAX_FILE:
        raise InputError(f"{path} has {path.stat().st_size:,} bytes; at most {MAX_FILE:,}")
    return path.read_bytes()
