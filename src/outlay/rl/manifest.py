"""What a run writes beside its checkpoints: metrics, the token ledger, and a manifest.

`metrics.jsonl` in the output folder has one line a generation batch and one a log. Every
checkpoint gets `manifest.json` (settings, method, data, seeds, versions, tokens) and
`tokens.jsonl`, the ledger from which a resumed run goes on. On resuming, lines of `metrics.jsonl`
beyond the checkpoint's step are dropped, so that the file reads as if the run had not stopped.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from outlay.errors import ResultsError
from outlay.ledger import Ledger

if TYPE_CHECKING:
    from datasets import Dataset

    from outlay.rl.base import Method
    from outlay.rl.trainer import BudgetGRPOTrainer

METRICS = "metrics.jsonl"
MANIFEST = "manifest.json"
LEDGER = "tokens.jsonl"
PACKAGES = ("outlay", "trl", "transformers", "torch", "accelerate", "datasets", "peft", "vllm")


class RunFiles(TrainerCallback):
    """Writes a run's files; the main process only.

    Args:
        trainer: whose run it is.
    """

    def __init__(self, trainer: BudgetGRPOTrainer) -> None:
        self._trainer = trainer
        self._resumed = False
        self._data: dict[str, Any] | None = None

    @property
    def path(self) -> Path:
        """Of the metrics."""
        return Path(self._trainer.args.output_dir) / METRICS

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line to the metrics."""
        if self._trainer.accelerator.is_main_process:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(plain(line)) + "\n")

    def resume(self, checkpoint: str | Path) -> None:
        """Go on with a checkpoint's ledger.

        Raises:
            ResultsError: if the checkpoint was saved between two generations: what was generated
                is not in it, so the run could not continue as it was.
        """
        folder = Path(checkpoint)
        if (folder / MANIFEST).is_file():
            manifest = read_manifest(folder)
            if not manifest["at_generation_boundary"]:
                raise ResultsError(
                    f"{folder} was saved while generated rollouts were still in use; resume from "
                    "a checkpoint whose step is a multiple of "
                    f"{manifest['steps_between_generations']}, and choose save_steps so"
                )
        if (folder / LEDGER).is_file():
            self._trainer.tokens = Ledger.from_jsonl(folder / LEDGER)
        self._resumed = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Drop what a stopped run wrote after its checkpoint, or what an older run left."""
        if not self._trainer.accelerator.is_main_process or not self.path.is_file():
            return
        kept = []
        if self._resumed:
            for text in self.path.read_text(encoding="utf-8").splitlines():
                line = json.loads(text)
                last = state.global_step - (line["kind"] == "rollouts")
                if line["step"] <= last:
                    kept.append(text + "\n")
        self.path.write_text("".join(kept), encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Copy TRL's log line (loss, gradient norm, entropy, clip ratios, KL, ...)."""
        self.write({"kind": "log", "step": state.global_step, **given["logs"]})

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the manifest and the ledger into the checkpoint."""
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        self._trainer.tokens.to_jsonl(folder / LEDGER)
        if self._data is None:  # read once: the data set may be large
            self._data = fingerprint(self._trainer.train_dataset)
        text = json.dumps(manifest(self._trainer, self._data), indent=1, sort_keys=True)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def manifest(trainer: BudgetGRPOTrainer, data: dict[str, Any]) -> dict[str, Any]:
    """All that says how a run came about, JSON-ready.

    Args:
        trainer: whose run it is.
        data: from `fingerprint`.
    """
    args = trainer.args
    uses = args.steps_per_generation * trainer.num_iterations
    micro = trainer.state.global_step * args.gradient_accumulation_steps
    totals = trainer.tokens.totals(stage="train")
    return {
        "method": trainer.method.name,
        "knobs": knobs(trainer.method),
        "schedule": plain(trainer.method.schedule_table(trainer.state.max_steps)),
        "verifier": type(trainer.verifier).__name__ if trainer.verifier else None,
        "settings": plain(args.to_dict()),
        "step": trainer.state.global_step,
        "max_steps": trainer.state.max_steps,
        "at_generation_boundary": micro % uses == 0,
        "steps_between_generations": max(1, uses // args.gradient_accumulation_steps),
        "dataset": data,
        "seeds": {"seed": args.seed, "data_seed": args.data_seed},
        "versions": versions(),
        "tokens": plain(asdict(totals)),
    }


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        ResultsError: if there is none, or it is not JSON.
    """
    path = Path(folder) / MANIFEST
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ResultsError(f"{path} is not a manifest of a run ({error})") from error
    return data


def knobs(method: Method) -> dict[str, Any]:
    """A method's fields, JSON-ready."""
    return dict(plain(asdict(method))) if is_dataclass(method) else {}


def fingerprint(dataset: Dataset) -> dict[str, Any]:
    """Rows, columns, and a hash of the content; of a stream, which is read once, columns alone."""
    if not hasattr(dataset, "__len__"):
        return {"rows": None, "columns": dataset.column_names, "sha256": None}
    digest = hashlib.sha256()
    rows = 0
    for row in dataset:
        digest.update(json.dumps(plain(row), sort_keys=True).encode())
        rows += 1
    return {"rows": rows, "columns": list(dataset.column_names), "sha256": digest.hexdigest()}


def versions() -> dict[str, str]:
    """Of Python and the packages that a run depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def plain(value: Any) -> Any:
    """JSON-ready: numbers that are not finite become None, objects their name."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return getattr(value, "__name__", None) or str(value)
