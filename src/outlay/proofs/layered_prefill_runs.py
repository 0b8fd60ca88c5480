"""The runs behind the layered-prefill proof: engine, solo generation, simulations.

Seconds on the engine are CPU seconds of this process with one thread (`clock="cpu"`), so that other
work on the machine does not count; idle time is skipped. Rates are multiples of a timed iteration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from outlay.proofs.base import Progress, Scale
from outlay.schedule.base import Request, Scheduler
from outlay.schedule.measuring import iteration, paced, run
from outlay.schedule.presets import compared
from outlay.schedule.serving import Run, Shape, Step
from outlay.schedule.simulator import Fitted, MoEShape, Roofline, simulate
from outlay.schedule.traces import LONG, MIXED, Trace, TraceSpec, make

if TYPE_CHECKING:
    from outlay.schedule.engine import Engine

REF = 32  # the paper's 512, scaled by 16 as prompts are
LOAD = 0.6  # share of the time that prompts keep chunked prefill busy
LOADS = (0.3, 0.6, 0.9)
PAPER = MoEShape(48, 128, 8, 3 * 2048 * 768 * 2)  # Qwen3-30B-A3B in bf16
PAPER_REF = 512
PAPER_COST = Roofline(
    PAPER,
    attention_bytes=2.0 * (2 * 2048 * 4096 + 2 * 2048 * 512),
    row_bytes=2.0 * 2 * 4 * 128,
    bandwidth=2 * 0.7 * 3.35e12,  # two H100, 70 % of the data sheet
    flops=2 * 0.5 * 989e12,
    overhead=20e-6,
)
PAPER_RATE = 1.3  # requests a second, as in the paper's arXiv trace
PAPER_CHUNK = 0.048  # seconds of an iteration with a chunk of 512: the paper's p99 TBT
PAPER_SETTINGS = (
    f"prompts busy {LOAD} of the time, costs of the data sheet",
    f"{PAPER_RATE} requests/s",
    f"{PAPER_RATE} requests/s, an iteration with a chunk as slow as the paper's",
)
PAPER_TRACES = (
    TraceSpec("short prompts, long answers", 100, (16, 1024), (128, 384), "function"),
    TraceSpec("long prompts, short answers", 60, (4096, 16384), (64, 192), "module"),
)
MAIN = "48x4"


@dataclass(frozen=True)
class Size:
    """How much runs at a scale.

    Args:
        long, mixed: traces.
        part: requests of the shorter runs (other rates, other models).
        solo: requests per trace that are also generated alone.
        experts: of the models; the first is the main one.
        dense: run the dense control.
        paper: run the simulation at the paper's scale.
    """

    long: TraceSpec
    mixed: TraceSpec
    part: int
    solo: int
    experts: tuple[int, ...]
    dense: bool
    paper: bool


SIZES: dict[Scale, Size] = {
    "ci": Size(
        TraceSpec("long", 4, (96, 160), (4, 6)),
        TraceSpec("mixed", 4, (16, 160), (4, 10)),
        3,
        4,
        (48,),
        False,
        False,
    ),
    "laptop": Size(LONG, replace(MIXED, requests=24), 8, 8, (48, 16), True, True),
    "gpu": Size(LONG, MIXED, 16, 32, (48, 16), True, True),
}


@dataclass
class Model:
    """A network to schedule on and its unit of time.

    Args:
        name: "48x4", "16x4" or "dense".
        engine: on it.
        shape: for the simulator.
        iteration: seconds of an iteration with a whole chunk.
        decode: seconds of one without any.
    """

    name: str
    engine: Engine
    shape: MoEShape
    iteration: float = 0.0
    decode: float = 0.0


@dataclass
class Cell:
    """Runs of one model on one trace at one load, by schedule."""

    model: str
    trace: Trace
    load: float
    runs: dict[str, Run] = field(default_factory=dict)


@dataclass
class Outcome:
    """Everything that was run."""

    cells: list[Cell] = field(default_factory=list)
    solo: dict[str, dict[int, tuple[int, ...]]] = field(default_factory=dict)
    fitted: dict[str, Fitted] = field(default_factory=dict)
    frontier: list[dict[str, Any]] = field(default_factory=list)
    paper: list[dict[str, Any]] = field(default_factory=list)
    units: dict[str, tuple[float, float]] = field(default_factory=dict)
    router: str = "trained"

    def cell(self, trace: str, *, model: str = MAIN, load: float = LOAD) -> Cell:
        """The runs of a trace."""
        return next(
            c for c in self.cells if (c.trace.name, c.model, c.load) == (trace, model, load)
        )


def tiny_model() -> tuple[Any, Any]:
    """A random Mixtral of six layers over SmolLM2's tokenizer, for the quick variant."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    from outlay.models import embedded

    tokenizer = embedded.load(device="cpu").tokenizer
    torch.manual_seed(0)
    network: Any = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=len(tokenizer),
            hidden_size=48,
            intermediate_size=32,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=16,
            num_experts_per_tok=2,
            max_position_embeddings=1024,
            initializer_range=0.2,
            sliding_window=None,
        )
    )
    return network.eval().requires_grad_(False), tokenizer


def models(size: Size, scale: Scale) -> tuple[dict[str, Any], Any]:
    """Networks by name, the main one first, and their tokenizer."""
    if scale == "ci":
        network, tokenizer = tiny_model()
        return {MAIN: network}, tokenizer
    from outlay.models import embedded
    from outlay.testbeds import moe

    dense = embedded.load(device="cpu")
    found: dict[str, Any] = {}
    for experts in size.experts:
        network = moe.build(dense.model, experts=experts)
        network.set_experts_implementation("grouped_mm")
        found[f"{experts}x{moe.TOP_K}"] = network
    if size.dense:
        found["dense"] = dense.model
    return found, dense.tokenizer


def shape_of(network: Any) -> MoEShape:
    """A network's shape for the simulator."""
    config = network.config
    experts = int(getattr(config, "num_local_experts", 0) or 0)
    width = config.intermediate_size
    return MoEShape(
        config.num_hidden_layers,
        experts,
        int(getattr(config, "num_experts_per_tok", 0) or 0) if experts else 0,
        3 * config.hidden_size * width * network.dtype.itemsize if experts else 0,
        config.max_position_embeddings,
    )


def alone(network: Any, requests: Sequence[Request]) -> dict[int, tuple[int, ...]]:
    """Greedy tokens of every request by transformers' `generate`, one at a time."""
    import torch

    found = {}
    for request in requests:
        ids_1T = torch.tensor([list(request.prompt)])
        with torch.inference_mode():
            output_1T = network.generate(
                ids_1T,
                attention_mask=torch.ones_like(ids_1T),
                max_new_tokens=request.max_new,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        found[request.id] = tuple(output_1T[0, len(request.prompt) :].tolist())
    return found


def collect(size: Size, scale: Scale, progress: Progress) -> Outcome:
    """Run everything of a scale."""
    from outlay.schedule.engine import Engine

    networks, tokenizer = models(size, scale)
    traces = {"long": make(size.long, tokenizer, 1.0), "mixed": make(size.mixed, tokenizer, 1.0)}
    outcome = Outcome()
    steps: list[Step] = []
    for name, network in networks.items():
        model = Model(name, Engine(network), shape_of(network))
        model.iteration, model.decode = iteration(model.engine, REF, clock="cpu")
        outcome.units[name] = (model.iteration, model.decode)
        for label, load, requests, schedules in _jobs(name, size):
            trace = paced(traces[label], REF, model.iteration, load)
            trace = Trace(trace.name, trace.seed, trace.rate, trace.requests[:requests])
            cell = Cell(name, trace, load)
            outcome.cells.append(cell)
            for schedule, policy in schedules.items():
                progress(f"{name}, {label}, load {load}: {schedule}")
                cell.runs[schedule] = run(model.engine, policy, trace.requests, clock="cpu")
                if name == MAIN and schedule != "layered":
                    steps += cell.runs[schedule].steps
        if name == MAIN:
            for label, trace in traces.items():
                progress(f"{name}, {label}: requests alone")
                outcome.solo[label] = alone(network, trace.requests[: size.solo])
            outcome.fitted[MAIN] = Fitted.fit(steps, model.shape)
            outcome.frontier = _frontier(outcome, model)
        model.engine.close()
    if size.paper:
        progress("simulation at the paper's scale")
        outcome.paper = paper_scale(tokenizer)
    return outcome


def _jobs(model: str, size: Size) -> list[tuple[str, float, int, Mapping[str, Scheduler]]]:
    """(trace, load, requests, schedules) of a model."""
    every = compared(REF)
    pair = {name: every[name] for name in ("layered", "chunked")}
    if model != MAIN:
        return [
            (label, LOAD, size.part, pair) for label in ("long", "mixed")[: 2 - (model == "dense")]
        ]
    some = {name: every[name] for name in ("layered", "chunked", "orca")}
    jobs: list[tuple[str, float, int, Mapping[str, Scheduler]]] = [
        ("long", LOAD, size.long.requests, {**some, "chunked 4x": every["chunked 4x"]}),
        ("mixed", LOAD, size.mixed.requests, some),
    ]
    return jobs + [("long", load, size.part, pair) for load in LOADS if load != LOAD]


def _frontier(outcome: Outcome, model: Model) -> list[dict[str, Any]]:
    """TTFT against p99 TBT of both families over chunks, on the calibrated simulator."""
    rows = []
    for label in ("long", "mixed"):
        cell = outcome.cell(label)
        for ref in (REF // 2, REF, 2 * REF, 4 * REF):
            for name in ("layered", "chunked"):
                policy = compared(ref)[name]
                result = simulate(cell.trace.requests, policy, model.shape, outcome.fitted[MAIN])
                rows.append(
                    {"trace": label, "schedule": name, "ref_chunk": ref, **result.to_dict()}
                )
    return rows


def paper_scale(tokenizer: Any) -> list[dict[str, Any]]:
    """Both schedules on a roofline of the paper's model and cards, thrice; simulations."""
    chunk = Shape(PAPER.layers, PAPER.layers, PAPER_REF, 1, PAPER_REF * 2048, 8, 8 * 2048, 8)
    fast = PAPER_COST(chunk)
    slow = replace(PAPER_COST, overhead=PAPER_COST.overhead + (PAPER_CHUNK - fast) / PAPER.layers)
    rows = []
    for spec in PAPER_TRACES:
        made = make(spec, tokenizer, 1.0)
        settings = {
            PAPER_SETTINGS[0]: (paced(made, PAPER_REF, fast, LOAD), PAPER_COST),
            PAPER_SETTINGS[1]: (made.at_rate(PAPER_RATE), PAPER_COST),
            PAPER_SETTINGS[2]: (made.at_rate(PAPER_RATE), slow),
        }
        for setting, (trace, cost) in settings.items():
            for name in ("layered", "chunked"):
                result = simulate(
                    trace.requests, compared(PAPER_REF)[name], PAPER, cost, num_blocks=100_000
                )
                rows.append(
                    {
                        "setting": setting,
                        "trace": spec.name,
                        "schedule": name,
                        **result.to_dict(),
                    }
                )
    return rows
