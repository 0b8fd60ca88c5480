"""Proof of the multi-robot frameworks (arXiv 2309.15943), in two layers.

1. *Scripted policies* behind the model interface (see `evals.robots.scripted`): the real loops,
   prompts, parser and ledger, with a planner that errs and reviewers that overlook. What must
   appear is what belongs to the topologies: reviews prevent collisions, dialogues cost more than
   central plans, history is what solves BoxLift and what fills the prompt.
2. *A real model* (SmolLM2-135M-Instruct, 2x2 BoxNet1): parse rate, retries, and a ledger that is
   exact to the token. It cannot plan, so no success rate is claimed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from outlay.errors import InputError
from outlay.evals.robots import planner
from outlay.evals.robots.boxnet import BoxNet1
from outlay.evals.robots.calls import Caller
from outlay.evals.robots.episode import run_episode
from outlay.evals.robots.frameworks import CMAS, DMAS, HMAS1, HMAS2, Framework
from outlay.evals.robots.plans import extract, read_plan
from outlay.evals.robots.scripted import ScriptedModel
from outlay.evals.robots.tasks import Robots
from outlay.evals.robots.warehouse import Warehouse
from outlay.frontier import points
from outlay.models.base import Account, Message, SamplingParams
from outlay.proofs.base import Check, Progress, ProofResult, Scale, silent
from outlay.proofs.multi_robot_runs import (
    FRAMEWORKS,
    MAIN,
    WORLDS,
    FloatArray,
    Play,
    classical,
    growth,
    paired,
    play,
    ratios,
)
from outlay.stats import mean_interval

SKILLS: Mapping[str, float] = {"error": 0.15, "recall": 0.8, "false_alarm": 0.05}
MANY = 8  # agents from which the order of tokens is claimed
SUPERLINEAR = 1.15  # exponent of cumulative tokens over steps: above, and at most, respectively
LONG = 10  # steps of an episode from which full history must have hit the limit
LIMIT_HIT = 0.9  # share of such episodes
LOOPS = 0.5  # share of failed BoxLift runs without history that go round in circles
VOTES = "CMAS + votes at equal tokens"
MAX_VOTES = 40
NO_ALARMS = "no false alarms"
UNLIMITED = "HMAS-2 full history, no limit"
NO_LIMIT = 1_000_000
REPLY = 160  # tokens of a real model's reply
RETRIES = 3  # of a real model; at temperature 0 it repeats itself
TABLE = "Table I, GPT-4: success in %, tokens over the best"


@dataclass(frozen=True)
class Size:
    """Instances per world, small instances for the optimum, episodes of the real model."""

    instances: int
    small: int
    real: int


SIZES: Mapping[Scale, Size] = {
    "ci": Size(4, 2, 0),
    "laptop": Size(40, 10, 3),
    "gpu": Size(400, 40, 5),
}


def run(
    scale: Scale,
    *,
    seed: int = 0,
    progress: Progress = silent,
    folder: str | Path | None = None,
) -> ProofResult:
    """Run the experiment.

    Args:
        scale: "ci" runs no real model.
        seed: of instances and of the scripted policies' chances.
        progress: told after every method.
        folder: where the logs of the real model's episodes are kept; None keeps none.
    """
    size = SIZES[scale]
    result = ProofResult("multi-robot", scale, [seed])
    problems = {world: Robots(world=world).sample(seed, size.instances) for world in WORLDS}
    plays: list[Play] = []
    calm: list[Play] = []
    for world in WORLDS:
        for method, knobs in FRAMEWORKS.items():
            progress(f"{world}: scripted {method}")
            plays += play(world, method, knobs, problems[world], SKILLS, seed)
        plays += _votes(plays, world, problems[world], seed)
        for method in ("HMAS-2", "HMAS-1"):
            sure = {**SKILLS, "false_alarm": 0.0}
            calm += play(world, method, FRAMEWORKS[method], problems[world], sure, seed)
        knobs = {**FRAMEWORKS["HMAS-2 full history"], "history_tokens": NO_LIMIT}
        calm += play(world, UNLIMITED, knobs, problems[world], SKILLS, seed)
    rest: dict[str, dict[str, Any]] = {
        name: {world: classical(world, problems[world], name, seed) for world in WORLDS}
        for name in ("greedy", "random")
    }
    checks = result.checks
    checks += _success(plays, seed)
    checks += _order(plays, seed)
    checks += _order_tried(plays, calm, seed)
    checks += _history(plays, seed)
    checks += _history_tried(plays, calm, seed)
    checks += _boxlift(plays, seed)
    checks.append(_optimal(size.small, seed))
    checks += _baselines(plays, rest, seed)
    real: dict[str, Any] = {}
    if size.real:
        progress("real model: SmolLM2 on 2x2 BoxNet1")
        real = real_model(size.real, seed, folder)
        checks += _real(real)
    result.points = points([one.record for one in plays], axis="all", seed=seed)
    result.data = {
        "skills": dict(SKILLS),
        "table": ratios(plays),
        "classical": {
            name: {
                world: float(np.mean([solved for solved, _ in found.values()]))
                for world, found in by_world.items()
            }
            for name, by_world in rest.items()
        },
        "real_model": real,
    }
    result.draw = _drawing(result.data["table"])
    return result.finish()


def _votes(plays: Sequence[Play], world: Any, problems: Sequence[Any], seed: int) -> list[Play]:
    """CMAS with as many sampled plans a step as HMAS-2's tokens buy, size by size."""
    found: list[Play] = []
    for agents in sorted({one.agents for one in plays if one.world == world}):
        rows = [one for one in plays if one.world == world and one.agents == agents]
        cost = {
            name: np.mean([one.tokens_per_step for one in rows if one.method == name])
            for name in ("HMAS-2", "CMAS")
        }
        votes = min(MAX_VOTES, max(2, round(float(cost["HMAS-2"] / cost["CMAS"]))))
        ids = {one.problem for one in rows}
        some = [problem for problem in problems if problem.id in ids]
        found += play(world, VOTES, {"framework": "cmas", "votes": votes}, some, SKILLS, seed)
    return found


def _interval(values: FloatArray, seed: int) -> tuple[float, float]:
    found = mean_interval(values, seed=seed)
    return (
        -math.inf if found.lo is None else found.lo,
        math.inf if found.hi is None else found.hi,
    )


def _gap(
    claim: str,
    paper: str,
    values: FloatArray,
    seed: int,
    *,
    target: bool,
    note: str = "",
) -> Check:
    """A paired difference; with a target, its interval must lie above 0."""
    lo, hi = _interval(values, seed)
    words = "target: interval above 0" if target else "reported, no target"
    return Check(
        claim,
        paper,
        float(values.mean()),
        lo > 0 if target else None,
        (lo, hi) if math.isfinite(lo) and math.isfinite(hi) else None,
        "; ".join(filter(None, (words, note, f"n={len(values)}"))),
    )


def _rate(plays: Sequence[Play], world: str, method: str) -> float:
    rows = [one.success for one in plays if one.world == world and one.method == method]
    return float(np.mean(rows))


def _success(plays: Sequence[Play], seed: int) -> list[Check]:
    checks = []
    told = {"boxnet1": (82.5, 75.0), "boxnet2": (57.5, 27.5), "warehouse": (62.5, 15.0)}
    for world, (ours, theirs) in told.items():
        gap = paired(plays, "HMAS-2", "CMAS", lambda one: one.success, world=world)
        rates = f"{_rate(plays, world, 'HMAS-2'):.2f} against {_rate(plays, world, 'CMAS'):.2f}"
        checks.append(
            _gap(
                f"scripted, {world}: success of HMAS-2 minus CMAS",
                f"{ours} against {theirs} % success",
                gap,
                seed,
                target=world != "boxnet1",
                note=rates,
            )
        )
    return checks


def _log_cost(one: Play) -> float:
    return math.log(one.tokens_per_step)


def _order(plays: Sequence[Play], seed: int) -> list[Check]:
    """Tokens per planned step at 8 agents or more, framework by framework."""
    checks = []
    large = [one for one in plays if one.agents >= MANY]
    for cheap, dear in (("CMAS", "HMAS-2"), ("HMAS-2", "HMAS-1"), ("HMAS-1", "DMAS")):
        ratio = paired(large, dear, cheap, _log_cost)
        each = ", ".join(
            f"{world} {math.exp(paired(large, dear, cheap, _log_cost, world=world).mean()):.2f}"
            for world in WORLDS
        )
        checks.append(
            _gap(
                f"scripted, {MANY}+ agents: log ratio of tokens per step, {dear} over {cheap}",
                f"{TABLE}: CMAS < HMAS-2 < HMAS-1 < DMAS",
                ratio,
                seed,
                target=True,
                note=f"ratio {math.exp(ratio.mean()):.2f}; by world {each}",
            )
        )
    return checks


def _order_tried(plays: Sequence[Play], calm: Sequence[Play], seed: int) -> list[Check]:
    """What the order of HMAS-2 and HMAS-1 depends on."""
    large = [one for one in plays if one.agents >= MANY]
    quiet = [one for one in calm if one.agents >= MANY]
    return [
        _gap(
            f"change tried: log ratio of tokens per step, HMAS-1 over HMAS-2, {words}",
            "",
            values,
            seed,
            target=False,
            note=f"ratio {math.exp(values.mean()):.2f}",
        )
        for words, values in (
            (NO_ALARMS, paired(quiet, "HMAS-1", "HMAS-2", _log_cost)),
            (
                "one round of review (as the official BoxNet1 code)",
                paired(large, "HMAS-1", "HMAS-2 one round", _log_cost),
            ),
        )
    ]


def _history(plays: Sequence[Play], seed: int) -> list[Check]:
    """How tokens grow with steps, in all worlds, under HMAS-2."""

    def exponents(method: str) -> FloatArray:
        return np.array(growth(one.log for one in plays if one.method == method))

    full, lean = exponents("HMAS-2 full history"), exponents("HMAS-2")
    long = [one for one in plays if one.method == "HMAS-2 full history" and one.log.steps >= LONG]
    hit = np.array([float(one.dropped > 0) for one in long])
    full_lo, full_hi = _interval(full, seed)
    lean_lo, lean_hi = _interval(lean, seed)
    checks = [
        Check(
            "scripted: tokens of HMAS-2 with full history grow superlinearly with steps",
            "full history overflows the context",
            float(full.mean()),
            full_lo > SUPERLINEAR,
            (full_lo, full_hi),
            f"exponent of cumulative tokens; target: interval above {SUPERLINEAR}; n={len(full)}",
        ),
        Check(
            "scripted: with state-action history they grow linearly",
            "state-action pairs keep the prompt short",
            float(lean.mean()),
            float(lean.mean()) <= SUPERLINEAR,
            (lean_lo, lean_hi),
            f"exponent of cumulative tokens; target: mean at most {SUPERLINEAR}; n={len(lean)}",
        ),
    ]
    if len(hit):
        lo, hi = _interval(hit, seed)
        checks.append(
            Check(
                f"scripted: full history hits its token limit in episodes of {LONG}+ steps",
                "limits of 3000 and 4000 tokens",
                float(hit.mean()),
                float(hit.mean()) >= LIMIT_HIT,
                (lo, hi),
                f"share of episodes; target: at least {LIMIT_HIT}; n={len(hit)}",
            )
        )
    return checks


def _history_tried(plays: Sequence[Play], calm: Sequence[Play], seed: int) -> list[Check]:
    """The same question without the token limit, and asked of the prompt alone."""
    free = np.array(growth(one.log for one in calm if one.method == UNLIMITED))
    slopes = {
        name: np.array([one.slope for one in rows if one.method == name and one.slope is not None])
        for name, rows in ((UNLIMITED, calm), ("HMAS-2", plays))
    }
    means = {name: float(values.mean()) for name, values in slopes.items()}
    return [
        Check(
            "change tried: exponent of cumulative tokens, full history without a limit",
            "",
            float(free.mean()),
            None,
            _interval(free, seed),
            f"reported, no target; n={len(free)}",
        ),
        Check(
            "change tried: growth of the history in the planner's prompt, full (no limit) over "
            "state-action",
            "",
            means[UNLIMITED] / means["HMAS-2"],
            None,
            None,
            f"reported, no target; {means[UNLIMITED]:.0f} against {means['HMAS-2']:.0f} tokens a "
            f"step; episodes of 6+ planned steps, n={len(slopes[UNLIMITED])}",
        ),
    ]


def _boxlift(plays: Sequence[Play], seed: int) -> list[Check]:
    rows = {
        name: [one for one in plays if one.world == "boxlift" and one.method == name]
        for name in ("HMAS-2", "HMAS-2 no history")
    }
    gap = paired(plays, "HMAS-2", "HMAS-2 no history", lambda one: one.success, world="boxlift")
    failed = [one for one in rows["HMAS-2 no history"] if not one.log.solved]
    looped = float(np.mean([one.log.looped for one in failed])) if failed else 0.0
    rates = {name: float(np.mean([one.success for one in some])) for name, some in rows.items()}
    return [
        _gap(
            "scripted, boxlift: success of HMAS-2 with state-action history minus without",
            "100 against 0 % success",
            gap,
            seed,
            target=True,
            note=f"{rates['HMAS-2']:.2f} against {rates['HMAS-2 no history']:.2f}",
        ),
        Check(
            "scripted, boxlift: failed runs without history go round in circles",
            "0 % success without history",
            looped,
            looped >= LOOPS if failed else False,
            None,
            f"share that saw a state three times; target: at least {LOOPS}; n={len(failed)}",
        ),
    ]


def _optimal(n: int, seed: int) -> Check:
    """No framework is faster than breadth-first search, on worlds small enough for it."""
    frameworks: tuple[Framework, ...] = (CMAS(), HMAS2(), DMAS(), HMAS1())
    worlds = (
        BoxNet1(2, 2, ("blue", "red"), pairs=(1, 2)),
        Warehouse(3, 3, 2, 0.4),
    )
    beaten, played = 0, 0
    for world in worlds:
        for index in range(n):
            state: Any = world.reset(1000 * seed + index)
            least = len(planner.optimal(world, state))
            for framework in frameworks:
                caller = Caller(
                    ScriptedModel(world, seed=seed, **SKILLS),  # type: ignore[arg-type]
                    Account(),
                    SamplingParams(),
                )
                log = run_episode(world, state, framework, caller)
                if log.solved:
                    played += 1
                    beaten += log.steps < least
    return Check(
        "scripted: no framework needs fewer steps than breadth-first search",
        "",
        float(beaten),
        beaten == 0 and played > 0,
        None,
        f"runs below the optimum; target: 0; 2x2 BoxNet1 with 2 colours and 3x3 Warehouse, "
        f"n={played} solved runs",
    )


def _baselines(
    plays: Sequence[Play], rest: Mapping[str, Mapping[str, Any]], seed: int
) -> list[Check]:
    """Success of the baselines on the two collision tasks; no targets."""
    checks = []
    for world in ("boxnet2", "warehouse"):
        for name in (VOTES, "CMAS + collision checker"):
            gap = paired(plays, "HMAS-2", name, lambda one: one.success, world=world)
            cost = paired(plays, "HMAS-2", name, _log_cost, world=world)
            checks.append(
                _gap(
                    f"scripted, {world}: success of HMAS-2 minus {name}",
                    "",
                    gap,
                    seed,
                    target=False,
                    note=f"{_rate(plays, world, 'HMAS-2'):.2f} against "
                    f"{_rate(plays, world, name):.2f}, at {math.exp(cost.mean()):.2f} times the "
                    "tokens per step",
                )
            )
        for name, by_world in rest.items():
            rate = float(np.mean([solved for solved, _ in by_world[world].values()]))
            checks.append(
                Check(
                    f"{world}: success of the {name} planner, no model and no tokens",
                    "",
                    rate,
                    None,
                    None,
                    f"reported, no target; n={len(by_world[world])}",
                )
            )
    return checks


# -- a real model ---------------------------------------------------------------------------------


def real_model(n: int, seed: int, folder: str | Path | None = None) -> dict[str, Any]:
    """HMAS-2 with SmolLM2 on `n` 2x2 instances: parses, retries, and the ledger recounted."""
    from outlay.models import embedded

    model = embedded.load()
    task = Robots(size=(2, 2), framework="hmas2", max_retries=RETRIES, reply_tokens=REPLY)
    replies = parsed = usable = retries = calls = 0
    booked = recounted = logged = 0
    endings: dict[str, int] = {}
    for problem in task.sample(seed, n):
        account = Account(method="HMAS-2")
        log = task.run(model, problem, SamplingParams(), account=account)
        world, _ = task.instance(problem)
        for call in log.calls:
            calls += 1
            if call.speaker == "central":
                replies += 1
                parsed += extract(call.reply).plan is not None
                usable += not read_plan(world, log.states[call.step - 1], call.reply).errors
            turns = [Message(role=role, content=text) for role, text in call.messages]
            recounted += len(model.prompt_ids(turns))
            logged += call.booked
        total = account.ledger.totals()
        booked += total.prompt + total.generated
        recounted += total.generated
        retries += log.retries
        endings[log.ending] = endings.get(log.ending, 0) + 1
        if folder is not None:
            place = Path(folder)
            place.mkdir(parents=True, exist_ok=True)
            name = problem.id.replace(":", "-")
            (place / f"{name}.json").write_text(json.dumps(log.to_dict(), indent=1))
    return {
        "model": model.name,
        "episodes": n,
        "calls": calls,
        "central_replies": replies,
        "parsed": parsed,
        "usable": usable,
        "retries": retries,
        "endings": endings,
        "ledger_tokens": booked,
        "logged_tokens": logged,
        "recounted_tokens": recounted,
    }


def _real(found: Mapping[str, Any]) -> list[Check]:
    if not found["calls"]:
        raise InputError("the real model made no call; raise SIZES[...].real")
    same = found["ledger_tokens"] == found["logged_tokens"] == found["recounted_tokens"]
    of = f"{found['episodes']} episodes of 2x2 BoxNet1, HMAS-2, {found['model']}"
    return [
        Check(
            "real model: the ledger equals the sum over logged calls and a recount of the prompts",
            "",
            float(found["ledger_tokens"]),
            same,
            None,
            f"tokens; target: equal; logged {found['logged_tokens']}, recounted "
            f"{found['recounted_tokens']}; {found['calls']} calls; {of}",
        ),
        *(
            Check(
                f"real model: share of the central planner's replies that hold {what}",
                "",
                found[key] / max(1, found["central_replies"]),
                None,
                None,
                f"reported, no target; {found[key]} of {found['central_replies']}; at most "
                f"{REPLY} tokens a reply; {of}",
            )
            for key, what in (
                ("parsed", "one JSON object of texts (parse rate)"),
                ("usable", "a plan that the world takes"),
            )
        ),
        Check(
            "real model: retries per episode",
            "",
            found["retries"] / found["episodes"],
            None,
            None,
            f"reported, no target; at most {RETRIES} each; endings {found['endings']}; no success "
            "rate is claimed",
        ),
    ]


def _drawing(table: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Callable[[Path], None]:
    """Success against tokens per step, one panel a world."""
    shown = (*MAIN, "HMAS-2 no history", VOTES, "CMAS + collision checker")

    def draw(path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        from outlay.figure import MARKERS, PALETTE

        figure = Figure(figsize=(10.5, 6.4), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (world, rows) in zip(figure.subplots(2, 2).flat, table.items(), strict=True):
            for index, name in enumerate(shown):
                row = rows[name]
                axes.plot(
                    row["tokens_per_step"],
                    row["success"],
                    MARKERS[index],
                    color=PALETTE[index],
                    markersize=9,
                    markeredgecolor="white",
                    label=name,
                )
            axes.set_xscale("log")
            axes.set_ylim(-0.05, 1.08)
            axes.set_title(f"{world}, scripted policies", loc="left", fontsize=10)
            axes.set_xlabel("tokens per step (log scale)", fontsize=9)
            axes.set_ylabel("success", fontsize=9)
            axes.grid(True, color="#000000", alpha=0.10, linewidth=0.7)
            axes.spines[["top", "right"]].set_visible(False)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(path)

    return draw
