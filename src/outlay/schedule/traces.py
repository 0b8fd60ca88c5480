"""Open-loop traces: Poisson arrivals of real text, with a seed, written to and read from a file.

Prompts are functions or modules of Python's standard library, at their own lengths, cut at the
upper bound of the trace; those below the lower bound are left out. Arrivals do not wait for
answers.

A trace file is JSON Lines: a header, then one request a line with `arrival` (seconds), `prompt`
(token ids) and `max_new`; `eos`, `timeout` and `limit` are optional.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from outlay.errors import InputError
from outlay.files import read_text
from outlay.schedule.base import Request, positive

Unit = Literal["function", "module", "any"]
SOURCES = (
    "argparse", "ast", "bdb", "calendar", "cgitb", "codecs", "configparser", "csv", "dataclasses",
    "datetime", "difflib", "dis", "doctest", "enum", "fractions", "ftplib", "functools", "gettext",
    "gzip", "heapq", "imaplib", "inspect", "ipaddress", "locale", "mailbox", "mimetypes", "nntplib",
    "optparse", "pdb", "pickle", "pickletools", "platform", "plistlib", "poplib", "pprint", "pydoc",
    "random", "sched", "selectors", "shelve", "shlex", "shutil", "smtplib", "socket", "statistics",
    "string", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "tokenize", "trace",
    "traceback", "turtle", "typing", "uuid", "warnings", "weakref", "zipfile",
)  # fmt: skip
"""Modules that prompts come from; those that a Python version lacks are left out."""
MAX_REQUESTS = 100_000
MAX_FILE = 500_000_000


@dataclass(frozen=True)
class TraceSpec:
    """What a trace is made of; named before anything runs.

    Args:
        name: of the trace.
        requests: how many.
        prompt: least and most prompt tokens.
        new: least and most generated tokens, drawn uniformly.
        unit: prompts are a "function" or a whole "module", or "any" of both in turn.
        seed: of choice, lengths and arrivals.

    Raises:
        InputError: for bounds out of order.
    """

    name: str
    requests: int
    prompt: tuple[int, int]
    new: tuple[int, int]
    unit: Unit = "function"
    seed: int = 0

    def __post_init__(self) -> None:
        positive(requests=self.requests)
        if self.requests > MAX_REQUESTS:
            raise InputError(f"requests={self.requests}; at most {MAX_REQUESTS}")
        for name, (low, high) in (("prompt", self.prompt), ("new", self.new)):
            if not 1 <= low <= high:
                raise InputError(f"{name}=({low}, {high}); give 1 <= least <= most")
        if self.unit not in ("function", "module", "any"):
            raise InputError(f"unit={self.unit!r}; choose function, module or any")


LONG = TraceSpec("long", 24, (256, 512), (8, 16))
"""Long prompts, short answers."""
MIXED = TraceSpec("mixed", 32, (32, 512), (8, 32))
"""Functions as long as they are, longer answers."""


@dataclass(frozen=True)
class Trace:
    """Requests in the order of their arrival.

    Args:
        name: of the trace.
        seed: that it was made with.
        rate: mean arrivals per second.
        requests: sorted by arrival.

    Raises:
        InputError: for no request, an unsorted trace or a repeated id.
    """

    name: str
    seed: int
    rate: float
    requests: tuple[Request, ...]

    def __post_init__(self) -> None:
        if not self.requests:
            raise InputError(f"trace {self.name!r} has no request; give at least one")
        arrivals = [request.arrival for request in self.requests]
        for before, after in zip(self.requests, self.requests[1:], strict=False):
            if after.arrival < before.arrival:
                raise InputError(
                    f"trace {self.name!r} is not sorted: request {after.id} arrives at "
                    f"{after.arrival} after one at {before.arrival}; sort it by arrival"
                )
        if len({request.id for request in self.requests}) != len(arrivals):
            raise InputError(f"trace {self.name!r} repeats an id; give every request its own")

    @property
    def digest(self) -> str:
        """A hash of all that a server sees of the trace."""
        text = json.dumps([_row(request) for request in self.requests])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def prompt_tokens(self) -> int:
        """Of all requests."""
        return sum(len(request.prompt) for request in self.requests)

    @property
    def new_tokens(self) -> int:
        """The most that all requests may generate."""
        return sum(request.max_new for request in self.requests)

    def at_rate(self, rate: float) -> Trace:
        """The same requests with gaps scaled to another mean rate.

        Raises:
            InputError: for a rate that is not above 0.
        """
        if not rate > 0:
            raise InputError(f"rate={rate}; must be above 0")
        scale = self.rate / rate
        moved = tuple(replace(each, arrival=each.arrival * scale) for each in self.requests)
        return Trace(self.name, self.seed, rate, moved)

    def write(self, path: str | Path) -> Path:
        """Write the trace file.

        Raises:
            InputError: if it cannot be written.
        """
        head = {"trace": self.name, "seed": self.seed, "rate": self.rate, "digest": self.digest}
        lines = [json.dumps(head), *(json.dumps(_row(request)) for request in self.requests)]
        place = Path(path)
        try:
            place.write_text("\n".join(lines) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{place} cannot be written: {error.strerror}") from error
        return place


def _row(request: Request) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": request.id,
        "arrival": request.arrival,
        "prompt": list(request.prompt),
        "max_new": request.max_new,
    }
    if request.eos:
        row["eos"] = sorted(request.eos)
    for name in ("timeout", "limit"):
        if getattr(request, name) is not None:
            row[name] = getattr(request, name)
    return row


def read(path: str | Path, *, vocabulary: int | None = None) -> Trace:
    """Read a trace file.

    Args:
        path: of the file.
        vocabulary: of the model that will serve it; None to skip that check.

    Raises:
        InputError: for a file that is no trace: the message names the line.
    """
    lines = read_text(path, max_bytes=MAX_FILE).text.splitlines()
    if len(lines) > MAX_REQUESTS + 1:
        raise InputError(f"{path} has {len(lines) - 1} requests; at most {MAX_REQUESTS}")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number} is no JSON ({error.msg})") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number} is no JSON object")
        rows.append(row)
    if not rows or "trace" not in rows[0]:
        raise InputError(f"{path} has no header; its first line must have the key 'trace'")
    requests = []
    for number, row in enumerate(rows[1:], start=2):
        try:
            request = Request(
                id=int(row.get("id", number - 2)),
                prompt=tuple(int(token) for token in row["prompt"]),
                max_new=int(row["max_new"]),
                arrival=float(row["arrival"]),
                eos=frozenset(int(token) for token in row.get("eos", ())),
                timeout=row.get("timeout"),
                limit=row.get("limit"),
            )
        except KeyError as error:
            raise InputError(f"{path}, line {number} lacks {error}") from None
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}, line {number} is no request ({error})") from None
        if vocabulary is not None and max(request.prompt) >= vocabulary:
            raise InputError(
                f"{path}, line {number}: token {max(request.prompt)} is outside the model's "
                f"vocabulary of {vocabulary}"
            )
        requests.append(request)
    head = rows[0]
    try:
        name, seed, rate = str(head["trace"]), int(head.get("seed", 0)), float(head.get("rate", 0))
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}, line 1 is no header ({error})") from None
    return Trace(name, seed, rate, tuple(requests))


def texts(unit: Literal["function", "module"]) -> list[str]:
    """Source texts of the standard library: functions, or whole modules."""
    found: list[str] = []
    for name in SOURCES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            continue
        source = Path(spec.origin).read_text(encoding="utf-8")
        if unit == "module":
            found.append(source)
            continue
        lines = source.splitlines(keepends=True)
        found.extend(
            "".join(lines[node.lineno - 1 : node.end_lineno])
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        )
    return found


def make(spec: TraceSpec, tokenizer: Any, rate: float, *, eos: Sequence[int] = ()) -> Trace:
    """A trace: exponential gaps of mean 1/rate, prompts and lengths by the spec's seed.

    Args:
        spec: what it is made of.
        tokenizer: of the model that will serve it.
        rate: mean arrivals per second.
        eos: token ids that end a request; none by default, so that every run does the same work.

    Raises:
        InputError: for a rate that is not above 0, or where no text is long enough.
    """
    if not rate > 0:
        raise InputError(f"rate={rate}; must be above 0")
    rng = random.Random(f"{spec.name}:{spec.seed}")
    pools = {name: texts(name) for name in ("function", "module") if spec.unit in (name, "any")}
    pool = list(pools.values())
    low, high = spec.prompt
    requests: list[Request] = []
    now = 0.0
    for _ in range(50 * spec.requests):
        if len(requests) == spec.requests:
            break
        text = rng.choice(pool[len(requests) % len(pool)])[: 16 * high]
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:high]
        if len(ids) < low:
            continue
        requests.append(
            Request(len(requests), tuple(ids), rng.randint(*spec.new), now, frozenset(eos))
        )
        now += rng.expovariate(rate)
    if len(requests) < spec.requests:
        raise InputError(f"trace {spec.name!r}: too few texts of {low} tokens; lower prompt[0]")
    return Trace(spec.name, spec.seed, rate, tuple(requests))
