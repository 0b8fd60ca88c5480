"""A day in the life: fifty requests with long code, with and without policies, side by side.

The official openai client sends the requests of `day_trace` to `outlay serve`, whose policies
shorten the code; behind it another `outlay serve` holds the embedded model and logs what reaches
it. Every request is sent plainly and under each policy, in turns. Compared are tokens, seconds
and the answers; and, since a model of 135M parameters seldom answers rightly at all, the mean loss
of the right answer after the prompt that really reached the model.

    python benchmarks/day.py

Goes on where it was stopped: answers are kept in the cache folder. Writes
`results/benchmarks/day.json`, a table and a picture.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from openai import OpenAI

from common import RESULTS, Row, warn_if_busy, write
from day_trace import LONGEST, Request, requests
from gateway_servers import Side, admin, free_port, running
from outlay.budget import Budget
from outlay.ledger import Ledger
from outlay.models import embedded
from outlay.models.store import cache_dir
from outlay.paired import Difference, paired
from outlay.records import Record
from outlay.runs import fingerprint
from outlay.stats import percentiles, resample_means

MODEL = "embedded@fast"
KEEP = 0.4
EVERY = 2  # the loss is measured on one request of so many
PICTURE = RESULTS.parent.parent / "docs" / "images" / "gateway" / "day.png"
ABOVE = 600
SPECS = {"longcodezip": "longcodezip:rank_only=true", "bm25": "bm25"}
SIDES = ("plain", *SPECS)
PEER = "the same requests, plain"
POLICIES = "".join(
    f"""
[policies.{name}]
prompt = "{spec}"
above = {ABOVE}
keep = {KEEP}
scorer = "{MODEL}"
"""
    for name, spec in SPECS.items()
)


def main() -> None:
    warn_if_busy()
    day = requests()
    folder = cache_dir() / "day" / fingerprint({"day": [r.__dict__ for r in day], "p": POLICIES})
    folder.mkdir(parents=True, exist_ok=True)
    answers, losses = Kept(folder / "answers.jsonl"), Kept(folder / "losses.jsonl")
    if missing := [(r, s) for r, s in _turns(day) if (r.id, s) not in answers.rows]:
        _answer(missing, answers)
    if missing := [(r, s) for r, s in _turns(day[::EVERY]) if (r.id, s) not in losses.rows]:
        _lose(missing, answers, losses)
    rows = _rows(day, answers, losses)
    write("day", rows)
    print(f"wrote {picture(day, answers, losses, PICTURE)}")


class Kept:
    """Rows by request and side, appended to a file one line each."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, dict[tuple[str, str], dict[str, Any]]()
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                self.rows[row["request"], row["side"]] = row

    def add(self, request: Request, side: str, **found: Any) -> None:
        """Keep one row."""
        row = {"request": request.id, "side": side, **found}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.rows[request.id, side] = row


def _turns(day: Sequence[Request]) -> Iterator[tuple[Request, str]]:
    """Every request under every side; which one goes first changes from request to request."""
    for at, request in enumerate(day):
        for turn in range(len(SIDES)):
            yield request, SIDES[(at + turn) % len(SIDES)]


# -- answers --------------------------------------------------------------------------------------


@contextmanager
def serve(folder: Path, name: str, tables: str) -> Iterator[Side]:
    """`outlay serve` with one key, until the block ends."""
    port, config, output = free_port(), folder / f"{name}.toml", folder / f"{name}.log"
    config.write_text(
        f"[server]\nport = {port}\nlog_prompts = true\n"
        f"[store]\nurl = {json.dumps(f'sqlite:///{folder / name}.db')}\n" + tables,
        encoding="utf-8",
    )
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "outlay", "serve", str(config)]
    with running(command, f"{url}/health/ready", output=output) as process:
        found = re.search(r"olk_\w{16}_[\w-]{43}", output.read_text(encoding="utf-8"))
        assert found is not None, output.read_text(encoding="utf-8")
        made = admin(url, found[0], "POST", "keys", {"name": "agent"})
        admin(url, found[0], "POST", "budgets", {"name": "day", "window": "day", "amount": 10**9})
        yield Side(url, made["token"], process, found[0])


def _behind() -> str:
    return f"""
[upstreams.here]
local = "{MODEL}"
[models.smollm2]
upstream = "here"
tokenizer = {json.dumps(str(_tokenizer()))}
context = 8192
"""


def _before(behind: Side) -> str:
    return f"""
[upstreams.behind]
url = "{behind.url}/v1"
api_key = "{behind.token}"
[models.smollm2]
upstream = "behind"
tokenizer = {json.dumps(str(_tokenizer()))}
context = 8192
[routes.default]
choose = {json.dumps(["none", *SPECS])}
{POLICIES}
[scoring]
seconds = 300
"""


def _tokenizer() -> Path:
    folder, _ = embedded.fetch()
    return folder / "tokenizer.json"


def _answer(missing: Sequence[tuple[Request, str]], answers: Kept) -> None:
    folder = Path(tempfile.mkdtemp(prefix="outlay-day-"))
    with (
        serve(folder, "behind", _behind()) as behind,
        serve(folder, "before", _before(behind)) as s,
    ):
        client = OpenAI(base_url=f"{s.url}/v1", api_key=s.token, max_retries=0, timeout=600)
        first, _ = missing[0]
        # The first ones load the models.
        told = sum(_ask(client, first, side, f"warm {side}")["charged"] for side in SIDES)
        for number, (request, side) in enumerate(missing):
            tag = f"{number} {side}"
            before = _cpu(behind, s)
            found = _ask(client, request, side, tag)
            found["cpu"] = _cpu(behind, s) - before
            told += found["charged"]
            reached = _reached(folder / "behind.log", tag)
            answers.add(request, side, messages=reached, **found)
            print(f"{number + 1}/{len(missing)} {side}: {found['seconds']:.1f} s", flush=True)
        (budget,) = admin(s.url, s.root, "GET", "budgets")["data"]
        assert (budget["reserved"], budget["settled"]) == (0, told), (budget, told)


def _cpu(*sides: Side) -> float:
    """CPU seconds of the gateways and their scoring processes so far."""
    total = 0.0
    for side in sides:
        assert side.process is not None
        parent = psutil.Process(side.process.pid)
        for each in (parent, *parent.children(recursive=True)):
            times = each.cpu_times()
            total += times.user + times.system
    return total


def _ask(client: OpenAI, request: Request, side: str, tag: str) -> dict[str, Any]:
    began = time.perf_counter()
    raw = client.chat.completions.with_raw_response.create(
        model="smollm2",
        messages=request.messages,  # type: ignore[arg-type]
        max_tokens=LONGEST[request.kind],
        temperature=0,
        user=tag,
        extra_body={"outlay": {"policy": "none" if side == "plain" else side}},
    )
    seconds = time.perf_counter() - began
    made = raw.parse()
    assert made.usage is not None
    told: dict[str, Any] = (made.usage.model_extra or {}).get("outlay", {})
    return {
        "seconds": seconds,
        "text": made.choices[0].message.content or "",
        "prompt": made.usage.prompt_tokens,
        "output": made.usage.completion_tokens,
        "status": raw.headers.get("x-outlay-policy-status", ""),
        "reason": raw.headers.get("x-outlay-policy-reason", ""),
        "charged": int(raw.headers["x-outlay-charged-tokens"]),
        "scored": sum(e["prompt_tokens"] for e in told.get("stages", ()) if e["role"] == "scorer"),
        "saved": told.get("saved_prompt_tokens", 0),
    }


def _reached(log: Path, tag: str) -> list[dict[str, Any]]:
    """The messages that reached the model, from the log of the gateway that holds it."""
    for line in reversed(log.read_text(encoding="utf-8").splitlines()):
        if '"prompt"' in line and line.startswith("{"):
            body = json.loads(json.loads(line)["body"])
            if body["user"] == tag:
                messages: list[dict[str, Any]] = body["messages"]
                return messages
    raise RuntimeError(f"{log} has no request {tag!r}")


def _lose(missing: Sequence[tuple[Request, str]], answers: Kept, losses: Kept) -> None:
    """The loss of the right answer after every prompt that reached the model."""
    from outlay import models

    model = models.load(MODEL)
    for number, (request, side) in enumerate(missing):
        root = model.open(answers.rows[request.id, side]["messages"])
        (scores,) = model.score(root, [request.gold.strip("\n")])
        model.release(root)
        losses.add(request, side, loss=-float(np.mean(scores)))
        print(f"loss {number + 1}/{len(missing)}", flush=True)


# -- what came of it ------------------------------------------------------------------------------


def _rows(day: Sequence[Request], answers: Kept, losses: Kept) -> list[Row]:
    asked = [request for request in day if request.kind != "complete"]
    begun = [request for request in day if request.kind == "complete"]

    def taken(name: str) -> Callable[[Request, str], float]:
        return lambda request, side: float(answers.rows[request.id, side][name])

    def quality(request: Request, side: str) -> float:
        return request.quality(answers.rows[request.id, side]["text"])

    def loss(request: Request, side: str) -> float:
        return float(losses.rows[request.id, side]["loss"])

    rows = []
    for side in SIDES[1:]:
        for case, unit, over, value, more in (
            ("prompt tokens charged", "tokens", day, taken("prompt"), False),
            ("generated tokens", "tokens", day, taken("output"), False),
            ("CPU seconds, scoring included", "seconds", day, taken("cpu"), False),
            ("seconds, scoring included", "seconds", day, taken("seconds"), False),
            ("answers that hold the right name or value", "share", asked, quality, True),
            ("edit similarity of the next lines", "share", begun, quality, True),
            ("loss of the right answer", "nats per token", day[::EVERY], loss, False),
        ):
            rows.append(_row(side, case, unit, over, value, more))
        of = [answers.rows[request.id, side] for request in day]
        skipped = sum(each["status"] != "applied" for each in of)
        note = f"of the gateway's own scorer, not charged; {skipped} of {len(of)} not shortened"
        scored = float(np.mean([each["scored"] for each in of]))
        rows.append(Row(f"{side}: tokens that the scorer read", "tokens", scored, note=note))
    return rows


def _row(
    side: str,
    case: str,
    unit: str,
    over: Sequence[Request],
    value: Callable[[Request, str], float],
    more: bool,
) -> Row:
    """Means of both sides, their ratio with its interval, the paired difference in the note."""
    pairs_N2 = np.array([[value(r, side), value(r, "plain")] for r in over])
    gap = difference(over, value, side)
    ours, theirs = pairs_N2.mean(axis=0)
    better, worse = (0, 1) if more else (1, 0)
    means_R2 = resample_means(pairs_N2, 1000, 0)
    ratio = spread = None
    if pairs_N2[:, worse].any() and (means_R2[:, worse] > 0).all():
        ratio = float(pairs_N2[:, better].mean() / pairs_N2[:, worse].mean())
        spread = percentiles(means_R2[:, better] / means_R2[:, worse], 0.95)
    sure = "separable" if gap.separable else "not separable"
    note = f"n={gap.n}; difference {gap.mean:+.4g} [{gap.lo:.4g}, {gap.hi:.4g}], {sure}"
    return Row(
        f"{side}: {case}",
        unit,
        float(ours),
        float(theirs),
        PEER,
        ratio,
        spread,
        f"{note}; spread: 95 % paired bootstrap",
    )


def difference(
    over: Sequence[Request], value: Callable[[Request, str], float], side: str
) -> Difference:
    """A side minus the plain one, request by request."""
    records = {
        name: [Record("day", r.id, name, Budget(), 0, value(r, name), Ledger()) for r in over]
        for name in (side, "plain")
    }
    return paired(records[side], records["plain"])


def picture(day: Sequence[Request], answers: Kept, losses: Kept, path: Path) -> Path:
    """Four panels: prompt tokens, CPU seconds, answers, losses; means with 95 % intervals."""
    from matplotlib.figure import Figure

    from outlay.figure import PALETTE
    from outlay.stats import mean_interval

    def taken(name: str) -> Callable[[Request, str], float]:
        return lambda request, side: float(answers.rows[request.id, side][name])

    Value = Callable[[Request, str], float]
    panels: tuple[tuple[str, Sequence[Request], Value], ...] = (
        ("prompt tokens", day, taken("prompt")),
        ("CPU seconds, scoring included", day, taken("cpu")),
        ("quality of the answer", day, lambda r, s: r.quality(answers.rows[r.id, s]["text"])),
        (
            "loss of the right answer\n(nats per token)",
            day[::EVERY],
            lambda r, s: float(losses.rows[r.id, s]["loss"]),
        ),
    )
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for axes, (title, over, value) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for at, side in enumerate(SIDES):
            found = mean_interval(np.array([value(request, side) for request in over]))
            assert found.lo is not None
            assert found.hi is not None
            ends = [[found.mean - found.lo], [found.hi - found.mean]]
            axes.bar(at, found.mean, color=PALETTE[at], width=0.7)
            axes.errorbar(at, found.mean, ends, color="black", capsize=4)
            axes.annotate(
                f"{found.mean:.4g}" if found.mean > 100 else f"{found.mean:.3g}",
                (at, found.hi),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=9,
            )
        axes.set_xticks(range(len(SIDES)), SIDES, fontsize=9)
        axes.set_title(title, fontsize=9)
        axes.margins(y=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{len(day)} requests with long code; means and 95 % intervals", fontsize=10)
    figure.savefig(path, dpi=150)
    return path


if __name__ == "__main__":
    main()
