"""Training a verifier on kept chains, through trl's `SFTTrainer`.

Prompts are rendered with the model's own chat template; the loss covers the assistant's turn alone,
the verdict and end-of-text included. 14B models and larger get LoRA, small ones full fine-tuning.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.errors import DependencyError, InputError
from outlay.reason.think_prm.data import Chain
from outlay.reason.think_prm.format import Layout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters on all linear layers, merged into the weights after training.

    Args:
        r: rank.
        alpha: scale.
    """

    r: int = 32
    alpha: int = 16

    def __post_init__(self) -> None:
        if self.r < 1 or self.alpha < 1:
            raise InputError(f"r={self.r}, alpha={self.alpha}; both must be at least 1")


@dataclass(frozen=True)
class TrainSettings:
    """How a verifier is trained; the defaults are the paper's for models of 1.5B and 7B.

    For 14B and more the paper uses `TrainSettings(batch=16, lr=4e-4, lora=Lora())`.

    Args:
        epochs: passes over the chains (5 for QwQ-32B).
        batch: chains per step.
        lr: constant learning rate.
        lora: adapters; None trains all weights.
        max_length: tokens of the longest example. trl's own default, 1024, would cut verdicts.
        seed: of the order.

    Raises:
        InputError: for values out of range.
    """

    epochs: float = 3
    batch: int = 32
    lr: float = 6e-5
    lora: Lora | None = None
    max_length: int = 8192
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.epochs > 0 or self.batch < 1 or not self.lr > 0 or self.max_length < 1:
            raise InputError(
                f"epochs={self.epochs}, batch={self.batch}, lr={self.lr}, "
                f"max_length={self.max_length}; all must be positive"
            )


@dataclass(frozen=True)
class Example:
    """What `SFTTrainer` gets: prompt and completion as text."""

    prompt: str
    completion: str


def example(
    chain: Chain,
    layout: Layout,
    tokenizer: PreTrainedTokenizerBase,
    *,
    good: bool,
    number_steps: bool = True,
) -> Example:
    """One chain as a prompt and a completion.

    The rendered chat loses its begin-of-text where the tokenizer adds one itself: two of them yield
    empty chains on some models.
    """
    text = layout.render(chain.source.question, chain.source.steps, number_steps)
    rendered: Any = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    prompt = str(rendered)
    bos = tokenizer.bos_token
    if bos and prompt.startswith(str(bos)):
        ids: Any = tokenizer("a")["input_ids"]
        if ids[:1] == [tokenizer.bos_token_id]:
            prompt = prompt.removeprefix(str(bos))
    return Example(prompt, layout.completion(chain.text, good, prompt))


def examples(
    chains: Sequence[Chain],
    layout: Layout,
    tokenizer: PreTrainedTokenizerBase,
    *,
    number_steps: bool = True,
    verdict: Callable[[Chain], bool] | None = None,
) -> list[Example]:
    """All chains as prompts and completions.

    Args:
        chains: kept by a filter, and cleaned.
        layout: of requests and critiques.
        tokenizer: whose chat template renders the requests.
        number_steps: as for `ThinkPRM`.
        verdict: whether the solution is called right; None takes the gold label of its last step.
    """
    judge = verdict or (lambda chain: not chain.source.bad)
    return [
        example(chain, layout, tokenizer, good=judge(chain), number_steps=number_steps)
        for chain in chains
    ]


def said(chain: Chain, layout: Layout) -> bool:
    """The verdict of the chain itself, for training without labels: its last decision."""
    found = layout.decisions(chain.text)
    return bool(found) and found[-1].label == "good"


def _require(*more: str) -> None:
    """Check that what training needs is installed."""
    for name in ("torch", "datasets", "trl", *more):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise DependencyError(
                f"training a verifier needs {name} ({error}); pip install 'outlay[train]'"
            ) from error


def build_trainer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Example],
    settings: TrainSettings,
    folder: str | Path,
) -> Any:
    """A trl `SFTTrainer`, ready to train.

    Raises:
        InputError: for no examples.
        DependencyError: without trl, datasets, or (for LoRA) peft.
    """
    if not rows:
        raise InputError("no examples to train on; a filter must keep at least one chain")
    _require("peft" if settings.lora is not None else "trl")
    import datasets
    import torch
    from trl import SFTConfig, SFTTrainer

    peft_config = None
    if settings.lora is not None:
        from peft import LoraConfig

        peft_config = LoraConfig(
            r=settings.lora.r,
            lora_alpha=settings.lora.alpha,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
    on_gpu = torch.cuda.is_available() and next(model.parameters()).is_cuda
    config = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch,
        learning_rate=settings.lr,
        lr_scheduler_type="constant",
        warmup_steps=0,
        completion_only_loss=True,
        max_length=settings.max_length,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        activation_checkpointing=on_gpu,
        logging_steps=50,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=settings.seed,
        data_seed=settings.seed,
        train_sampling_strategy="group_by_length",
    )
    data = datasets.Dataset.from_list(
        [{"prompt": row.prompt, "completion": row.completion} for row in rows]
    )
    return SFTTrainer(
        model=model,
        args=config,
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=peft_config,
    )


def fine_tune(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Example],
    settings: TrainSettings | None = None,
    out: str | Path | None = None,
) -> Any:
    """Train a verifier; the model is changed in place.

    Args:
        model: a transformers causal LM.
        tokenizer: its tokenizer, with a chat template.
        rows: from `examples`.
        settings: see `TrainSettings`.
        out: folder for the trained model (safetensors) and tokenizer; None saves nothing.

    Returns:
        The trained model in eval mode, adapters merged.
    """
    _require()
    from datasets.utils import logging as data_logging
    from transformers.utils import logging

    settings = settings or TrainSettings()
    bars, data_bars = logging.is_progress_bar_enabled(), data_logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    data_logging.disable_progress_bar()
    try:
        with tempfile.TemporaryDirectory() as folder:
            model.requires_grad_(True)
            trainer = build_trainer(model, tokenizer, rows, settings, folder)
            trainer.train()
            trained = trainer.model
    finally:
        if bars:
            logging.enable_progress_bar()
        if data_bars:
            data_logging.enable_progress_bar()
    if settings.lora is not None:
        trained = trained.merge_and_unload()
    # Trainers leave a wrapped `forward` on the instance; a deep copy of it would go on running the
    # weights of the model that it was copied from.
    trained.__dict__.pop("forward", None)
    trained.train(False)
    trained.requires_grad_(False)
    if out is not None:
        save(trained, tokenizer, out)
    return trained


def save(model: Any, tokenizer: PreTrainedTokenizerBase, out: str | Path) -> None:
    """Write weights (safetensors) and tokenizer into `out`."""
    path = Path(out)
    path.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    for weights in path.glob("*.safetensors"):
        weights.chmod(0o644)  # the writer makes them private; packages need them read
