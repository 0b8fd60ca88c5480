"""Settings for `trl.GRPOConfig`: one preset for CPUs, and a method's own defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.errors import DependencyError, InputError
from outlay.rl.base import Method

if TYPE_CHECKING:
    from trl import GRPOConfig


def cpu_preset() -> dict[str, Any]:
    """Settings under which a model of up to 5M parameters learns on one core.

    128 rollouts a step, 8 a question, learning rate 2e-5: larger steps or smaller batches destroy
    such models within tens of steps. TRL's gradient checkpointing and bf16 are switched off. Also
    call `torch.set_num_threads(1)`: matrices this small run several times slower on two threads.
    """
    return {
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": 128,
        "num_generations": 8,
        "learning_rate": 2e-5,
        "lr_scheduler_type": "constant",
        "max_completion_length": 128,
        "logging_steps": 1,
        "save_strategy": "no",
    }


def make_config(
    method: Method, output_dir: str | Path, settings: Mapping[str, Any], *, cpu: bool = False
) -> GRPOConfig:
    """A `GRPOConfig`: the CPU preset (if asked for), then the method's defaults, then `settings`.

    Args:
        method: whose `config_defaults` apply.
        output_dir: of checkpoints, metrics and manifests.
        settings: fields of `GRPOConfig`.
        cpu: begin with `cpu_preset`.

    Raises:
        DependencyError: without trl.
        InputError: for a field that GRPOConfig lacks, or values that it refuses.
    """
    try:
        from trl import GRPOConfig
    except ImportError as error:
        raise DependencyError("RL needs trl: pip install 'outlay[train]'") from error
    chosen = {**(cpu_preset() if cpu else {}), **method.config_defaults(), **settings}
    group = chosen.get("num_generations", 8)
    if not isinstance(group, int) or group < 2:
        raise InputError(f"num_generations={group!r}; a group needs at least 2 rollouts to compare")
    unknown = sorted(set(chosen) - set(GRPOConfig.__dataclass_fields__))
    if unknown:
        raise InputError(f"GRPOConfig has no setting {', '.join(unknown)}")
    try:
        return GRPOConfig(output_dir=str(output_dir), **chosen)
    except (ValueError, TypeError) as error:
        raise InputError(f"GRPOConfig refuses these settings: {error}") from error
