"""The prompts: the parts of arXiv 2309.15943 (section III) in their order.

Task description, step history, current state with every robot's place and capability, who is asked,
how to answer. The official wording is not repeated; its structure is. What a checker has to say
follows as a further turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outlay.evals.robots.base import World
from outlay.evals.robots.plans import plan_text

STATE = "Current state:\n"
FORMAT = (
    "Write the plan as one JSON object on one line, for example {example}. Give every robot at "
    "most one action, chosen from what it can do; leave out robots that do nothing."
)
CARE = "No two robots may get into each other's way."
CENTRAL = "You are the central planner. Decide what the robots do in the next step."
REVIEW = "You are the local agent of {agent}."
SPEAK = "You are {agent} and talk with the other robots about the next step."
SUMMARY = "Summarise this dialogue between robots in at most two sentences; keep what was decided."
PLAN_LINE = "The central plan is: "
INITIAL = "[central]: "
OBJECTIONS = "The local agents object to this plan:\n"
FAULTS = "This plan cannot be used:\n"
AGAIN = "Write the corrected plan for the next step."
DIALOGUE = "Dialogue so far:\n"
NO_DIALOGUE = "(nobody has spoken yet)"


@dataclass(frozen=True)
class View:
    """What one step's prompts are built from; computed once a step."""

    rules: str
    example: str
    shared: str
    lines: Mapping[str, str]

    @classmethod
    def of(cls, world: World[Any, Any], state: Any) -> View:
        """The view of `state`."""
        shared = world.shared_text(state)
        return cls(
            world.rules(), world.example(), shared and shared + "\n", world.agent_lines(state)
        )

    def all_lines(self) -> str:
        """Shared text and every robot's line."""
        return STATE + self.shared + "\n".join(self.lines.values()) + "\n\n"

    def own_first(self, agent: str) -> str:
        """Shared text, the robot's own line, then the others'."""
        rest = [line for name, line in self.lines.items() if name != agent]
        others = "The other robots:\n" + "\n".join(rest) + "\n" if rest else ""
        return STATE + self.shared + self.lines[agent] + "\n" + others + "\n"

    @property
    def form(self) -> str:
        """The output format."""
        return FORMAT.format(example=self.example)


def central(view: View, history: str) -> str:
    """Of the central planner."""
    parts = (view.rules, history, view.all_lines(), f"{CENTRAL} {CARE} {view.form}")
    return _join(parts)


def review(view: View, history: str, agent: str, plan: Mapping[str, str]) -> str:
    """Of a local agent that reviews the central plan."""
    ask = (
        f"{REVIEW.format(agent=agent)}\n{PLAN_LINE}{plan_text(dict(plan))}\n"
        "If your part of the plan can be done and gets in nobody's way, answer exactly: I Agree\n"
        "Otherwise say briefly what is wrong and what you should do instead."
    )
    return _join((view.rules, history, view.own_first(agent), ask))


def speak(view: View, history: str, agent: str, dialogue: Sequence[str], *, final: bool) -> str:
    """Of a robot in a dialogue.

    Args:
        view: of the state.
        history: earlier steps.
        agent: who speaks.
        dialogue: what was said in this step, one line a speech.
        final: the robot has to give the final plan now (HMAS-1-fast).
    """
    said = "\n".join(dialogue) if dialogue else NO_DIALOGUE
    end = (
        "Give the final plan now: end with a line EXECUTE and the plan of all robots on the next "
        "line."
        if final
        else "Propose what you will do, or say whether you approve of the proposals. End with a "
        "line PROCEED; but if all robots have approved all proposals, end with a line EXECUTE "
        "and the plan of all robots on the next line."
    )
    ask = f"{DIALOGUE}{said}\n\n{SPEAK.format(agent=agent)} {CARE} {end} {view.form}"
    return _join((view.rules, history, view.own_first(agent), ask))


def objections(replies: Mapping[str, str]) -> str:
    """The feedback turn of HMAS-2."""
    rows = "\n".join(f"{agent}: {' '.join(reply.split())}" for agent, reply in replies.items())
    return f"{OBJECTIONS}{rows}\n{AGAIN}"


def faults(errors: Sequence[str], form: str) -> str:
    """The feedback turn of the checker."""
    return FAULTS + "\n".join(errors) + f"\n{AGAIN} {form}"


def summary(dialogue: str) -> str:
    """Of the call that shortens a dialogue."""
    return f"{SUMMARY}\n\n{dialogue}"


def _join(parts: Sequence[str]) -> str:
    return "\n\n".join(part.strip("\n") for part in parts if part)
