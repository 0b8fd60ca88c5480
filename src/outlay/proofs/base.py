"""What a proof produces: claims with their measured values, as data.

A proof is a module `outlay.proofs.<slug_with_underscores>` with one function
`run(scale, *, seed, progress) -> ProofResult`. Targets are constants of the module, written down
before the run; whether a claim holds is computed from the run's own numbers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from outlay.errors import InputError
from outlay.frontier import Point
from outlay.machine import commit, machine, today
from outlay.records import Record, write_csv

Scale = Literal["ci", "laptop", "gpu"]
Progress = Callable[[str], None]
VERDICTS = {True: "yes", False: "**no**", None: "reported"}


def silent(message: str) -> None:
    """A progress callback that says nothing."""


@dataclass(frozen=True)
class Check:
    """One claim and what was measured.

    Args:
        claim: what must hold, in a sentence.
        paper: the paper's figure or statement.
        measured: our value.
        ci: confidence interval of `measured`, None where there is none.
        holds: computed from the numbers against a target written before the run; None for a figure
            that is reported without a target.
        note: target, sample size, and for a disagreement what was tried.
    """

    claim: str
    paper: str
    measured: float | str
    holds: bool | None
    ci: tuple[float, float] | None = None
    note: str = ""


@dataclass(frozen=True)
class Peer:
    """The strongest peer on one metric; ratio > 1 means that ours is better."""

    name: str
    version: str
    metric: str
    ours: float
    theirs: float
    ratio: float


@dataclass
class ProofResult:
    """A proof's outcome; `save` writes the JSON, the table and the picture.

    Args:
        system: the slug.
        scale: "ci" is run by tests and not committed.
        seeds: all seeds that the numbers depend on.
        checks: claims.
        points: frontier points behind the picture.
        peer: strongest peer, where one runs in the proof.
        data: further numbers that a reader may want (JSON-ready).
        draw: writes the picture to a path; None for no picture.
        records: outcomes behind the picture, saved as a CSV beside it.
    """

    system: str
    scale: Scale
    seeds: Sequence[int]
    checks: list[Check] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    peer: Peer | None = None
    data: dict[str, Any] = field(default_factory=dict)
    draw: Callable[[Path], None] | None = None
    records: Sequence[Record] = ()
    started: float = field(default_factory=time.perf_counter)
    minutes: float = 0.0

    def finish(self) -> ProofResult:
        """Stop the clock."""
        self.minutes = (time.perf_counter() - self.started) / 60
        return self

    @property
    def holds(self) -> bool:
        """True if every claim with a target holds."""
        return all(check.holds is not False for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form of `results/proofs/<slug>.json`."""
        return {
            "system": self.system,
            "scale": self.scale,
            "date": today(),
            "commit": commit(),
            "machine": machine(),
            "seeds": list(self.seeds),
            "minutes": round(self.minutes, 2),
            "checks": [asdict(check) for check in self.checks],
            "points": [point.to_dict() for point in self.points],
            "peer": None if self.peer is None else asdict(self.peer),
            "data": self.data,
        }

    def table(self) -> str:
        """The checks as a Markdown table."""
        rows = [
            "| claim | paper | measured | 95 % CI | holds | note |",
            "|---|---|---|---|---|---|",
        ]
        for check in self.checks:
            value = check.measured
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            ci = "" if check.ci is None else f"{check.ci[0]:.4g} to {check.ci[1]:.4g}"
            cells = (check.claim, check.paper, shown, ci, VERDICTS[check.holds])
            rows.append("| " + " | ".join(map(_cell, (*cells, check.note))) + " |")
        return "\n".join(rows) + "\n"

    def save(self, folder: str | Path) -> list[Path]:
        """Write `<slug>.json` and `<slug>.md`, `<slug>.png` with a picture, `<slug>.csv` with
        records; returns the paths."""
        if self.scale == "ci":
            raise InputError("a ci-scale proof is not a result; run it with --scale laptop")
        base = Path(folder)
        base.mkdir(parents=True, exist_ok=True)
        stem = base / self.system
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        written = [stem.with_suffix(".json"), stem.with_suffix(".md")]
        written[0].write_text(text + "\n", encoding="utf-8")
        head = f"# {self.system}: proof at {self.scale} scale\n\n"
        about = (
            f"{today()}, {machine()['cpu']}, {self.minutes:.1f} minutes, seeds {self.seeds}.\n\n"
        )
        written[1].write_text(head + about + self.table(), encoding="utf-8")
        if self.draw is not None:
            written.append(stem.with_suffix(".png"))
            self.draw(written[-1])
        if self.records:
            written.append(write_csv(stem.with_suffix(".csv"), self.records))
        return written


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


class Proof(Protocol):
    """The one function of a proof module."""

    def __call__(self, scale: Scale, *, seed: int = 0, progress: Progress = silent) -> ProofResult:
        """Run the experiment."""
        ...
