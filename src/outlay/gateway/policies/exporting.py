"""A winner of `outlay compare` as a policy and the route that serves it.

    from outlay.gateway.policies.exporting import export
    print(export("runs/mine", budget=512).toml)

A comparison gives every example N tokens; a gateway reserves for whatever comes. So a prompt's
budget becomes the part of a long text that is kept, and a budget of generated tokens becomes the
knob that carries it: `max_think`, `n`, or else the route's longest answer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from outlay import registry
from outlay.comparison import needs
from outlay.errors import InputError
from outlay.figure import UNITS
from outlay.frontier import Point
from outlay.gateway.config import Config, ModelTable, Route, explain, read
from outlay.gateway.policies import winners
from outlay.gateway.policies.methods import Catalogue, Prepared, prepare
from outlay.gateway.policies.tables import NONE, Kind, Policy
from outlay.gateway.policies.winners import Found
from outlay.records import Axis, budget_dict
from outlay.stack import NOTHING

_PLAIN = "plain"  # the decoder that is the model's own
_KEPT = 1000  # parts in which `keep` is written


@dataclass(frozen=True)
class Exported:
    """A policy, and where it comes from.

    Args:
        name: of the policy and the route.
        policy, route: their tables.
        toml: both, as a configuration file has them.
        task: of the comparison.
        winner: the point that won.
        notes: what the comparison does not say, and what to look at before it is served.
        checked: whether a given configuration can serve it.
    """

    name: str
    policy: Policy
    route: Route
    toml: str
    task: str
    winner: Point
    notes: tuple[str, ...] = ()
    checked: bool = False

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        won = self.winner
        return {
            "name": self.name,
            "task": self.task,
            "winner": {
                "stack": won.stack,
                "budget": budget_dict(won.budget),
                "quality": won.quality,
                "lo": won.lo,
                "hi": won.hi,
                "n": won.n,
                "axis": won.axis,
                "cost": won.cost,
            },
            "policy": self.policy.model_dump(mode="json", exclude_unset=True),
            "route": self.route.model_dump(mode="json", exclude_unset=True),
            "toml": self.toml,
            "notes": list(self.notes),
            "checked": self.checked,
        }


def export(
    run: str | Path,
    *,
    task: str | None = None,
    budget: int | None = None,
    within: float | None = None,
    axis: Axis | None = None,
    higher_is_better: bool | None = None,
    name: str | None = None,
    models: Sequence[str] = ("*",),
    size: int | None = None,
    answer: Kind = "text",
    config: str | Path | Config | None = None,
) -> Exported:
    """The policy that won a comparison.

    Args:
        run: the folder of `outlay compare --out`, or a file with the output of its `--json`.
        task: of the run; None where it has one only.
        budget: take the best quality at this budget of tokens; None for a run without budgets.
        within: take the cheapest point instead that is at most this much worse than the best.
        axis: what is cheap; None takes the run's own axis.
        higher_is_better: of the quality; None asks the task.
        name: of the policy and the route; None makes one of the stack.
        models: patterns of the route's models.
        size: tokens of the texts that were shortened; None takes what the run's plain prompts had.
        answer: how a vote reads answers.
        config: a configuration that has to be able to serve it.

    Raises:
        InputError: if the run cannot be read, the plain model won, or the winner can be no policy
            of a gateway (or not of this one), with the reason.
    """
    if budget is not None and within is not None:
        raise InputError("give a budget (best quality there) or within (cheapest), not both")
    found = winners.read(run, task=task, axis=axis, higher=higher_is_better)
    won = found.best(budget) if within is None else found.cheapest(within)
    _refuse_plain(found, won)
    made = _Translation(found, won, size, answer)
    policy, route = made.tables(models)
    called = name or (re.sub(r"[^A-Za-z0-9._-]+", "-", won.stack).strip("-")[:40] or "winner")
    if called == NONE:
        raise InputError(f"{NONE!r} says that there is no policy; give another name")
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", called):
        raise InputError(f"name={called!r}; 1 to 64 of the signs A-Z a-z 0-9 . _ -")
    policy, route = _checked(Policy, policy), _checked(Route, {**route, "policy": called})
    notes = [*made.notes, *_larger(prepare(called, policy), route, won)]
    if config is not None:
        _serve(config, called, policy, route)
    text = _toml(called, policy, route, found, won)
    return Exported(called, policy, route, text, found.task, won, tuple(notes), config is not None)


def _refuse_plain(found: Found, won: Point) -> None:
    """No policy where the model itself is the best: on the full prompt, or cut off at a limit."""
    if won.stack != NOTHING and registry.parse_spec(won.stack)[0] != _PLAIN:
        return
    limit = won.budget.tokens
    instead = "leave the route without a policy"
    if won.stack != NOTHING and limit is not None:
        instead += f", with max_output = {limit}"
    raise InputError(
        f"{found.task}: no policy is the best. The model as it is wins with a quality of "
        f"{won.quality:.4g} at {won.cost:.4g} {UNITS[won.axis]}; {instead}"
    )


def _larger(policy: Prepared, route: Route, won: Point) -> list[str]:
    """A remark where more is reserved than the comparison allowed to be spent."""
    room = won.budget.tokens
    if room is None or won.budget.counts != "generated" or not policy.solves:
        return []
    table = ModelTable(upstream="any")
    most = policy.worst(policy.shape(1, route.default_max_output, table)).output
    if most <= room:
        return []
    return [
        f"the gateway reserves {most:,} output tokens for it, more than the {room:,} that the "
        "comparison held it to: its worst case counts every call in full"
    ]


def _checked(table: Any, fields: Mapping[str, Any]) -> Any:
    try:
        return table(**fields)
    except ValidationError as error:
        raise InputError(explain(error)) from error


def _serve(config: str | Path | Config, name: str, policy: Policy, route: Route) -> None:
    """Build the catalogue of a configuration that has the policy as well."""
    given = config if isinstance(config, Config) else read(config)
    for kind, known in (("policies", given.policies), ("routes", given.routes)):
        if name in known:
            raise InputError(f"the configuration has {kind}.{name} already; give another name")
    both = given.model_copy(
        update={
            "policies": {**given.policies, name: policy},
            "routes": {name: route, **given.routes},  # the first that fits is taken
        }
    )
    Catalogue(both)
    fits = (fnmatchcase(model, pattern) for model in given.models for pattern in route.models)
    if not any(fits):
        raise InputError(
            f"no model of the configuration fits {', '.join(route.models)}; give its models: "
            + (", ".join(given.models) or "it has none")
        )


class _Translation:
    """One stack at one budget, in a policy's terms."""

    def __init__(self, found: Found, won: Point, size: int | None, answer: Kind) -> None:
        self.found, self.won, self.size = found, won, size
        self.notes: list[str] = []
        self.parts = self._parts(won.stack)
        self.answer = answer

    @staticmethod
    def _parts(stack: str) -> dict[str, str]:
        parts: dict[str, str] = {}
        for spec in registry.split_spec(stack, "+"):
            room = registry.find("methods", registry.parse_spec(spec)[0]).room
            if room not in ("prompt", "reason", "decode"):
                raise InputError(
                    f"{stack} cannot be a policy: {spec} works inside the model ({room}/), and a "
                    "gateway sees texts alone; serve the model with it, or take another winner"
                )
            parts[room] = spec.strip()
        return parts

    def tables(self, models: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The fields of the policy and of the route."""
        policy: dict[str, Any] = {}
        longest = self.found.plan.get("max_tokens")
        route: dict[str, Any] = {"models": tuple(models)}
        budget = self.won.budget
        if budget.counts == "all" and budget.tokens is not None:
            raise InputError(
                f"a budget of {budget.label()} counts prompts as well, and a policy has no knob "
                "for that; compare with counts='generated'"
            )
        if "prompt" in self.parts:
            policy |= self._prompt(budget.tokens if budget.counts == "prompt" else None)
        room = None if budget.counts == "prompt" else budget.tokens
        if room is not None:
            longest = self._carried(room, longest)
        if longest is not None:
            route["default_max_output"] = int(longest)
            self.notes.append(
                f"an answer has {int(longest)} tokens unless a request says otherwise, as in the "
                "comparison; max_output of the route makes that the most"
            )
        for slot in ("reason", "decode"):
            if slot in self.parts:
                policy[slot] = self.parts[slot]
        if "reason" in self.parts:
            policy["answer"] = self.answer
            if self.answer == "text":
                self.notes.append(
                    "votes compare whole texts; say how answers are read (number, math or choice) "
                    "where they are short"
                )
            if needs(self.parts["reason"], "verifier"):
                policy["verifier"] = str(self.found.plan.get("verifier", "self"))
        if (scorer := self._scorer(policy)) is not None:
            policy["scorer"] = scorer
        self._warn()
        return policy, {**route, "choose": (NONE,)}

    def _prompt(self, limit: int | None) -> dict[str, Any]:
        spec = self.parts["prompt"]
        if limit is None:
            raise InputError(
                f"{spec} won without a budget of the prompt: what to keep is not known"
            )
        plain = self.found.plain()
        size = self.size
        if size is None and plain is not None:
            size = round(plain.kinds["prompt_new"] + plain.kinds["prompt_cached"])
            self.notes.append(
                f"keep follows from the {size} tokens of a plain prompt, question included; give "
                "the size of your own long texts where they differ"
            )
        if size is None:
            raise InputError(
                f"{spec} was given {limit} tokens, and the run does not say of how many: compare "
                f"{NOTHING!r} as well, or give the size of the texts"
            )
        keep = math.floor(limit / size * _KEPT) / _KEPT if size > 0 else 0.0
        if not 0 < keep < 1:
            raise InputError(
                f"{limit} tokens of {size} keep a part of {keep:g}, which shortens nothing or "
                "leaves nothing; give the size of the texts that are long"
            )
        return {"prompt": spec, "above": limit, "keep": keep}

    def _carried(self, room: int, longest: Any) -> int | None:
        """Set the knob that carries a budget of generated tokens; the longest answer then."""
        each = room
        if "reason" in self.parts:
            spec = self.parts["reason"]
            slug, knobs = registry.parse_spec(spec)
            known = _knobs(slug)
            if "n" not in known:
                if "budget" in known and "budget" not in knobs:
                    self.parts["reason"] = _spec(slug, {**knobs, "budget": str(room)})
                return room if longest is None else min(int(longest), room)
            n = int(knobs.get("n", known["n"]))
            most = n if longest is None else min(n, room // int(longest))
            if most < min(n, 2):
                raise InputError(
                    f"{spec} at {room} tokens holds no two answers of {longest} tokens for "
                    "certain, so nothing can be voted on within its worst case; take a larger "
                    "budget, or compare with a smaller max_tokens"
                )
            if most < n:
                self.parts["reason"] = _spec(slug, {**knobs, "n": str(most)})
                self.notes.append(
                    f"n={n} became {most}: {room} tokens hold so many answers of {longest} for "
                    "certain; in the comparison short answers left room for more"
                )
            each = room // most
        if "decode" in self.parts:
            slug, knobs = registry.parse_spec(self.parts["decode"])
            if "max_think" in _knobs(slug):
                return self._thinking(slug, knobs, each, longest)
        return each if longest is None else min(int(longest), each)

    def _thinking(self, slug: str, knobs: dict[str, str], room: int, longest: Any) -> int:
        """As the decoder splits a budget: a quarter for the answer, at most `max_answer`."""
        most = int(knobs.get("max_answer", 1024))
        if self.won.budget.counts == "think":
            think, answer = room, most if longest is None else int(longest)
        else:
            answer = min(most, math.ceil(room / 4))
            think = room - answer
        if "max_think" in knobs and knobs["max_think"] not in ("null", "None"):
            think = min(think, int(knobs["max_think"]))
        self.parts["decode"] = _spec(slug, {**knobs, "max_think": str(think)})
        return answer

    def _scorer(self, policy: Mapping[str, Any]) -> str | None:
        plan = self.found.plan
        wanted: dict[str, str] = {}
        if "prompt" in self.parts and needs(self.parts["prompt"], "scorer"):
            wanted["compressor"] = str(plan.get("scorer") or plan.get("model") or "embedded")
        if "verifier" in policy:
            wanted["verifier"] = str(plan.get("judge") or plan.get("model") or "embedded")
        local = {
            role: "embedded" if spec.startswith(("http://", "https://")) else spec
            for role, spec in wanted.items()
        }
        if len(set(local.values())) > 1:
            raise InputError(
                "its compressor and its verifier score with different models "
                f"({', '.join(local.values())}), and a policy has one scorer; compare with one"
            )
        return next(iter(local.values()), None)

    def _warn(self) -> None:
        gap = self.found.against_plain(self.won)
        if gap is None:
            self.notes.append("the comparison did not measure the plain model beside it")
        elif not gap.separable:
            self.notes.append(
                f"its quality is not separable from the plain model's: better by {gap.mean:+.4g} "
                f"[{gap.lo:.4g}, {gap.hi:.4g}], n={gap.n}"
            )
        elif gap.mean < 0:
            self.notes.append(
                f"its quality is separably below the plain model's: {gap.mean:+.4g} "
                f"[{gap.lo:.4g}, {gap.hi:.4g}], n={gap.n}"
            )


def _knobs(slug: str) -> dict[str, Any]:
    """A method's knobs with their defaults."""
    cls: Any = registry.find("methods", slug).load()
    return {each.name: each.default for each in fields(cls) if each.init}


def _spec(slug: str, knobs: Mapping[str, str]) -> str:
    return slug + ":" + ",".join(f"{name}={value}" for name, value in knobs.items())


def _toml(name: str, policy: Policy, route: Route, found: Found, won: Point) -> str:
    none = won.lo is None or won.hi is None
    interval = "" if none else f" [{won.lo:.4g}, {won.hi:.4g}]"
    about = (
        f"From a comparison: {won.stack} at {won.budget.label()} on {found.task}: quality "
        f"{won.quality:.4g}{interval} over {won.n} examples, {won.cost:.4g} {UNITS[won.axis]}."
    )
    lines = ["# " + "".join(c if c.isprintable() else " " for c in about)]
    lines.append("# The first route that takes a model serves it: put this one before the others.")
    quoted = name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)
    for kind, table in (("policies", policy), ("routes", route)):
        lines += ["", f"[{kind}.{quoted}]"]
        for key, value in table.model_dump(mode="json", exclude_unset=True).items():
            lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"
