"""BoxLift: robots with known strength lift boxes of known volume and hidden weight, in teams.

"Scalable Multi-Robot Collaboration with Large Language Models: Centralized or Decentralized
Systems?" (arXiv 2309.15943), section IV. A plan maps boxes to teams; a box is lifted and gone if
its team is strong enough. Failures are reported ("too heavy for ...") and are all that a planner
can learn from.

Different from the official code: boxes have ids (there, equal volumes collapse into one box);
unknown robots are refused, and so is a robot in two teams (unless `apply="sequential"`); weights
appear in no prompt, unless `leak_weights` asks for the code's behaviour. All quantities are whole
tenths, so that sums are exact.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from outlay.errors import InputError
from outlay.evals.robots.base import (
    MAX_AGENTS,
    Apply,
    Draw,
    Plan,
    World,
    check_apply,
    check_whole,
)

SIZES = ((4, 10), (6, 14), (8, 18), (10, 24))
_AGENT = re.compile(r"agent(\d+)\[(\d+)\.(\d)W\]: I can lift")
_BOX = re.compile(r"box(\d+)\[(\d+)\.(\d)V\]")
_LIFT = re.compile(r"lift (box\d+)")


def tenths(value: int) -> str:
    """ "1.7" for 17."""
    return f"{value // 10}.{value % 10}"


@dataclass(frozen=True)
class LiftState:
    """Boxes that are left and the robots' strengths, in tenths.

    Args:
        boxes: (number, volume, weight) of every box left.
        strengths: of every robot.
    """

    boxes: tuple[tuple[int, int, int], ...]
    strengths: tuple[int, ...]


@dataclass(frozen=True)
class BoxLift(World[LiftState, tuple[int, tuple[int, ...]]]):
    """Teams of robots lift boxes.

    Args:
        robots: number of robots.
        boxes: number of boxes.
        leak_weights: print the table of volumes and weights in what reviewers see and in the
            history, as the official code does; only to reproduce it.
        apply: see `base`.

    Raises:
        InputError: for sizes out of range.
    """

    robots: int = 4
    boxes: int = 10
    leak_weights: bool = False
    apply: Apply = "simultaneous"

    def __post_init__(self) -> None:
        check_whole("robots", self.robots, 1, MAX_AGENTS)
        check_whole("boxes", self.boxes, 1, 256)
        check_apply(self.apply)

    @property
    def name(self) -> str:
        """ "boxlift-4x10" and the like."""
        return f"boxlift-{self.robots}x{self.boxes}"

    @property
    def agents(self) -> tuple[str, ...]:
        """ "agent0", "agent1", ..."""
        return tuple(f"agent{i}" for i in range(self.robots))

    @property
    def step_limit(self) -> int:
        """20 steps, 25 for 8 robots or more."""
        return 25 if self.robots >= 8 else 20

    @property
    def history_tokens(self) -> int:
        """4000 tokens."""
        return 4000

    def reset(self, seed: int) -> LiftState:
        """Volumes 1 to 10, weights near the volume, strengths raised until all can be lifted."""
        draw = Draw(self.name, seed)
        boxes = []
        for number in range(self.boxes):
            volume = draw.between(2, 20) * 5
            weight = volume / 10 + 0.1 * volume / 10 * draw.normal()
            if draw.share() < 0.05:
                weight += (0.5 if draw.share() < 0.5 else -0.5) * volume / 10
            boxes.append((number, volume, max(1, round(weight * 10))))
        strengths = [draw.between(1, 15) * 5 for _ in range(self.robots)]
        heaviest = max(weight for _, _, weight in boxes)
        while sum(strengths) < heaviest:
            strengths = [strength + 5 for strength in strengths]
        return LiftState(tuple(boxes), tuple(strengths))

    def given(
        self, volumes: Sequence[int], weights: Sequence[int], strengths: Sequence[int]
    ) -> LiftState:
        """An instance of your own, in tenths.

        Raises:
            InputError: for wrong lengths, values < 1, or a box that all robots together cannot
                lift.
        """
        if len(volumes) != self.boxes or len(weights) != self.boxes:
            raise InputError(f"{len(volumes)} volumes, {len(weights)} weights; boxes={self.boxes}")
        if len(strengths) != self.robots:
            raise InputError(f"{len(strengths)} strengths; robots={self.robots}")
        for name, values in (("volume", volumes), ("weight", weights), ("strength", strengths)):
            for value in values:
                check_whole(name, value, 1, 1_000_000)
        if max(weights) > sum(strengths):
            raise InputError(
                f"a box weighs {tenths(max(weights))}, all robots together lift "
                f"{tenths(sum(strengths))}: unsolvable; raise a strength"
            )
        rows = zip(range(self.boxes), volumes, weights, strict=True)
        return LiftState(tuple(rows), tuple(strengths))

    def solved(self, state: LiftState) -> bool:
        """True when no box is left."""
        return not state.boxes

    def actions(self, state: LiftState) -> dict[str, tuple[str, ...]]:
        """Every robot may join the lifting of any box."""
        lifts = tuple(f"lift box{number}" for number, _, _ in state.boxes)
        return dict.fromkeys(self.agents, lifts)

    def table(self, agent: str) -> tuple[str, ...]:
        """Every box."""
        return tuple(f"lift box{number}" for number in range(self.boxes))

    def encode(self, state: LiftState) -> tuple[int, ...]:
        """Volume of every box (0 once lifted), strength of every robot; no weights."""
        volumes = [0] * self.boxes
        for number, volume, _ in state.boxes:
            volumes[number] = volume
        return (*volumes, *state.strengths)

    def bounds(self) -> tuple[tuple[int, int], ...]:
        """Volumes up to 10, strengths up to what the heaviest box could ask for."""
        return ((0, 1_000_000),) * (self.boxes + self.robots)

    def join(self, choices: Mapping[str, str]) -> dict[str, str]:
        """Teams of those who lift the same box."""
        teams: dict[str, list[str]] = {}
        for agent in self.agents:
            if (choice := choices.get(agent)) is not None:
                found = _LIFT.fullmatch(choice)
                teams.setdefault(found[1] if found else choice, []).append(agent)
        return {box: ", ".join(team) for box, team in teams.items()}

    def split(self, plan: Plan) -> dict[str, str]:
        """The first box of every robot that is named."""
        doing: dict[str, str] = {}
        for box, team in plan.items():
            for agent in team.split(","):
                doing.setdefault(agent.strip(), f"lift {box}")
        return {agent: doing[agent] for agent in self.agents if agent in doing}

    def canonical(self, key: str) -> str:
        """The box without the volume that the state text shows behind it."""
        return re.sub(r"\[[^\]]*\]$", "", key.strip()).strip()

    def judge(self, state: LiftState, key: str, action: str) -> tuple[int, tuple[int, ...]] | str:
        """(box, robots) or a reason."""
        box = self.canonical(key)
        if box not in {f"box{number}" for number, _, _ in state.boxes}:
            return f"there is no {box}"
        team = []
        for part in action.split(","):
            name = self.canonical(part)
            if name not in self.agents:
                return f"there is no robot {name!r}; write a team as 'agent0, agent1'"
            team.append(int(name[5:]))
        if len(set(team)) != len(team):
            return "a robot is named twice"
        return int(box[3:]), tuple(team)

    def objects(self, effect: tuple[int, tuple[int, ...]]) -> tuple[str, ...]:
        """The box and every robot of its team."""
        return (f"box{effect[0]}", *(f"agent{i}" for i in effect[1]))

    def put(self, state: LiftState, effects: Sequence[tuple[int, tuple[int, ...]]]) -> LiftState:
        """Boxes gone whose team is strong enough."""
        weights = {number: weight for number, _, weight in state.boxes}
        gone = {
            number
            for number, team in effects
            if sum(state.strengths[i] for i in team) >= weights[number]
        }
        return LiftState(tuple(b for b in state.boxes if b[0] not in gone), state.strengths)

    def feedback(self, before: LiftState, plan: Plan) -> tuple[str, ...]:
        """Whether every box was lifted or too heavy for its team."""
        lines = []
        table = {number: (volume, weight) for number, volume, weight in before.boxes}
        for key, action in plan.items():
            effect = self.judge(before, key, action)
            if isinstance(effect, str):
                continue
            number, members = effect
            volume, weight = table[number]
            team = ", ".join(f"agent{i}[{tenths(before.strengths[i])}W]" for i in members)
            strong = sum(before.strengths[i] for i in members) >= weight
            verb = "was lifted by" if strong else "is too heavy for"
            lines.append(f"box{number}[{tenths(volume)}V] {verb} {team}")
        return tuple(lines)

    def rules(self) -> str:
        """The task description."""
        return (
            "You direct robots that lift boxes in teams. Every robot has a lifting strength (W). "
            "Every box has a volume (V) and an unknown weight, which is near its volume but may "
            "be more or less. A box is lifted when the strengths of its team sum to at least its "
            "weight; then it is gone. Each robot can be in one team in a step, and teams lift at "
            "the same time. A team that was too weak is reported: give that box a stronger team "
            "the next time. The task is done when no box is left. Use as few steps as possible."
        )

    def example(self) -> str:
        """Two boxes."""
        return '{"box0": "agent0, agent2", "box3": "agent1"}'

    def shared_text(self, state: LiftState) -> str:
        """The boxes that are left, without their weights unless they are leaked."""
        left = ", ".join(f"box{number}[{tenths(volume)}V]" for number, volume, _ in state.boxes)
        text = f"Boxes left: {left}"
        if self.leak_weights:
            text += "\nWeights: " + self._leak(state)
        return text

    def _leak(self, state: LiftState) -> str:
        return ", ".join(f"{tenths(v)}V:{tenths(w)}W" for _, v, w in state.boxes)

    def agent_lines(self, state: LiftState) -> dict[str, str]:
        """The strength of every robot."""
        return {
            agent: f"{agent}[{tenths(strength)}W]: I can lift any one box, alone or in a team"
            for agent, strength in zip(self.agents, state.strengths, strict=True)
        }

    def brief(self, state: LiftState) -> str:
        """The boxes that are left."""
        boxes = ", ".join(f"box{number}[{tenths(volume)}V]" for number, volume, _ in state.boxes)
        return f"{boxes}; {self._leak(state)}" if self.leak_weights else boxes

    def read(self, text: str) -> LiftState:
        """Boxes and robots of the text; a hidden weight is taken for the volume."""
        strengths = {int(i): int(a) * 10 + int(b) for i, a, b in _AGENT.findall(text)}
        line = next((row for row in text.splitlines() if row.startswith("Boxes left:")), "")
        boxes = tuple(
            (int(number), int(a) * 10 + int(b), int(a) * 10 + int(b))
            for number, a, b in _BOX.findall(line)
        )
        return LiftState(boxes, tuple(strengths[i] for i in sorted(strengths)))
