"""The loop of an episode: plan, check, step, until solved or stopped; its log, and its replay.

An episode ends when the task is solved, on a collision, when no call fits (window, budget), when a
plan stays unusable after all retries, or at the step limit. A run solved on its last allowed step
is a success (the official code books it as a failure).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from outlay.errors import InputError
from outlay.evals.robots import prompts
from outlay.evals.robots.base import Plan, Step, World, check_whole
from outlay.evals.robots.calls import Call, Caller, OutOfTokensError
from outlay.evals.robots.frameworks import Framework, Scene, UnusablePlanError
from outlay.evals.robots.history import Past
from outlay.evals.robots.plans import plan_text
from outlay.models.base import Message

Ending = Literal["solved", "collision", "out of tokens", "unusable plan", "step limit"]
LOOPING = 3


@dataclass(frozen=True)
class Turn:
    """One step of the log."""

    plan: dict[str, str]
    feedback: tuple[str, ...]
    collisions: tuple[str, ...]


@dataclass(frozen=True)
class EpisodeLog:
    """What happened.

    Args:
        world, framework: names.
        ending: why it ended; `note` says more.
        turns: the steps taken.
        states: before every step and at the end.
        calls: every model call, in order.
        retries: calls that asked again for an unusable plan.
        revisits: steps that ended in a state seen before.
    """

    world: str
    framework: str
    ending: Ending
    turns: tuple[Turn, ...]
    states: tuple[Any, ...]
    calls: tuple[Call, ...]
    retries: int
    note: str = ""

    @property
    def solved(self) -> bool:
        """True for a success."""
        return self.ending == "solved"

    @property
    def steps(self) -> int:
        """Environment steps."""
        return len(self.turns)

    @property
    def tokens(self) -> int:
        """The paper's count: contents of all prompts, and replies."""
        return sum(call.tokens for call in self.calls)

    @property
    def collisions(self) -> int:
        """Collisions of the last step."""
        return sum(len(turn.collisions) for turn in self.turns)

    @property
    def revisits(self) -> int:
        """Steps that ended in a state seen before."""
        return len(self.states) - len(set(self.states))

    @property
    def looped(self) -> bool:
        """True if some state was seen three times or more."""
        return max(Counter(self.states).values()) >= LOOPING

    def by_role(self) -> dict[str, dict[str, int]]:
        """Calls and tokens (the paper's count) of every role."""
        found: dict[str, dict[str, int]] = {}
        for call in self.calls:
            row = found.setdefault(call.role, {"calls": 0, "tokens": 0})
            row["calls"] += 1
            row["tokens"] += call.tokens
        return found

    def to_dict(self, *, calls: bool = True) -> dict[str, Any]:
        """A JSON-ready form; states are left out, since plans give them back."""
        row: dict[str, Any] = {
            "world": self.world,
            "framework": self.framework,
            "ending": self.ending,
            "note": self.note,
            "steps": self.steps,
            "api_calls": len(self.calls),
            "tokens": self.tokens,
            "retries": self.retries,
            "collisions": self.collisions,
            "revisits": self.revisits,
            "looped": self.looped,
            "by_role": self.by_role(),
            "plans": [turn.plan for turn in self.turns],
        }
        if calls:
            row["calls"] = [call.to_dict() for call in self.calls]
        return row

    def transcript(self) -> str:
        """Who said what, and what happened, for a reader."""
        lines = []
        for number, turn in enumerate(self.turns, 1):
            lines.append(f"== step {number}")
            lines += [f"{c.speaker}: {c.reply.strip()}" for c in self.calls if c.step == number]
            lines.append(f"-> {plan_text(turn.plan)}")
            lines += [*turn.feedback, *turn.collisions]
        rest = [c for c in self.calls if c.step > len(self.turns)]
        if rest:
            lines.append(f"== step {len(self.turns) + 1}, not taken")
            lines += [f"{call.speaker}: {call.reply.strip()}" for call in rest]
        return "\n".join([*lines, f"ended: {self.ending} {self.note}".rstrip()])


def run_episode(
    world: World[Any, Any],
    state: Any,
    framework: Framework,
    caller: Caller,
    *,
    step_limit: int | None = None,
    history_tokens: int | None = None,
) -> EpisodeLog:
    """Play one instance.

    Args:
        world: the rules.
        state: the instance, from `world.reset`.
        framework: how the robots agree.
        caller: asks the model; fresh for every episode.
        step_limit: None takes the world's.
        history_tokens: None takes the world's.

    Raises:
        InputError: if a prompt without history exceeds `history_tokens` (unless the policy is
            "none"), or for limits out of range.
    """
    limit = world.step_limit if step_limit is None else step_limit
    room = world.history_tokens if history_tokens is None else history_tokens
    check_whole("step_limit", limit, 1, 100_000)
    check_whole("history_tokens", room, 1, 10_000_000)
    states, turns, pasts = [state], list[Turn](), list[Past]()
    retries, note = 0, ""
    ending: Ending = "solved" if world.solved(state) else "step limit"
    while ending == "step limit" and len(turns) < limit:
        caller.step = len(turns) + 1
        scene = Scene(world, state, caller, pasts, room)
        try:
            plan = framework.plan(scene)
            step = world.step(state, plan)
            past = _past(scene, framework, len(turns) + 1, plan, step)
        except OutOfTokensError as error:
            ending, note = "out of tokens", str(error)
            break
        except UnusablePlanError as error:
            ending, note = "unusable plan", str(error)
            break
        finally:
            retries += scene.retries
        collisions = tuple(collision.text() for collision in step.collisions)
        turns.append(Turn(plan, step.feedback, collisions))
        pasts.append(past)
        state = step.state
        states.append(state)
        if collisions:
            ending, note = "collision", "; ".join(collisions)
        elif world.solved(state):
            ending = "solved"
    return EpisodeLog(
        world.name,
        framework.name,
        ending,
        tuple(turns),
        tuple(states),
        tuple(caller.calls),
        retries,
        note,
    )


def _past(
    scene: Scene, framework: Framework, number: int, plan: dict[str, str], step: Step[Any]
) -> Past:
    dialogue = "\n".join(scene.dialogue)
    short = ""
    if framework.history == "summary" and dialogue:
        ask = [Message(role="user", content=prompts.summary(dialogue))]
        short = " ".join(
            scene.caller.ask(ask, role="planner", speaker="summary", stage="prompt").split()
        )
    return Past(
        number,
        scene.world.brief(scene.state),
        plan_text(plan),
        "; ".join(step.feedback),
        dialogue,
        short,
    )


def replay(world: World[Any, Any], state: Any, plans: Sequence[Plan]) -> list[Any]:
    """The states that `plans` lead through, the first one included.

    Raises:
        InputError: if a plan is refused or follows a collision, with its number and reason.
    """
    states = [state]
    for number, plan in enumerate(plans, 1):
        step = world.step(state, plan)
        if step.refusals:
            raise InputError(f"plan {number} is refused: {step.refusals[0].text()}")
        state = step.state
        states.append(state)
        if step.collisions and number < len(plans):
            raise InputError(f"plan {number} leads to a {step.collisions[0].text()}; plans follow")
    return states
