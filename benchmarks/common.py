"""What every benchmark shares: turns, medians, spreads, and the results file."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from outlay.machine import commit, machine, today

RESULTS = Path(__file__).resolve().parent.parent / "results" / "benchmarks"


@dataclass(frozen=True)
class Row:
    """One comparison; ratio > 1 means that ours is better.

    Args:
        case: what was measured.
        unit: of `ours` and `theirs`.
        ours: median.
        theirs: median of the peer, None where the figure stands alone.
        peer: who the peer is.
        ratio: better / worse way round, so that > 1 favours us.
        spread: smallest and largest ratio over the turns.
        note: target, and what a reader should know.
    """

    case: str
    unit: str
    ours: float
    theirs: float | None = None
    peer: str = ""
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    note: str = ""


def turns(
    sides: Mapping[str, Callable[[], object]], repeats: int, *, clock: str = "wall"
) -> dict[str, list[float]]:
    """Seconds of every side, run in turns (A B A B ...) after one warm-up of each.

    Args:
        sides: name to work.
        repeats: timed rounds.
        clock: "wall", or "cpu" for the process's own time, which other work does not inflate.
    """
    read = time.perf_counter if clock == "wall" else time.process_time
    for work in sides.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, work in sides.items():
            start = read()
            work()
            seconds[name].append(read() - start)
    return seconds


def faster(case: str, ours: Sequence[float], theirs: Sequence[float], peer: str, note: str) -> Row:
    """A row of seconds: how many times faster ours is, turn by turn."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return Row(
        case,
        "seconds",
        statistics.median(ours),
        statistics.median(theirs),
        peer,
        statistics.median(ratios),
        (min(ratios), max(ratios)),
        note,
    )


def write(name: str, rows: Sequence[Row], where: Mapping[str, Any] | None = None) -> Path:
    """Write `results/benchmarks/<name>.json` and the same as a Markdown table.

    Args:
        name: of the benchmark.
        rows: what was measured.
        where: the machine, if the figures were stored on another one.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    where = where or machine()
    data = {
        "name": name,
        "date": today(),
        "commit": commit(),
        "machine": dict(where),
        "rows": [asdict(row) for row in rows],
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    shown = table(name, rows, where)
    path.with_suffix(".md").write_text(shown, encoding="utf-8")
    print(shown)
    print(f"wrote {path}")
    return path


def table(name: str, rows: Sequence[Row], where: Mapping[str, Any] | None = None) -> str:
    """The rows as a Markdown table; `where` as in `write`."""
    where = where or machine()
    about = where.get("gpu") or where["cpu"]
    lines = [f"# {name}", "", f"{today()}, {about}, load {where.get('load')}.", ""]
    lines += ["| case | unit | ours | theirs | peer | ratio | spread | note |", "|---" * 8 + "|"]
    for row in rows:
        spread = "" if row.spread is None else f"{row.spread[0]:.2f} to {row.spread[1]:.2f}"
        cells = (
            row.case,
            row.unit,
            f"{row.ours:.4g}",
            "" if row.theirs is None else f"{row.theirs:.4g}",
            row.peer,
            "" if row.ratio is None else f"{row.ratio:.2f}",
            spread,
            row.note,
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def warn_if_busy() -> None:
    """Say so when other work makes times unreliable."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores:
        print(f"warning: load average {load:.1f} exceeds {cores} cores; times are unreliable")


def peer_python(name: str) -> Path | None:
    """The interpreter of a peer's own environment, made from `peers/<name>.txt` on first use.

    Returns None, having said why, where it cannot be made.
    """
    from outlay.models.store import cache_dir

    wanted = (Path(__file__).parent / "peers" / f"{name}.txt").read_text(encoding="utf-8")
    home = cache_dir() / "peers" / name
    python, stamp = home / "env" / "bin" / "python", home / "installed.txt"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(f"making the environment of {name} (once, some minutes) ...")
    home.mkdir(parents=True, exist_ok=True)
    (home / "requirements.txt").write_text(wanted, encoding="utf-8")
    steps = (
        [sys.executable, "-m", "venv", "--clear", str(home / "env")],
        [str(python), "-m", "pip", "install", "-q", "-r", str(home / "requirements.txt")],
    )
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"no peer {name}: {done.stderr.strip().splitlines()[-1:]}")
            return None
    stamp.write_text(wanted, encoding="utf-8")
    return python
