"""`outlay bench serve`: schedules side by side under an open-loop load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outlay.cli import AsJson, errors, show_json

if TYPE_CHECKING:
    from outlay.models.local import LocalModel
    from outlay.schedule.base import Scheduler
    from outlay.schedule.serving import Run
    from outlay.schedule.traces import Trace

MOE = "moe"
DEFAULT = ("layered-prefill", "chunked-prefill", "orca")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        name="bench", help="Measure how systems serve a load.", no_args_is_help=True
    )
    app.add_typer(group)
    group.callback()(_group)
    group.command()(serve)


def _group() -> None:
    """Measure how systems serve a load."""


def serve(
    schedule: Annotated[
        list[str] | None,
        typer.Option(help="A schedule's spec, repeat for several; default: all three."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="moe, moe:16 (sliced SmolLM2), embedded, or a folder.")
    ] = MOE,
    trace: Annotated[
        str, typer.Option(help="long, mixed, or a trace file (JSON Lines).")
    ] = "mixed",
    requests: Annotated[int | None, typer.Option(help="Only the first so many.")] = None,
    ref_chunk: Annotated[int, typer.Option(help="Reference chunk, in tokens.")] = 32,
    load: Annotated[
        float | None,
        typer.Option(help="Share of time that prompts keep chunked prefill busy; default 0.6."),
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Or arrivals per second.")] = None,
    clock: Annotated[str, typer.Option(help="wall, cpu or virtual.")] = "wall",
    num_blocks: Annotated[
        int | None, typer.Option(help="KV blocks of 16 tokens; default: enough for all.")
    ] = None,
    ttft_limit: Annotated[
        float, typer.Option(help="Goodput: first token within so many iterations with a chunk.")
    ] = 20.0,
    tbt_limit: Annotated[
        float, typer.Option(help="Goodput: p99 gap within so many decoding iterations.")
    ] = 5.0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps.")] = None,
    seed: Annotated[int, typer.Option(help="Of a made trace.")] = 0,
    save_trace: Annotated[Path | None, typer.Option(help="Write the trace here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Serve one trace under several schedules: TTFT, TBT, throughput, expert traffic.

    Seconds are of the clock that is named: "cpu" counts CPU seconds and skips idle time, "virtual"
    adds up costs that are calibrated on this engine first, so that its figures repeat.
    """
    with errors(as_json):
        import torch

        from outlay.errors import InputError
        from outlay.machine import machine
        from outlay.schedule.base import positive
        from outlay.schedule.engine import Engine
        from outlay.schedule.measuring import iteration, paced
        from outlay.schedule.stopwatch import goodput

        positive(ref_chunk=ref_chunk, threads=threads)
        if clock not in ("wall", "cpu", "virtual"):
            raise InputError(f"--clock {clock}; choose wall, cpu or virtual")
        if load is not None and rate is not None:
            raise InputError("give --load or --rate, not both")
        if load is not None and not load > 0:
            raise InputError(f"--load {load}; must be above 0")
        if not (ttft_limit > 0 and tbt_limit > 0):
            raise InputError("--ttft-limit and --tbt-limit must be above 0")
        schedules = {spec: _schedule(spec, ref_chunk) for spec in schedule or DEFAULT}
        torch.set_num_threads(threads)
        target = _model(model, device)
        engine = Engine(target.model)
        for policy in schedules.values():
            policy.check(engine.depth)
        timed = "wall" if clock == "virtual" else clock
        unit, alone = iteration(engine, ref_chunk, clock=timed)  # type: ignore[arg-type]
        work, given = _trace(trace, target, requests, seed)
        if rate is not None:
            work = work.at_rate(rate)
        elif load is not None or not given:
            work = paced(work, ref_chunk, unit, 0.6 if load is None else load)
        if save_trace is not None:
            work.write(save_trace)
        rows = []
        tokens: set[str] = set()
        cost = _cost(engine, work, ref_chunk) if clock == "virtual" else None
        for spec, policy in schedules.items():
            result = _run(engine, policy, work, clock, cost, num_blocks)
            tokens.add(str(sorted(result.tokens().items())))
            good = goodput(result.timings.values(), ttft=ttft_limit * unit, tbt=tbt_limit * alone)
            rows.append({"schedule": spec, "goodput": good, **result.to_dict()})
        engine.close()
        summary: dict[str, Any] = {
            "model": target.name,
            "trace": work.name,
            "digest": work.digest,
            "requests": len(work.requests),
            "rate": work.rate,
            "clock": clock,
            "iteration_seconds": unit,
            "decode_seconds": alone,
            "limits": {"ttft": ttft_limit * unit, "tbt_p99": tbt_limit * alone},
            "same_tokens": len(tokens) == 1,
            "machine": machine(),
            "rows": rows,
        }
        if as_json:
            show_json(summary)
        else:
            _show(summary)


def _schedule(spec: str, ref_chunk: int) -> Scheduler:
    """A schedule by its spec; knobs that are not given follow the reference chunk."""
    import dataclasses

    from outlay import registry
    from outlay.errors import InputError
    from outlay.schedule.base import Scheduler
    from outlay.schedule.chunked import ChunkedPrefill
    from outlay.schedule.layered import LayeredPrefill
    from outlay.schedule.presets import GROUPS

    made = registry.create("methods", spec)
    if not isinstance(made, Scheduler):
        raise InputError(f"{spec!r} is no schedule; there are: {', '.join(DEFAULT)}")
    written = registry.parse_spec(spec)[1]
    if isinstance(made, LayeredPrefill):
        chunk = made.ref_chunk if "ref_chunk" in written else ref_chunk
        wanted = {"ref_chunk": chunk, "max_num_batched_tokens": GROUPS * chunk}
    elif isinstance(made, ChunkedPrefill):
        wanted = {"max_num_batched_tokens": ref_chunk}
    else:
        wanted = {}
    missing = {name: value for name, value in wanted.items() if name not in written}
    return dataclasses.replace(made, **missing) if missing else made  # type: ignore[type-var]


def _model(spec: str, device: str | None) -> LocalModel:
    from outlay.errors import InputError
    from outlay.models import embedded
    from outlay.models.local import LocalModel

    name, _, knob = spec.partition(":")
    if name == MOE:
        from outlay.testbeds import moe

        if knob and not knob.isdecimal():
            raise InputError(f"--model {spec}; write moe or moe:16")
        return moe.load(int(knob or 48), device=device)
    if spec == "embedded":
        return embedded.load(device=device)
    return LocalModel.load(spec, device=device)


def _trace(name: str, target: LocalModel, requests: int | None, seed: int) -> tuple[Trace, bool]:
    """The trace, and whether its times were given by a file."""
    import dataclasses

    from outlay.schedule.base import positive
    from outlay.schedule.traces import LONG, MIXED, Trace, make, read

    if requests is not None:
        positive(requests=requests)
    named = {spec.name: spec for spec in (LONG, MIXED)}
    if name in named:
        spec = dataclasses.replace(named[name], seed=seed)
        work, given = make(spec, target.tokenizer, 1.0), False
    else:
        work, given = read(name, vocabulary=target.vocabulary), True
    if requests is not None:
        work = Trace(work.name, work.seed, work.rate, work.requests[:requests])
    return work, given


def _cost(engine: Any, work: Trace, ref_chunk: int) -> Any:
    """A cost table from the engine's own steps on the trace, chunked and whole."""
    from outlay.schedule.chunked import ChunkedPrefill
    from outlay.schedule.measuring import run
    from outlay.schedule.orca import Orca
    from outlay.schedule.simulator import Fitted, MoEShape

    watch = engine.watch
    shape = MoEShape(engine.depth, watch.experts, watch.top_k, watch.expert_bytes, engine.context)
    policies: tuple[Scheduler, ...] = (ChunkedPrefill(ref_chunk), Orca())
    steps = [
        step
        for policy in policies
        for step in run(engine, policy, work.requests, clock="wall").steps
    ]
    return Fitted.fit(steps, shape)


def _run(
    engine: Any,
    policy: Scheduler,
    work: Trace,
    clock: Any,
    cost: Any,
    num_blocks: int | None,
) -> Run:
    from outlay.schedule.measuring import blocks_for
    from outlay.schedule.serving import Server

    engine.reset()
    blocks = num_blocks or blocks_for(work.requests, engine.block)
    server = Server(engine, policy, blocks, engine.block, clock, cost)
    result = server.serve(work.requests)
    engine.reset()
    return result


def _show(summary: dict[str, Any]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    title = f"{summary['model']}, trace {summary['trace']}"
    table = Table(title=title, box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("schedule", overflow="fold", min_width=15)
    for name in ("TTFT", "p99", "TBT p50", "p99", "max", "tok/s", "in time", "experts"):
        table.add_column(name, justify="right")
    for row in summary["rows"]:
        seconds = [row["ttft_mean"], row["ttft_p99"]]
        gaps = [row[name] for name in ("tbt_p50", "tbt_p99", "tbt_max")]
        table.add_row(
            row["schedule"],
            *("-" if value is None else f"{value:.2f} s" for value in seconds),
            *("-" if value is None else f"{1000 * value:.0f} ms" for value in gaps),
            "-" if row["tokens_per_second"] is None else f"{row['tokens_per_second']:.1f}",
            f"{row['goodput']:.0%}",
            f"{row['expert_bytes'] / 1e9:.2f} GB" if row["expert_bytes"] else "dense",
        )
    console = Console()
    console.print(table)
    same = "the same" if summary["same_tokens"] else "DIFFERENT"
    console.print(
        f"{summary['requests']} requests at {summary['rate']:.3g}/s, clock: {summary['clock']}; "
        f"an iteration with a chunk takes {1000 * summary['iteration_seconds']:.0f} ms, one "
        f"without {1000 * summary['decode_seconds']:.0f} ms; in time: first token within "
        f"{summary['limits']['ttft']:.2f} s, p99 gap within "
        f"{1000 * summary['limits']['tbt_p99']:.0f} ms; tokens are {same} under all schedules",
        highlight=False,
    )
