"""The simulator: the same server and schedules, with a cost model in place of a network.

Costs are linear in what an iteration does (`Fitted`, from the engine's own steps by non-negative
least squares of relative errors), or follow a roofline of a bigger machine (`Roofline`). Expert
traffic is that of uniform routing: n tokens hit `E (1 - (1 - k/E)^n)` experts. Its figures are
simulations and are labelled so; `validate` says how far they are from the engine's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from outlay.errors import InputError
from outlay.schedule.base import Job, Plan, Request, Scheduler, positive
from outlay.schedule.counters import Traffic, expected_experts, kind_of
from outlay.schedule.serving import Cost, Run, Server, Shape, Step

FEATURES = (
    "iteration",
    "layer call",
    "row in a layer",
    "attended row in a layer",
    "prompt in a layer",
    "expert read",
    "sampled row",
)


@dataclass(frozen=True)
class MoEShape:
    """What a simulated model looks like.

    Args:
        layers: decoder layers.
        experts: experts of a layer; 0 for a dense model.
        top_k: experts that a token uses.
        expert_bytes: bytes of one expert.
        context: most tokens of a sequence.

    Raises:
        InputError: for numbers that do not fit each other.
    """

    layers: int
    experts: int = 0
    top_k: int = 0
    expert_bytes: int = 0
    context: int = 2**20

    def __post_init__(self) -> None:
        positive(layers=self.layers, context=self.context)
        if self.experts:
            expected_experts(self.experts, self.top_k, 1)
        elif self.top_k:
            raise InputError(f"top_k={self.top_k} of 0 experts; give experts too")

    def hit(self, tokens: int) -> float:
        """Distinct experts of one layer under uniform routing; 0 for a dense model."""
        return expected_experts(self.experts, self.top_k, tokens) if self.experts else 0.0

    def loads(self, shape: Shape) -> float:
        """Experts that an iteration reads in all layers."""
        both = self.hit(shape.prompt_rows + shape.decode_rows)
        return shape.group * both + (shape.layers - shape.group) * self.hit(shape.decode_rows)


class Simulated:
    """An executor that computes nothing: every token is 0.

    Args:
        model: its shape.
    """

    def __init__(self, model: MoEShape) -> None:
        self.model = model
        self.depth, self.context = model.layers, model.context
        self.traffic = Traffic(
            expert_bytes=model.expert_bytes,
            crossings=[0] * model.layers,
            prompt_calls=[0] * model.layers,
        )

    def run(self, plan: Plan, jobs: Mapping[int, Job]) -> dict[int, int]:
        """Count what the plan would move."""
        rows, decoding = sum(chunk.count for chunk in plan.prefill), len(plan.decode)
        low, high = plan.group
        for count, prompt in ((high - low, rows), (self.depth - (high - low), 0)):
            if count and (prompt or decoding):
                kind = kind_of(prompt, decoding)
                self.traffic.calls[kind] += count
                self.traffic.experts[kind] += count * self.model.hit(prompt + decoding)
        for layer in range(low, high):
            self.traffic.crossings[layer] += rows
            self.traffic.prompt_calls[layer] += 1
        ready = [
            chunk.id
            for chunk in plan.prefill
            if plan.final and chunk.start + chunk.count == jobs[chunk.id].length
        ]
        return dict.fromkeys([*plan.decode, *ready], 0)

    def release(self, id_: int) -> None:
        """Nothing is held."""

    def counted(self) -> Traffic:
        """The traffic so far."""
        return self.traffic


def features(shape: Shape, model: MoEShape) -> list[float]:
    """The numbers that a fitted cost is linear in; see `FEATURES`."""
    calls = shape.layers if shape.decode_rows else shape.group
    return [
        1.0,
        float(calls),
        float(shape.prompt_rows * shape.group + shape.decode_rows * shape.layers),
        float(shape.prompt_pairs * shape.group + shape.decode_pairs * shape.layers),
        float(shape.prompts * shape.group + shape.decode_rows * shape.layers),
        model.loads(shape),
        float(shape.sampled),
    ]


@dataclass(frozen=True)
class Fitted:
    """A cost table fitted to an engine's steps.

    Args:
        model: the engine's shape.
        weights: seconds per unit of each of `FEATURES`, none negative.
        error: mean relative error of a step, on the steps that it was fitted to.
    """

    model: MoEShape
    weights: tuple[float, ...]
    error: float

    @classmethod
    def fit(cls, steps: Sequence[Step], model: MoEShape) -> Fitted:
        """Calibrate on an engine's steps.

        Raises:
            InputError: for fewer steps than unknowns.
        """
        from scipy.optimize import nnls

        used = [step for step in steps if step.seconds > 0]
        if len(used) < len(FEATURES):
            raise InputError(
                f"{len(used)} timed steps cannot fit {len(FEATURES)} costs; serve a longer trace"
            )
        x_SF = np.array([features(step.shape, model) for step in used])
        seconds_S = np.array([step.seconds for step in used])
        weights_F, _ = nnls(x_SF / seconds_S[:, None], np.ones(len(used)))
        error = float(np.abs(x_SF @ weights_F / seconds_S - 1).mean())
        return cls(model, tuple(float(weight) for weight in weights_F), error)

    def __call__(self, shape: Shape) -> float:
        """Seconds of an iteration."""
        found = features(shape, self.model)
        return sum(a * b for a, b in zip(self.weights, found, strict=True))


@dataclass(frozen=True)
class Roofline:
    """A cost from a machine's data sheet: a layer call takes its memory time or its compute time.

    Args:
        model: shape; the weights of experts are in it.
        attention_bytes: weights of a layer outside its experts.
        row_bytes: keys and values of one row in one layer.
        bandwidth: bytes per second.
        flops: floating-point operations per second.
        overhead: seconds of a layer call beside that.
        itemsize: bytes of a weight.
    """

    model: MoEShape
    attention_bytes: float
    row_bytes: float
    bandwidth: float
    flops: float
    overhead: float = 0.0
    itemsize: int = 2

    def __post_init__(self) -> None:
        for name in ("attention_bytes", "row_bytes", "bandwidth", "flops"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}={getattr(self, name)}; must be above 0")

    def _call(self, rows: int, pairs: int, past: int) -> float:
        """Seconds of one layer call; `past` rows of keys and values are read."""
        model = self.model
        active = self.attention_bytes + model.top_k * model.expert_bytes
        # Attention: a multiply-add per pair and cached number; more with grouped queries, which
        # matters little beside the weights' own.
        compute = 2 * rows * active / self.itemsize + 2 * pairs * self.row_bytes / self.itemsize
        moved = self.attention_bytes + model.hit(rows) * model.expert_bytes + past * self.row_bytes
        return max(compute / self.flops, moved / self.bandwidth) + self.overhead

    def __call__(self, shape: Shape) -> float:
        """Seconds of an iteration."""
        decode = shape.decode_rows
        pairs = shape.prompt_pairs + shape.decode_pairs
        past = shape.decode_pairs + shape.prompt_rows
        both = self._call(shape.prompt_rows + decode, pairs, past) if shape.group else 0.0
        rest = self._call(decode, shape.decode_pairs, shape.decode_pairs) if decode else 0.0
        return shape.group * both + (shape.layers - shape.group) * rest


def simulate(
    requests: Sequence[Request],
    scheduler: Scheduler,
    model: MoEShape,
    cost: Cost,
    *,
    num_blocks: int = 1024,
    block_size: int = 16,
) -> Run:
    """Serve a trace on the virtual clock."""
    server = Server(Simulated(model), scheduler, num_blocks, block_size, clock="virtual", cost=cost)
    return server.serve(requests)


def validate(measured: Run, simulated: Run) -> dict[str, Any]:
    """Relative errors of a simulation against the engine's run of the same trace and schedule."""
    ours, theirs = simulated.summary.to_dict(), measured.summary.to_dict()
    errors = {
        name: ours[name] / theirs[name] - 1
        for name in ("ttft_mean", "tbt_p50", "tbt_p99", "e2e_mean", "makespan")
        if theirs[name] and ours[name] is not None
    }
    if measured.traffic.loads:
        errors["expert_loads"] = simulated.traffic.loads / measured.traffic.loads - 1
    return errors
