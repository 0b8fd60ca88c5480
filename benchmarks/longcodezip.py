"""LongCodeZip: speed and memory against context length, the published procedure, and LLMLingua.

python benchmarks/longcodezip.py [--sizes 4000 16000 64000] [--layers 3] [--threads 2]

The scorer is SmolLM2-135M-Instruct cut to its first layers, so that 64k tokens take minutes on two
cores; both sides use the same one, and what is compared is work, not quality. `--layers 30` runs
the whole model. Every measurement is a process of its own, so that peak memory is its own too.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import common
from outlay.budget import Budget
from outlay.models import embedded, store
from outlay.models.local import LocalModel
from outlay.prompt.chunking import split_chunks
from outlay.prompt.longcodezip import LongCodeZip
from reference_longcodezip import Choice, select

QUESTION = "def main(argv):\n    parser = ArgumentParser(description=__doc__)\n    parser.add_"
MODULES = ("textwrap", "argparse", "inspect", "typing", "tarfile", "subprocess", "ast", "turtle")


def truncated(layers: int) -> Path:
    """The embedded model with its first `layers` layers, in the cache folder."""
    source, _ = embedded.fetch()

    def make(folder: Path) -> dict[str, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(source)
        model.model.layers = model.model.layers[:layers]
        model.config.num_hidden_layers = layers
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)
        return {"layers": layers}

    folder, _ = store.build(f"{embedded.NAME}-first-{layers}", make)
    return folder


def context(model: LocalModel, tokens: int) -> str:
    """Whole lines of standard-library source, about `tokens` tokens, cut at a definition."""
    import importlib

    text = "\n".join(
        Path(str(importlib.import_module(name).__file__)).read_text(encoding="utf-8")
        for name in MODULES
    )
    ids = model.encode(text[: tokens * 6])[:tokens]
    cut = model.decode(ids)
    return cut[: cut.rfind("\n    def ")] + "\n"


def worker(options: argparse.Namespace) -> None:
    """One measurement; prints JSON."""
    torch.set_num_threads(options.threads)
    model = LocalModel.load(truncated(options.layers))
    text = context(model, options.worker)
    budget = max(500, options.worker // 8)
    method = LongCodeZip(model, alloc="paper")  # the reference rescales rates once, as published
    model.losses([text[:2000]])  # warm up
    start, cpu = time.perf_counter(), time.process_time()
    result = method.compress(
        text,
        QUESTION,
        Budget(tokens=budget, counts="prompt"),
        count=model.count,
        language="python",
    )
    answer: dict[str, Any] = {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "tokens": result.original_tokens,
        "kept": result.tokens,
        "budget": budget,
        "scored": result.ledger.totals().prompt,
        "maxrss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    if options.reference:
        start, cpu = time.perf_counter(), time.process_time()
        choices = select(
            model,
            text.rstrip("\n"),
            QUESTION,
            budget,
            count=model.count,
            fine_budget=result.report["fine_budget"],
            overshoot=False,
        )
        answer["reference_seconds"] = time.perf_counter() - start
        answer["reference_cpu"] = time.process_time() - cpu
        answer["same"] = _same(result.report["chunks"], choices)
    json.dump(answer, sys.stdout)


def _same(chunks: list[dict[str, Any]], choices: list[Choice]) -> bool:
    """Equal functions, and equal blocks wherever a function is kept in part."""
    for ours, theirs in zip(chunks, choices, strict=True):
        if ours["selected"] != theirs.selected:
            return False
        cut = ours["selected"] and ours["rate"] < 1
        if cut and [b["chosen"] for b in ours["blocks"]] != theirs.chosen:
            return False
    return True


def measure(options: argparse.Namespace, size: int, *, with_reference: bool) -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", str(size), "--layers", str(options.layers)]
    command += ["--threads", str(options.threads)] + (["--reference"] if with_reference else [])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(size, answer, flush=True)
    return answer


def llmlingua(options: argparse.Namespace, size: int) -> dict[str, Any] | None:
    python = common.peer_python("llmlingua")
    if python is None:
        return None
    model = LocalModel.load(truncated(options.layers))
    lines = context(model, size).split("\n")
    chunks, _ = split_chunks(lines, "python")
    request = {
        "model": str(truncated(options.layers)),
        "chunks": ["\n".join(lines[c.first : c.stop]) for c in chunks],
        "question": QUESTION,
        "budget": max(500, size // 8),
        "threads": options.threads,
    }
    driver = Path(__file__).parent / "peers" / "llmlingua_driver.py"
    done = subprocess.run(
        [str(python), str(driver)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError:
        answer = {"error": (done.stderr.strip().splitlines() or ["no answer"])[-1][:300]}
    answer["kept"] = model.count(answer.get("text", ""))
    answer.pop("text", None)
    print("llmlingua", size, answer, flush=True)
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4000, 16000, 64000])
    parser.add_argument("--reference-size", type=int, default=16000)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--reference", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options)
        return
    common.warn_if_busy()
    scorer = f"scorer: first {options.layers} layers of SmolLM2-135M"
    rows = []
    found: dict[int, dict[str, Any]] = {}
    for size in options.sizes:
        ours = found[size] = measure(options, size, with_reference=size == options.reference_size)
        peer = None if options.no_peer else llmlingua(options, size)
        speed = ours["tokens"] / ours["seconds"]
        budget_note = f"kept {ours['kept']} of {ours['budget']}; {scorer}"
        theirs, ratio, note = None, None, budget_note
        if peer is not None and "error" not in peer:
            theirs = ours["tokens"] / peer["seconds"]
            ratio = speed / theirs
            note += f"; llmlingua kept {peer['kept']}"
        elif peer is not None:
            note += f"; llmlingua failed: {peer['error']}"
        name = "llmlingua 0.2.2 (LongLLMLingua)" if peer is not None else ""
        rows.append(
            common.Row(f"{size} tokens", "context tokens/s", speed, theirs, name, ratio, None, note)
        )
        peak = peer.get("maxrss_mb") if peer is not None and "error" not in peer else None
        rows.append(
            common.Row(
                f"{size} tokens: peak memory",
                "MB",
                ours["maxrss_mb"],
                peak,
                name if peak else "",
                None if not peak else peak / ours["maxrss_mb"],
            )
        )
        if "reference_seconds" in ours:
            rows.append(
                common.Row(
                    f"{size} tokens against one pass per line and block",
                    "CPU seconds",
                    ours["cpu"],
                    ours["reference_cpu"],
                    "slow reference, as published",
                    ours["reference_cpu"] / ours["cpu"],
                    None,
                    f"target >= 5; same selection: {ours['same']}; {scorer}",
                )
            )
    if len(found) > 1:
        least, most = min(found), max(found)
        per_token = {s: a["cpu"] / a["tokens"] for s, a in found.items()}
        rows.append(
            common.Row(
                f"CPU time per token, {least} to {most} tokens",
                "ms",
                1000 * per_token[most],
                1000 * per_token[least],
                "ourselves at the smallest size",
                per_token[least] / per_token[most],
                None,
                "target: flat within 20 %",
            )
        )
    common.write("longcodezip", rows)


if __name__ == "__main__":
    main()
