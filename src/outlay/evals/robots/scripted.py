"""Scripted policies behind the interface of a language model: real loops, prompts and texts.

`ScriptedModel` answers the prompts of the frameworks by rule, from the prompt's text alone, in the
formats that a model has to use. It shows what the *topologies* do, apart from how well a model
plans; it is no language model, and everything that comes of it carries "scripted" in its name.

- The central planner takes every robot's first wish and ignores where the others go. With
  probability `error` one thing is wrong: an action is left out, one causes a collision, or one
  names a box that does not exist.
- A local reviewer finds a collision of its own action with probability `recall`, and raises a
  false alarm with probability `false_alarm`.
- In a dialogue every robot proposes its own action (wrong with probability `error`), changes it
  when it finds a collision, approves when all have proposed, and executes when all have approved.

At temperature 0 an answer is a function of the prompt, so that the same prompt is answered the same
way for ever, as by a model; at other temperatures the sampling's seed enters.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from outlay.budget import Budget
from outlay.errors import CapabilityError, InputError
from outlay.evals.robots import planner, prompts
from outlay.evals.robots.base import World
from outlay.evals.robots.boxlift import BoxLift
from outlay.evals.robots.plans import extract, plan_text
from outlay.models.base import (
    Account,
    Branch,
    Capabilities,
    Chunk,
    Finish,
    Generation,
    Message,
    Prompt,
    SamplingParams,
)

BYTES_PER_TOKEN = 4
CHANGE = "I propose "
APPROVE = "I approve all proposals."
UNSURE = "I am not sure yet."

_REVIEW = re.compile(re.escape(prompts.REVIEW).replace(r"\{agent\}", "(.+?)") + "$", re.MULTILINE)
_SPEAK = re.compile(re.escape(prompts.SPEAK).replace(r"\{agent\}", "(.+?)"))
_HEAVY = re.compile(r"box(\d+)\[[\d.]+V\] is too heavy for ([^;\n]*)")
_STRENGTH = re.compile(r"\[(\d+)\.(\d)W\]")
_PLACE = re.compile(r"collision at .*? of (.+)")


class _Chance:
    """Numbers in [0, 1) that depend on the prompt, the seed and the question asked."""

    def __init__(self, seed: int, text: str) -> None:
        self._key = hashlib.blake2b(f"{seed}\0{text}".encode(), digest_size=16).digest()

    def share(self, name: str) -> float:
        digest = hashlib.blake2b(name.encode(), key=self._key, digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64

    def pick(self, name: str, options: Sequence[Any]) -> Any:
        return options[int(self.share(name) * len(options))]


@dataclass
class ScriptedModel:
    """A rule-based stand-in for a language model in one world.

    Args:
        world: whose texts it reads and writes.
        error: chance that a plan (in a dialogue, a proposal) has something wrong.
        recall: chance that a robot finds a collision of its own action.
        false_alarm: chance that it objects to a sound action.
        seed: of all chances.
        context_length: tokens of prompt and reply; a token is four UTF-8 bytes.

    Raises:
        InputError: for chances outside [0, 1].
    """

    world: World[Any, Any]
    error: float = 0.15
    recall: float = 0.8
    false_alarm: float = 0.05
    seed: int = 0
    context_length: int = 8192
    capabilities: Capabilities = field(default_factory=lambda: Capabilities(seed=True))
    takes_chat: bool = field(default=True, init=False)
    name: str = field(init=False)

    def __post_init__(self) -> None:
        # The name says that this is no language model, and with which chances.
        self.name = f"scripted(e={self.error:g},r={self.recall:g},f={self.false_alarm:g})"
        for name in ("error", "recall", "false_alarm"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)}; give a chance in [0, 1]")
        if self.context_length < 1:
            raise InputError(f"context_length={self.context_length}; must be >= 1")

    def count(self, text: str) -> int:
        """Tokens of `text`: four UTF-8 bytes each."""
        return -(-len(text.encode()) // BYTES_PER_TOKEN)

    def generate(
        self,
        prompt: Prompt,
        budget: Budget | None = None,
        sampling: SamplingParams = SamplingParams(),  # noqa: B008 - frozen
        *,
        account: Account | None = None,
    ) -> Generation:
        """The scripted reply, cut where the limits cut it, and booked like any other.

        Raises:
            InputError: for a prompt that is no chat of the frameworks.
            BudgetError: if the account's budget has nothing left.
        """
        if isinstance(prompt, str) or not prompt or not isinstance(prompt[0], dict):
            raise InputError("a scripted policy reads chats of the frameworks only")
        account = account or Account.open(budget)
        turns: list[Message] = [Message(**message) for message in prompt]  # type: ignore[typeddict-item]
        size = sum(self.count(turn["content"]) for turn in turns)
        hold = account.hold([sampling.max_tokens], prompt=size)
        reply, finish = self._reply(turns, sampling), "stop"
        data = reply.encode()
        if len(data) > (room := hold.limits[0] * BYTES_PER_TOKEN):
            reply = data[:room].decode(errors="ignore")
            finish = "budget" if hold.truncated else "length"
        generated = self.count(reply)
        account.settle(hold, generated)
        account.ledger.record(
            account.stage,
            account.role,
            prompt_new=size,
            generated=generated,
            estimated=True,
            method=account.method,
            note="scripted policy",
        )
        ended: Finish = finish  # type: ignore[assignment]
        return Generation(reply, (), ended, account.ledger)

    def stream(self, prompt: Prompt, *args: Any, **knobs: Any) -> Iterator[Chunk]:
        """The whole reply as one piece."""
        made = self.generate(prompt, *args, **knobs)
        yield Chunk(made.text)
        yield Chunk("", made)

    def open(self, prompt: Prompt, assistant_prefix: str = "", **knobs: Any) -> Branch:
        """Not offered: scripted policies answer whole chats."""
        raise CapabilityError("a scripted policy has no token tree; use generate")

    def extend(self, branches: Sequence[Branch], *args: Any, **knobs: Any) -> list[list[Branch]]:
        """Not offered."""
        raise CapabilityError("a scripted policy has no token tree; use generate")

    def append(self, branch: Branch, tokens: Any, **knobs: Any) -> Branch:
        """Not offered."""
        raise CapabilityError("a scripted policy has no token tree; use generate")

    def score(self, branch: Branch, continuations: Any, **knobs: Any) -> list[tuple[float, ...]]:
        """Not offered."""
        raise CapabilityError("a scripted policy cannot score text")

    def release(self, branch: Branch) -> None:
        """Nothing to release."""

    # -- answers --------------------------------------------------------------------------------

    def _reply(self, turns: Sequence[Message], sampling: SamplingParams) -> str:
        users = [turn["content"] for turn in turns if turn["role"] == "user"]
        if not users:
            raise InputError("a scripted policy needs a user turn")
        ask, after = users[0], users[1:]
        if ask.startswith(prompts.SUMMARY):
            last = ask.rstrip().splitlines()[-1]
            return f"In the end: {last[:200]}"
        seed = self.seed + (sampling.seed << 32 if sampling.temperature > 0 else 0)
        chance = _Chance(seed, "\0".join(turn["content"] for turn in turns))
        start = ask.find(prompts.STATE)
        if start < 0:
            raise InputError("the prompt shows no state; use the prompts of the frameworks")
        section = ask[start : ask.find("\n\n", start)]
        scene = _Scene(self.world, _read(self.world, section), _floors(ask[:start]))
        said = [turn["content"] for turn in turns if turn["role"] == "assistant"]
        tail = ask[start + len(section) :]
        if found := _REVIEW.search(tail):
            return self._review(scene, found[1], tail, chance)
        if found := _SPEAK.search(tail):
            return self._speak(scene, found[1], tail, after, said, chance)
        plan = scene.naive() if not after else self._revise(scene, said[-1], after[-1])
        return plan_text(self._slip(scene, plan, chance))

    def _revise(self, scene: _Scene, said: str, feedback: str) -> dict[str, str]:
        """The last plan with the robots named in the feedback replanned around the others."""
        before = extract(said).plan
        if before is None or isinstance(self.world, BoxLift):
            return scene.naive()
        named = _named(self.world, feedback)
        keep = {
            agent: [action]
            for agent, action in self.world.split(before).items()
            if agent not in named
        }
        # Others in the order of their wishes' priority, after those that keep their action.
        ranked = keep | {a: w for a, w in scene.wishes().items() if a in named}
        return planner.yielding(self.world, scene.state, ranked, movable=named)

    def _slip(self, scene: _Scene, plan: dict[str, str], chance: _Chance) -> dict[str, str]:
        if chance.share("slip") >= self.error:
            return plan
        kind = chance.pick("kind", ("drop", "collide", "hallucinate"))
        choices = self.world.split(plan)
        if kind == "drop" and choices:
            del choices[chance.pick("who", list(choices))]
            return self.world.join(choices)
        if kind == "collide":
            for agent, actions in scene.shuffled(chance):
                for action in actions:
                    wrong = self.world.join({**choices, agent: action})
                    if self.world.foresee(scene.state, wrong):
                        return wrong
        agent = chance.pick("who", self.world.agents)
        return self.world.join({**choices, agent: self._nonsense()})

    def _nonsense(self) -> str:
        """An action with a box that does not exist."""
        if self.world.name.startswith("boxlift"):
            return "lift box999"
        if self.world.name.startswith("warehouse"):
            return "pick box_99.5_99"
        return "move(box_mauve, target_mauve)"

    def _review(self, scene: _Scene, agent: str, tail: str, chance: _Chance) -> str:
        line = tail[tail.find(prompts.PLAN_LINE) + len(prompts.PLAN_LINE) :].splitlines()[0]
        plan = extract(line).plan or {}
        reason = scene.trouble(plan, agent)
        if reason and chance.share("recall") < self.recall:
            return f"I object: {reason}. I should do something else or wait."
        if not reason and chance.share("alarm") < self.false_alarm:
            return "I object: I am not sure that this is the right thing to do."
        return "I Agree"

    def _speak(
        self,
        scene: _Scene,
        agent: str,
        tail: str,
        after: Sequence[str],
        said: Sequence[str],
        chance: _Chance,
    ) -> str:
        talk = _Talk.read(self.world, tail[: tail.rfind("\n\n")])
        if after:  # the checker refused the plan that this robot executed
            plan = extract(said[-1].partition("EXECUTE")[2]).plan or talk.joint()
            named = _named(self.world, after[-1])
            choices = {a: c for a, c in self.world.split(plan).items() if a not in named}
            return f"EXECUTE\n{plan_text(self.world.join(choices))}"
        if "Give the final plan now" in tail:
            return f"EXECUTE\n{plan_text(talk.joint())}"
        if agent not in talk.choices:
            action = self._own(scene, agent, talk, chance)
            return f"{CHANGE}{self._one(agent, action)}\nPROCEED"
        reason = scene.trouble(talk.joint(), agent)
        if reason and chance.share("recall") < self.recall:
            action = scene.around(talk.choices, agent)
            return f"{CHANGE}{self._one(agent, action)} because of this: {reason}\nPROCEED"
        if not reason and chance.share("alarm") < self.false_alarm:
            return f"{UNSURE}\nPROCEED"
        if talk.everybody and talk.approved | {agent} >= talk.members:
            return f"EXECUTE\n{plan_text(talk.joint())}"
        return f"{APPROVE}\nPROCEED"

    def _one(self, agent: str, action: str | None) -> str:
        return plan_text(self.world.join({} if action is None else {agent: action}))

    def _own(self, scene: _Scene, agent: str, talk: _Talk, chance: _Chance) -> str | None:
        if chance.share("slip") < self.error:
            options = [None, self._nonsense(), *scene.actions(agent)]
            wrong: str | None = chance.pick("what", options)
            return wrong
        if chance.share("recall") < self.recall:
            return scene.around(talk.choices, agent)
        return next(iter(scene.wishes().get(agent, [])), None)


@dataclass(frozen=True)
class _Scene:
    """The state that a prompt shows, and what is known from its history."""

    world: World[Any, Any]
    state: Any
    floors: tuple[tuple[int, int], ...]

    def wishes(self) -> Mapping[str, list[str]]:
        return _wishes(self.world, self.state, self.floors)

    def actions(self, agent: str) -> tuple[str, ...]:
        return self.world.actions(self.state).get(agent, ())

    def naive(self) -> dict[str, str]:
        return self.world.join({a: ranked[0] for a, ranked in self.wishes().items()})

    def shuffled(self, chance: _Chance) -> list[tuple[str, tuple[str, ...]]]:
        rows = list(self.world.actions(self.state).items())
        return sorted(rows, key=lambda row: chance.share(f"order {row[0]}"))

    def around(self, choices: Mapping[str, str | None], agent: str) -> str | None:
        """The robot's best action beside what others proposed."""
        ranked = {a: [c] for a, c in choices.items() if c is not None and a != agent}
        ranked[agent] = list(self.wishes().get(agent, []))
        plan = planner.yielding(self.world, self.state, ranked, movable={agent})
        return self.world.split(plan).get(agent)

    def trouble(self, plan: Mapping[str, str], agent: str) -> str:
        """What is wrong with the robot's own action in `plan`; "" for nothing."""
        step = self.world.step(self.state, plan)
        for refusal in step.refusals:
            if agent in (refusal.key, *self.world.named({refusal.key: refusal.action})):
                return refusal.reason
        for collision in step.collisions:
            if agent in collision.agents:
                return collision.text()
        if isinstance(self.world, BoxLift):
            return self._weak(plan, agent)
        return ""

    def _weak(self, plan: Mapping[str, str], agent: str) -> str:
        known = dict(self.floors)
        for box, team in plan.items():
            effect = self.world.judge(self.state, box, team)
            if isinstance(effect, str) or int(agent[5:]) not in effect[1]:
                continue
            strength = sum(self.state.strengths[i] for i in effect[1])
            if strength <= known.get(effect[0], -1):
                return f"{box} was too heavy for a team as strong as this"
        return ""


@dataclass(frozen=True)
class _Talk:
    """What has been proposed and approved in a dialogue."""

    world: World[Any, Any]
    choices: dict[str, str | None]
    approved: set[str]
    members: set[str]

    @property
    def everybody(self) -> bool:
        return self.members <= set(self.choices)

    def joint(self) -> dict[str, str]:
        return self.world.join({a: c for a, c in self.choices.items() if c is not None})

    @classmethod
    def read(cls, world: World[Any, Any], text: str) -> _Talk:
        talk = cls(world, {}, set(), set(world.agents))
        body = text[text.rfind(prompts.DIALOGUE) + len(prompts.DIALOGUE) :]
        for line in body.splitlines():
            if line.startswith(prompts.INITIAL):
                plan = extract(line[len(prompts.INITIAL) :]).plan or {}
                talk.choices.update(world.split(plan))
                talk.members.intersection_update(world.named(plan))
                continue
            speaker, _, speech = line[1:].partition("]: ")
            if APPROVE in speech:
                talk.approved.add(speaker)
            elif speech.startswith(CHANGE) and speaker in world.agents:
                talk.choices[speaker] = world.split(_plan_in(speech)).get(speaker)
                talk.approved.clear()
        return talk


@lru_cache(maxsize=4096)
def _plan_in(speech: str) -> dict[str, str]:
    return extract(speech).plan or {}


@lru_cache(maxsize=2048)
def _read(world: World[Any, Any], section: str) -> Any:
    return world.read(section)


@lru_cache(maxsize=2048)
def _wishes(
    world: World[Any, Any], state: Any, floors: tuple[tuple[int, int], ...]
) -> dict[str, list[str]]:
    return planner.wishes(world, state, floors=dict(floors))


@lru_cache(maxsize=512)
def _floors(history: str) -> tuple[tuple[int, int], ...]:
    """Per box, the greatest strength (tenths) that a prompt's history calls too weak."""
    known: dict[int, int] = {}
    for number, team in _HEAVY.findall(history):
        strength = sum(int(a) * 10 + int(b) for a, b in _STRENGTH.findall(team))
        known[int(number)] = max(known.get(int(number), -1), strength)
    return tuple(sorted(known.items()))


def _named(world: World[Any, Any], feedback: str) -> set[str]:
    """Robots that a feedback turn names as the cause."""
    named: set[str] = set()
    for line in feedback.splitlines():
        key = line.partition(": ")[0]
        named |= {key} & {*world.agents}
        if found := _PLACE.search(line):
            named |= {*world.agents} & {*re.split(r", (?=[Aa]gent)", found[1])}
        if key.startswith("box") and (team := re.search(r"'(.*?)' is not possible", line)):
            named |= {*world.split({key: team[1]})}
    return named
