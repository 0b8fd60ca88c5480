"""Layered prefill on a GPU: the same engine in bf16, with the card's own energy counter.

    python -m outlay.proofs.layered_prefill_gpu --out DIR

The model has random weights at the widths of GPT-OSS-20B (24 layers, 32 experts of 2880, 4 per
token), which the paper uses too, as a Mixtral: what an iteration costs does not depend on the
values of the weights, but on their size. The dense control has one MLP as wide as the four active
experts. Traces are modules and functions of Python's standard library. Every schedule serves the
same trace; layered and chunked prefill take turns twice. All targets were written before the run.

Where the paper serves with vLLM-like kernels, this engine launches every kernel from Python and
attends request by request, so iterations have a floor of launches that hides part of what layered
prefill saves.
"""

from __future__ import annotations

import json
import statistics
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from outlay.models.local import choose_device
from outlay.proofs.base import Check, ProofResult
from outlay.schedule.energy import nvml_joules
from outlay.schedule.engine import Engine
from outlay.schedule.measuring import iteration, paced, run
from outlay.schedule.presets import compared
from outlay.schedule.traces import TraceSpec, make

SYSTEM = "layered-prefill-gpu"
LOAD = 0.6
REFS = (512, 128)
LONG = TraceSpec("gpu-long", 12, (2048, 8192), (32, 64), "module")
MIXED = TraceSpec("gpu-mixed", 20, (64, 4096), (32, 128), "any")
LEAST_TRAFFIC = 0.30  # share of the expert bytes that layered prefill saves, at least
MOST_TBT = 1.20  # 99th percentile of TBT over that of chunked prefill, at most
_FULL = {
    "hidden_size": 2880,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_hidden_layers": 24,
    "vocab_size": 49152,
    "max_position_embeddings": 32768,
}
_WIDTH, _EXPERTS, _TOP_K = 2880, 32, 4
_TINY = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 6,
}


def network(*, dense: bool, tiny: bool, device: torch.device) -> Any:
    """A random network on the device, in bf16 on CUDA."""
    from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

    sizes: dict[str, Any] = {**_FULL, **(_TINY if tiny else {})}
    width = 64 if tiny else _WIDTH
    if dense:
        config: Any = LlamaConfig(intermediate_size=_TOP_K * width, **sizes)
        cls: Any = LlamaForCausalLM
    else:
        config = MixtralConfig(
            intermediate_size=width,
            num_local_experts=_EXPERTS,
            num_experts_per_tok=_TOP_K,
            sliding_window=None,
            **sizes,
        )
        cls = MixtralForCausalLM
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            made = cls(config)
    finally:
        torch.set_default_dtype(before)
    made.set_experts_implementation("grouped_mm") if not dense else None
    return made.eval().requires_grad_(False)


@dataclass
class Bench:
    """Runs of one model, kept as they come."""

    device: torch.device
    rows: list[dict[str, Any]]
    keep: Callable[[], None]
    say: Callable[[str], None]
    joules: Callable[[], float] | None

    def trace(
        self, engine: Engine, kind: str, spec: TraceSpec, ref: int, names: list[str], tokenizer: Any
    ) -> None:
        """Serve a trace by the named schedules."""
        mixed, alone = iteration(engine, ref, clock="wall")
        trace = paced(make(spec, tokenizer, 1.0), ref, mixed, LOAD)
        schedules = compared(ref)
        for name in names:
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            before = self.joules() if self.joules else None
            result = run(engine, schedules[name], trace.requests, clock="wall")
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            spent = self.joules() - before if self.joules and before is not None else None
            tokens = trace.prompt_tokens + sum(len(t.token_ids) for t in result.timings.values())
            self.rows.append(
                {
                    "model": kind,
                    "trace": spec.name,
                    "digest": trace.digest,
                    "ref_chunk": ref,
                    "schedule": name,
                    "rate": trace.rate,
                    "iteration_seconds": mixed,
                    "decode_seconds": alone,
                    "joules": spent,
                    "joules_per_token": None if spent is None else spent / tokens,
                    **result.to_dict(),
                }
            )
            summary = result.summary
            self.say(
                f"{kind} {spec.name} ref={ref} {name}: TTFT {summary.ttft_mean:.3f} s, p99 TBT "
                f"{1000 * summary.tbt_p99:.1f} ms, {result.traffic.bytes / 1e12:.2f} TB of experts,"
                f" {'energy not measured' if spent is None else f'{spent / tokens:.3f} J/token'}"
            )
            self.keep()


def median(
    rows: list[dict[str, Any]], name: str, schedule: str, trace: str, ref: int, model: str = "moe"
) -> float | None:
    """A figure of a schedule: the median over its runs, None where it was not measured."""
    wanted = {"schedule": schedule, "trace": trace, "ref_chunk": ref, "model": model}
    found = [
        row[name]
        for row in rows
        if all(row[key] == value for key, value in wanted.items()) and row[name] is not None
    ]
    return statistics.median(found) if found else None


def checks(rows: list[dict[str, Any]]) -> list[Check]:
    """The claims, for every trace and reference chunk that was run."""
    found: list[Check] = []

    def ratio(name: str, trace: str, ref: int, model: str = "moe") -> tuple[float, str] | None:
        ours = median(rows, name, "layered", trace, ref, model)
        theirs = median(rows, name, "chunked", trace, ref, model)
        if ours is None or not theirs:
            return None
        return ours / theirs, f"{ours:.4g} against {theirs:.4g}; ref_chunk {ref}"

    cells = sorted({(row["trace"], row["ref_chunk"]) for row in rows if row["model"] == "moe"})
    claims: list[tuple[str, str, str, Callable[[float], bool], str]] = [
        (
            "expert_bytes",
            "expert bytes, layered over chunked",
            "-39 % (arXiv trace), -12 % (ShareGPT)",
            lambda value: value <= 1 - LEAST_TRAFFIC,
            f"at most {1 - LEAST_TRAFFIC:.2f}",
        ),
        (
            "ttft_mean",
            "mean TTFT, layered over chunked",
            "-70 % at most",
            lambda value: value < 1,
            "below 1",
        ),
        (
            "tbt_p99",
            "p99 TBT, layered over chunked",
            "stall-free",
            lambda value: value <= MOST_TBT,
            f"at most {MOST_TBT}",
        ),
        (
            "joules_per_token",
            "energy per token, layered over chunked",
            "-22 % at most",
            lambda value: value < 1,
            "below 1",
        ),
    ]
    for trace, ref in cells:
        for name, claim, paper, good, target in claims:
            if (value := ratio(name, trace, ref)) is not None:
                note = f"{value[1]}; target: {target}"
                found.append(
                    Check(f"{trace}: {claim}", paper, value[0], good(value[0]), None, note)
                )
    for name, what in (("ttft_mean", "mean TTFT"), ("tbt_p99", "p99 TBT")):
        if (value := ratio(name, LONG.name, REFS[0], "dense")) is not None:
            found.append(
                Check(
                    f"dense control, {LONG.name}: {what}, layered over chunked",
                    "both worse on a dense model",
                    value[0],
                    None,
                    None,
                    value[1],
                )
            )
    return found


def main(
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    device: Annotated[str | None, typer.Option(help="cuda or cpu; default: the best.")] = None,
    tiny: Annotated[bool, typer.Option(help="A tiny model and short traces: a dry run.")] = False,
    seed: Annotated[int, typer.Option(help="Of weights.")] = 0,
) -> None:
    """Run all schedules on a GPU and write the results."""
    from outlay.models import embedded

    place = choose_device(device)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = embedded.load(device="cpu").tokenizer
    result = ProofResult(SYSTEM, "gpu", [LONG.seed, seed])
    rows: list[dict[str, Any]] = []
    refs, traces = REFS, (LONG, MIXED)
    if tiny:
        refs = (32, 16)
        traces = (
            TraceSpec(LONG.name, 4, (128, 256), (4, 8), "module"),
            TraceSpec(MIXED.name, 4, (16, 256), (4, 8), "any"),
        )

    def keep() -> None:
        (out / "rows.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")

    joules = nvml_joules() if place.type == "cuda" else None
    bench = Bench(place, rows, keep, lambda text: typer.echo(text, err=True), joules)
    turns = ["layered", "chunked", "layered", "chunked"]
    failed: list[str] = []
    for kind in ("moe", "dense"):
        torch.manual_seed(seed)
        model = network(dense=kind == "dense", tiny=tiny, device=place)
        engine = Engine(model)
        for ref in refs:
            others = ["chunked 2x", "chunked 4x", "orca"] if ref == refs[0] else []
            for spec in traces:
                if kind == "dense" and (ref, spec) != (refs[0], traces[0]):
                    continue
                names = [*turns, *(others if kind == "moe" else [])]
                try:
                    bench.trace(engine, kind, spec, ref, names, tokenizer)
                except Exception:  # one run that fails must not lose the others
                    failed.append(f"{kind} {spec.name} {ref}: {traceback.format_exc()}")
                    typer.echo(failed[-1], err=True)
                    engine.reset()
        engine.close()
        del engine, model
        if place.type == "cuda":
            torch.cuda.empty_cache()
    result.checks = checks(rows)
    result.data = {"rows": rows, "load": LOAD, "failed": failed, "device": str(place)}
    for path in result.finish().save(out):
        typer.echo(f"wrote {path}")


if __name__ == "__main__":
    typer.run(main)
