"""The gateway's own cost: requests a second, and what it adds to the time of one request.

One worker each, on loopback, budgets and ledger on: outlay on SQLite (both durability settings) and
on PostgreSQL, LiteLLM's proxy in its own environment (no database, so no budgets), and the bare
upstream. The load generator and the upstream are processes of their own; everything shares this
machine's cores. All sides run in turns. Against the upstream of 200 ms callers pause up to 40 ms
between requests, and are so many that 64 are in flight. Then callers with unknown keys, every one
another: as many as are refused over 64 connections, and 10,000 a second beside callers with a key.

Targets, set beforehand: at least 10 times LiteLLM's requests a second on SQLite with an instant
upstream at 64 connections; with an upstream of 200 ms and 64 in flight, less than 3 ms added at the
median and less than 30 ms at the 99th percentile; at least 10,000 unknown keys refused a second.

    python benchmarks/gateway.py [--seconds 5] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from common import Row, peer_python, warn_if_busy, write
from gateway_servers import HERE, Side, litellm, outlay, postgres, upstream

CONNECTIONS = 64
WAIT, PAUSE = 0.2, 0.04
CALLERS = round(CONNECTIONS * (WAIT + PAUSE / 2) / WAIT)  # so that as many are in flight
TARGET_RATIO, TARGET_P50, TARGET_P99, TARGET_REFUSED = 10.0, 3.0, 30.0, 10_000
GOOD, ENOUGH = 8, 10**9
BARE, PEER = "bare upstream", "LiteLLM's proxy"
SQLITE, PROCESS, POSTGRES = (
    "outlay, SQLite, durability machine",
    "outlay, SQLite, durability process",
    "outlay, PostgreSQL, durability machine",
)


@dataclass
class Measured:
    """What one side did, a figure a round."""

    rates: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of one turn")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    warn_if_busy()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ups = {
            "instant": stack.enter_context(upstream(folder, 0.0)),
            "slow": stack.enter_context(upstream(folder, WAIT)),
        }
        sides = _sides(stack, folder, ups)
        rates = _turns(sides, ups, "instant", options.seconds, options.rounds)
        times = _turns(sides, ups, "slow", options.seconds, options.rounds)
        flooded = _floods(sides[SQLITE], options.seconds, options.rounds)
    write("gateway", [*_rate_rows(rates), *_latency_rows(times), *_flood_rows(flooded)])


def _sides(stack: ExitStack, folder: Path, ups: dict[str, str]) -> dict[str, Side | None]:
    """The servers by name; None is the upstream itself."""
    sides: dict[str, Side | None] = {BARE: None}
    for name, durability in ((SQLITE, "machine"), (PROCESS, "process")):
        made = outlay(folder, ups, name=f"sqlite-{durability}", durability=durability)
        sides[name] = stack.enter_context(made)
    database = stack.enter_context(postgres(folder))
    if database is not None:
        sides[POSTGRES] = stack.enter_context(
            outlay(folder, ups, name="postgresql", database=database)
        )
    python = peer_python("litellm")
    if python is not None:
        sides[PEER] = stack.enter_context(litellm(folder, ups, python))
    return sides


def _turns(
    sides: dict[str, Side | None], ups: dict[str, str], model: str, seconds: float, rounds: int
) -> dict[str, Measured]:
    found = {name: Measured() for name in sides}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            target = side or Side(ups[model], "none")
            rate, p50, p99 = _load(target, model, seconds if turn else min(2.0, seconds))
            if not turn:  # warm-up
                continue
            mine = found[name]
            mine.rates.append(rate)
            mine.p50.append(p50)
            mine.p99.append(p99)
            print(f"{model} {turn} {name}: {rate:.0f}/s, {p50:.1f} / {p99:.1f} ms")
    return found


@dataclass
class Flooded:
    """What unknown keys did to a side, a figure a round."""

    refused: list[float] = field(default_factory=list)
    beside: list[float] = field(
        default_factory=list
    )  # refused while callers with a key were served
    served: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)  # the median without a flood


def _floods(side: Side | None, seconds: float, rounds: int) -> Flooded:
    """Alone, then beside callers with a key. LiteLLM has no keys without a database."""
    assert side is not None
    mine = Flooded()
    for turn in range(rounds):
        mine.refused.append(_flood(_flooding(side, seconds, 0)))
        rate, p50, _ = _load(side, "slow", seconds, (GOOD, 0.0))
        mine.alone.append(p50)
        flood = _flooding(side, seconds + 2, TARGET_REFUSED)
        served, p50, p99 = _load(side, "slow", seconds, (GOOD, 0.0))
        mine.beside.append(_flood(flood))
        mine.served.append(served / rate)
        mine.p50.append(p50)
        mine.p99.append(p99)
        print(f"unknown keys {turn + 1}: {mine.refused[-1]:.0f}/s; beside {p50:.1f} / {p99:.1f} ms")
    return mine


def _flooding(side: Side, seconds: float, rate: float) -> subprocess.Popen[str]:
    command = [sys.executable, str(HERE / "gateway_flood.py"), side.url, str(ENOUGH)]
    command += [str(seconds), str(CONNECTIONS), str(rate)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _flood(process: subprocess.Popen[str]) -> float:
    """Refusals a second; every request must have been refused."""
    output, _ = process.communicate(timeout=600)
    answer = json.loads(output)
    if answer["other"] or answer["closed"] or answer["refused"] != answer["requests"]:
        raise RuntimeError(f"not all unknown keys were refused: {answer}")
    return float(answer["refused"] / answer["seconds"])


def _load(
    side: Side, model: str, seconds: float, load: tuple[int, float] | None = None
) -> tuple[float, float, float]:
    connections, pause = load or ((CALLERS, PAUSE) if model == "slow" else (CONNECTIONS, 0.0))
    command = [sys.executable, str(HERE / "gateway_load.py"), side.url, side.token, model]
    done = subprocess.run(
        [*command, str(seconds), str(connections), str(pause)],
        check=True,
        capture_output=True,
        text=True,
    )
    answer = json.loads(done.stdout)
    if answer["failed"]:
        raise RuntimeError(f"{answer['failed']} of {answer['requests']} requests failed: {side}")
    return answer["requests"] / answer["seconds"], answer["p50"], answer["p99"]


def _peer() -> str:
    wanted = (HERE / "peers" / "litellm.txt").read_text(encoding="utf-8")
    version = wanted.rsplit("==", 1)[1].strip()
    return f"{PEER} {version}, no database"


def _row(
    case: str, unit: str, ours: Sequence[float], theirs: Sequence[float], note: str, *, up: bool
) -> Row:
    """A comparison turn by turn; `up` where more is better."""
    middle = statistics.median(ours)
    if not theirs:
        return Row(case, unit, middle, note=note)
    ratios = [a / b if up else b / max(a, 0.01) for a, b in zip(ours, theirs, strict=True)]
    spread = (min(ratios), max(ratios))
    other = statistics.median(theirs)
    return Row(case, unit, middle, other, _peer(), statistics.median(ratios), spread, note)


def _rate_rows(found: dict[str, Measured]) -> list[Row]:
    rows = []
    peer = found.get(PEER, Measured()).rates
    for name, mine in found.items():
        if name == PEER:
            continue
        note = f"{min(mine.rates):.0f} to {max(mine.rates):.0f}"
        against = [] if name == BARE else peer
        if name == SQLITE and peer:
            ratio = statistics.median(a / b for a, b in zip(mine.rates, peer, strict=True))
            note += _verdict(f"at least {TARGET_RATIO:g} times the peer", ratio >= TARGET_RATIO)
        case = f"instant upstream, {CONNECTIONS} connections: {name}"
        rows.append(_row(case, "requests/s", mine.rates, against, note, up=True))
    return rows


def _latency_rows(found: dict[str, Measured]) -> list[Row]:
    rows = []
    bare = found[BARE]
    for name, mine in found.items():
        if name in (BARE, PEER):
            continue
        for label, target in (("p50", TARGET_P50), ("p99", TARGET_P99)):
            base = getattr(bare, label)
            added = _added(getattr(mine, label), base)
            against = _added(getattr(found[PEER], label), base) if PEER in found else []
            note = f"{min(added):.1f} to {max(added):.1f}; bare {statistics.median(base):.1f}"
            if name == SQLITE:
                note += _verdict(f"less than {target:g} ms", statistics.median(added) < target)
            case = f"{WAIT * 1000:.0f} ms upstream, {CONNECTIONS} in flight, added {label}: {name}"
            rows.append(_row(case, "ms", added, against, note, up=False))
    return rows


def _flood_rows(mine: Flooded) -> list[Row]:
    reached = statistics.median(mine.refused) >= TARGET_REFUSED
    note = f"{min(mine.refused):.0f} to {max(mine.refused):.0f}; one worker, whose cores the load "
    note += "shares" + _verdict(f"at least {TARGET_REFUSED} a second", reached)
    case = f"unknown keys, {CONNECTIONS} connections: {SQLITE}"
    rows = [_row(case, "refused/s", mine.refused, [], note, up=True)]
    kept = statistics.median(mine.served)
    note = f"{statistics.median(mine.beside):.0f} refused/s meanwhile; the callers got "
    note += f"{kept:.0%} of the requests done that they get alone, at "
    note += f"{statistics.median(mine.alone):.1f} ms"
    for label, figures in (("p50", mine.p50), ("p99", mine.p99)):
        case = f"{GOOD} callers beside {TARGET_REFUSED} unknown keys a second, "
        case += f"{WAIT * 1000:.0f} ms upstream, {label}: {SQLITE}"
        rows.append(Row(case, "ms", statistics.median(figures), note=note))
    return rows


def _added(mine: Sequence[float], bare: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(mine, bare, strict=True)]


def _verdict(target: str, reached: bool) -> str:
    return f"; target: {target}, {'reached' if reached else 'missed'}"


if __name__ == "__main__":
    main()
