"""What this room expects of TRL, checked when a trainer is built.

The trainer overrides six methods of `trl.GRPOTrainer` and reads a few of its attributes. A TRL
whose methods look different is refused with a message instead of failing somewhere inside.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from outlay.errors import DependencyError

TESTED = "trl>=1.16,<2"
SIGNATURES: dict[str, tuple[str, ...]] = {
    "_generate_and_score_completions": ("self", "inputs"),
    "_calculate_rewards": ("self", "inputs", "prompts", "completions", "completion_ids_list"),
    "_generate_single_turn": (
        "self",
        "prompt_ids",
        "images",
        "multimodal_fields",
        "num_generations",
        "has_tool_images",
    ),
    "_compute_loss": ("self", "model", "inputs"),
    "_load_optimizer_and_scheduler": ("self", "checkpoint"),
}
LEADING = ("self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size")
"""First parameters of `_get_per_token_logps_and_entropies`, which is called, not overridden."""

BATCH_KEYS = frozenset(
    {
        "prompt_ids",
        "prompt_mask",
        "completion_ids",
        "completion_mask",
        "advantages",
        "num_items_in_batch",
    }
)
ATTRIBUTES = (
    "_logs",
    "_metrics",
    "_step",
    "num_generations",
    "num_generations_eval",
    "max_completion_length",
    "reward_weights",
    "loss_type",
    "_tokenizer",
    "eos_token_ids",
)


def check_class(trainer: type) -> None:
    """Compare the methods of a `GRPOTrainer` class with what this room overrides.

    Raises:
        DependencyError: if one is missing or takes other parameters.
    """
    from trl import __version__

    wrong = []
    for name, expected in SIGNATURES.items():
        method = getattr(trainer, name, None)
        found = tuple(inspect.signature(method).parameters) if method else ()
        if found != expected:
            wrong.append(f"{name}({', '.join(found)}) where ({', '.join(expected)}) is expected")
    scorer = getattr(trainer, "_get_per_token_logps_and_entropies", None)
    found = tuple(inspect.signature(scorer).parameters)[: len(LEADING)] if scorer else ()
    if found != LEADING:
        wrong.append(f"_get_per_token_logps_and_entropies begins with ({', '.join(found)})")
    if wrong:
        raise DependencyError(
            f"trl {__version__} differs from the tested one ({TESTED}): {'; '.join(wrong)}. "
            f"Install a tested version: pip install '{TESTED}'"
        )


def check_instance(trainer: Any) -> None:
    """Compare the attributes of a built trainer with those that this room reads.

    Raises:
        DependencyError: if one is missing.
    """
    missing = [name for name in ATTRIBUTES if not hasattr(trainer, name)]
    if missing:
        raise DependencyError(
            f"this trl has no GRPOTrainer.{', '.join(missing)}; install a tested one: "
            f"pip install '{TESTED}'"
        )


def check_batch(batch: Mapping[str, Any]) -> None:
    """Compare a scored batch with the keys that this room reads.

    Raises:
        DependencyError: if one is missing.
    """
    missing = sorted(BATCH_KEYS - batch.keys())
    if missing:
        raise DependencyError(
            f"this trl's batches lack {', '.join(missing)}; install a tested one: "
            f"pip install '{TESTED}'"
        )
