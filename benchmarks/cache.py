"""Caches of fixed size: time and memory per token at 2k and 32k, and recall beside kvpress.

python benchmarks/cache.py [--long 32768] [--needles 40] [--no-peer]

Beside LaCache stand the full cache (its rows at 32k are copies of real ones: the time of a step
does not depend on what they hold), and kvpress 0.5.5 in its own environment, on the same needle
prompts at the same number of rows. Times are of the process, which other work inflates less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import common
from common import Row
from outlay.cache.loop import FullCache, forward, kv_bytes
from outlay.cache.streaming import running_text
from outlay.models import embedded
from outlay.models.local import LocalModel
from outlay.proofs.lacache import DEPTHS
from outlay.proofs.lacache_runs import (
    SHUFFLED,
    Needles,
    Outcome,
    answer,
    compacted,
    ladders,
    needles,
    pace,
    read,
)

NEAR, CAPACITY, SLOWER = 2048, 512, 1.10
TOKENS, SHARE, BATCH = 300, 0.5, 10
PRESSES = ("StreamingLLMPress", "SnapKVPress", "RandomPress", "KnormPress")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--long", type=int, default=32_768)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--needles", type=int, default=40)
    parser.add_argument("--no-peer", action="store_true")
    options = parser.parse_args()
    common.warn_if_busy()
    torch.set_num_threads(1)
    model = embedded.load(device="cpu")
    rows = _steps(model, options.long, options.steps)
    rows += _recall(model, options.needles, peer=not options.no_peer)
    common.write("cache", rows)


def _steps(model: LocalModel, long: int, steps: int) -> list[Row]:
    """Steps of one token behind 2k and 32k tokens."""
    layers = int(model.model.config.num_hidden_layers)
    text_BT = running_text(model, long)
    ours = pace(
        model,
        ladders(layers, 8, 4, capacity=CAPACITY),
        text_BT,
        near=NEAR,
        window=256,
        block=NEAR,
        steps=steps,
    )
    full = FullCache().prefill(model, text_BT[:, :NEAR]).cache
    near_S, near_bytes = _timed(model, full, text_BT, steps), kv_bytes(full)
    for layer in full.layers:
        times = -(-long // layer.keys.shape[-2])
        layer.keys = layer.keys.repeat(1, 1, times, 1)[..., :long, :].contiguous()
        layer.values = layer.values.repeat(1, 1, times, 1)[..., :long, :].contiguous()
    far_bytes = kv_bytes(full)
    far_S = _timed(model, full, text_BT, max(5, steps // 4))
    note = f"medians of single steps, {CAPACITY} rows, S=8, O=4; in CPU time"
    found = []
    for tokens, mine_S, theirs_S in ((NEAR, ours.near_S, near_S), (long, ours.far_S, far_S)):
        mine, theirs = (1000 * float(np.median(each)) for each in (mine_S, theirs_S))
        found.append(
            Row(
                f"a step behind {tokens} tokens",
                "ms",
                mine,
                theirs,
                "full cache",
                theirs / mine,
                None,
                note,
            )
        )
    ratio = float(np.median(ours.far_S) / np.median(ours.near_S))
    found.append(
        Row(
            f"LaCache: a step behind {long} tokens over one behind {NEAR}",
            "ratio",
            ratio,
            float(np.median(far_S) / np.median(near_S)),
            "full cache, the same ratio",
            float(np.median(far_S) / np.median(near_S)) / ratio,
            None,
            f"target: at most {SLOWER}",
        )
    )
    for tokens, mine, theirs in (
        (NEAR, ours.near_bytes, near_bytes),
        (long, ours.far_bytes, far_bytes),
    ):
        found.append(
            Row(
                f"keys and values behind {tokens} tokens",
                "MB",
                mine / 1e6,
                theirs / 1e6,
                "full cache",
                theirs / mine,
            )
        )
    return found


def _timed(model: LocalModel, cache: Any, text_BT: torch.Tensor, steps: int) -> list[float]:
    seconds = []
    for index in range(steps + 3):
        start = time.process_time()
        forward(model, text_BT[:, index : index + 1], cache)
        seconds.append(time.process_time() - start)
    cache.crop(-(steps + 3))
    return seconds[3:]


def _recall(model: LocalModel, count: int, *, peer: bool) -> list[Row]:
    """Needle accuracy at equal rows; ours in turn with the peer's presses."""
    layers = int(model.model.config.num_hidden_layers)
    task = needles(model, TOKENS, DEPTHS, -(-count // len(DEPTHS)), seed=5)
    rows = int(SHARE * TOKENS)
    chosen = ("ladder S=15 O=0", SHUFFLED)
    methods = {
        name: ladders(
            layers,
            15,
            0,
            capacity=rows,
            mode="prefill_once",
            ladder="shuffled" if name == SHUFFLED else "modulo",
        )
        for name in chosen
    }
    ours: dict[str, Outcome] = {name: Outcome() for name in methods}
    cpu = dict.fromkeys(methods, 0.0)
    for part in task.batches(BATCH):
        for name, method in methods.items():
            start = time.process_time()
            answer(model, part, compacted(model, method, read(model, part.ids_BT)), ours[name])
            cpu[name] += time.process_time() - start
    theirs = _kvpress(task) if peer else None
    found = []
    for name, outcome in ours.items():
        mine = float(outcome.marks.mean())
        note = (
            f"depths .1 to .5, {TOKENS} tokens, n={len(outcome.right)}, "
            f"{statistics.mean(outcome.rows):.0f} rows, {cpu[name]:.1f} CPU seconds"
        )
        found.append(
            Row(f"needle accuracy at {SHARE:.0%} of the rows, {name}", "share", mine, note=note)
        )
        for press, got in (theirs or {}).items():
            right = float((np.array(got["picked"]) == task.answer_B.numpy()).mean())
            found.append(
                Row(
                    f"needle accuracy at {SHARE:.0%} of the rows, {name}",
                    "share",
                    mine,
                    right,
                    f"kvpress 0.5.5 {press}",
                    mine / right if right else None,
                    None,
                    f"kvpress held {got['rows']} rows and took {got['cpu']:.1f} CPU seconds",
                )
            )
    return found


def _kvpress(task: Needles) -> dict[str, Any] | None:
    python = common.peer_python("kvpress")
    if python is None:
        return None
    folder, _ = embedded.fetch()
    request = {
        "model": str(folder),
        "share": SHARE,
        "presses": PRESSES,
        "threads": 1,
        "batches": [
            {
                "ids": part.ids_BT.tolist(),
                "question": part.question_BQ.tolist(),
                "options": part.options_BO.tolist(),
            }
            for part in task.batches(BATCH)
        ],
    }
    driver = Path(__file__).parent / "peers" / "kvpress_driver.py"
    done = subprocess.run(
        [str(python), str(driver)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        timeout=3600,
    )
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError:
        found = {"error": (done.stderr.strip().splitlines() or ["no answer"])[-1][:300]}
    if "error" in found:
        print(f"no peer kvpress: {found['error']}")
        return None
    return found


if __name__ == "__main__":
    main()
