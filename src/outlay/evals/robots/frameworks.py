"""Four topologies in which robots agree on the plan of one step: CMAS, HMAS-2, DMAS, HMAS-1.

"Scalable Multi-Robot Collaboration with Large Language Models: Centralized or Decentralized
Systems?" (arXiv 2309.15943), section III, after the official code (MIT). What that code leaves
broken is specified after its working parts: DMAS and HMAS-1 run in all worlds, a dialogue ends at a
line EXECUTE only (there, at any `{...}`), and a corrected plan is read like a first one (there, a
fenced plan is refused on the second reading). Ours: `reviewers="all"` and "conflicting",
`speak_order="rotate"`, self-consistency and a collision checker without a model for CMAS.

Calls per step with m robots in the plan and n in all: CMAS 1; HMAS-2 1 + r(m + 1) for r rounds that
end in a new plan, or 1 + m where all agree at once; DMAS up to 4n; HMAS-1 up to 1 + 4m. Retries of
unusable plans come on top.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from outlay.errors import InputError, OutlayError
from outlay.evals.robots import prompts
from outlay.evals.robots.base import World, check_whole
from outlay.evals.robots.calls import Caller
from outlay.evals.robots.history import Past, Policy, check_policy, history_text
from outlay.evals.robots.plans import Read, agrees, final_plan, plan_text, read_plan
from outlay.ledger import Role
from outlay.models.base import Message

Agree = Literal["exact", "contains"]
Reviewers = Literal["in_plan", "all", "conflicting"]
SpeakOrder = Literal["fixed", "rotate"]
Checker = Literal["feasible", "collisions"]


class UnusablePlanError(OutlayError, ValueError):
    """No usable plan after all retries; ends an episode."""


@dataclass
class Scene:
    """One step, as a framework sees it.

    Args:
        world, state: where the robots are.
        caller: asks the model.
        pasts: finished steps.
        history_tokens: limit of prompt and history together.
    """

    world: World[Any, Any]
    state: Any
    caller: Caller
    pasts: Sequence[Past]
    history_tokens: int
    dialogue: list[str] = field(default_factory=list)
    retries: int = 0

    def __post_init__(self) -> None:
        self.view = prompts.View.of(self.world, self.state)

    def history(self, policy: Policy, assemble: Any, fixed: str) -> str:
        """The whole prompt with as much history as fits."""
        text = history_text(
            self.pasts,
            policy,
            assemble,
            count=self.caller.count,
            limit=self.history_tokens,
            fixed=fixed,
        )
        prompt: str = assemble(text)
        return prompt

    def ask(self, messages: Sequence[Message], role: Role, speaker: str, **how: Any) -> str:
        """One call."""
        return self.caller.ask(messages, role=role, speaker=speaker, **how)

    def usable(
        self,
        messages: Sequence[Message],
        reply: str,
        *,
        role: Role,
        speaker: str,
        retries: int,
        checker: Checker = "feasible",
        speech: bool = False,
    ) -> dict[str, str]:
        """The plan of `reply`, asked for again with the checker's reasons while it is unusable.

        Args:
            messages: the prompt that led to `reply`.
            reply: with the plan.
            role, speaker: of the further calls.
            retries: at most so many further calls.
            checker: what counts as unusable.
            speech: the plan stands after a line EXECUTE.

        Raises:
            UnusablePlanError: after the last retry.
        """
        turns = list(messages)
        for left in reversed(range(retries + 1)):
            text = final_plan(reply) if speech else reply
            read = (
                Read(None, ("there is no line EXECUTE with the plan on the next line",))
                if text is None
                else read_plan(self.world, self.state, text, collisions=checker == "collisions")
            )
            if read.plan is not None and not read.errors:
                return read.plan
            if not left:
                raise UnusablePlanError(
                    f"{speaker} gave no usable plan after {retries} retries: {read.errors[0]}"
                )
            self.retries += 1
            # Every attempt stays in the prompt: with the last one alone, a model at temperature 0
            # could be asked the same for ever.
            turns.append(Message(role="assistant", content=reply))
            turns.append(_user(prompts.faults(read.errors, self.view.form)))
            reply = self.ask(turns, role, speaker)
        raise AssertionError("unreachable: the loop returns or raises")

    def central(
        self, policy: Policy, retries: int, *, checker: Checker = "feasible"
    ) -> tuple[list[Message], dict[str, str]]:
        """The central planner's first plan, and the prompt that led to it."""
        messages = [self.central_prompt(policy)]
        reply = self.ask(messages, "planner", "central")
        plan = self.usable(
            messages, reply, role="planner", speaker="central", retries=retries, checker=checker
        )
        return messages, plan

    def central_prompt(self, policy: Policy) -> Message:
        """The central planner's user turn."""
        view = self.view

        def assemble(history: str) -> str:
            return prompts.central(view, history)

        return _user(self.history(policy, assemble, assemble("")))


def _user(text: str) -> Message:
    return Message(role="user", content=text)


@dataclass(frozen=True)
class Framework(ABC):
    """How robots agree on a plan.

    Args:
        history: what earlier steps a prompt repeats.
        max_retries: further calls for an unusable plan.

    Raises:
        InputError: for a knob out of range.
    """

    history: Policy = "state_action"
    max_retries: int = 6

    name = ""
    talks = True

    def __post_init__(self) -> None:
        check_policy(self.history)
        check_whole("max_retries", self.max_retries, 0, 100)

    @abstractmethod
    def plan(self, scene: Scene) -> dict[str, str]:
        """The plan of one step.

        Raises:
            UnusablePlanError: if the model gives none.
            OutOfTokensError: if no call fits any more.
        """


@dataclass(frozen=True)
class CMAS(Framework):
    """One central call, no dialogue and, as in the official code, no history.

    Args:
        votes: plans sampled; the most frequent usable one is taken (self-consistency).
        vote_temperature: of those samples where votes > 1.
        checker: "collisions" sends plans back that lead to a collision, without a model.
    """

    history: Policy = "none"
    votes: int = 1
    vote_temperature: float = 0.7
    checker: Checker = "feasible"

    name = "CMAS"
    talks = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("votes", self.votes, 1, 1000)
        _choice("checker", self.checker, Checker)
        if not self.vote_temperature > 0:
            raise InputError(f"vote_temperature={self.vote_temperature}; give a number > 0")

    def plan(self, scene: Scene) -> dict[str, str]:
        """The central plan, or the vote's winner."""
        if self.votes == 1:
            return scene.central(self.history, self.max_retries, checker=self.checker)[1]
        messages = [scene.central_prompt(self.history)]
        replies = [
            scene.ask(messages, "planner", "central", temperature=self.vote_temperature, draw=index)
            for index in range(self.votes)
        ]
        found: list[dict[str, str]] = []
        for reply in replies:
            read = read_plan(
                scene.world, scene.state, reply, collisions=self.checker == "collisions"
            )
            if read.plan is not None and not read.errors:
                found.append(read.plan)
        if found:
            counts = Counter(tuple(sorted(plan.items())) for plan in found)
            winner = counts.most_common(1)[0][0]  # ties: the first seen
            return next(plan for plan in found if tuple(sorted(plan.items())) == winner)
        return scene.usable(
            messages,
            replies[0],
            role="planner",
            speaker="central",
            retries=self.max_retries,
            checker=self.checker,
        )


@dataclass(frozen=True)
class HMAS2(Framework):
    """A central plan, reviewed by local agents until all agree.

    Args:
        max_rounds: new plans after objections; 3, and 1 in the official code's BoxNet1.
        agree: "exact" takes "I Agree" alone for agreement; "contains" also longer replies without
            a "but".
        reviewers: "in_plan" robots that the plan names, "all", or "conflicting" ones only, those
            that a simulation of the plan shows to collide.
    """

    max_rounds: int = 3
    agree: Agree = "exact"
    reviewers: Reviewers = "in_plan"

    name = "HMAS-2"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("max_rounds", self.max_rounds, 0, 100)
        _choice("agree", self.agree, Agree)
        _choice("reviewers", self.reviewers, Reviewers)

    def plan(self, scene: Scene) -> dict[str, str]:
        """The last plan: agreed upon, or that of the last round."""
        messages, plan = scene.central(self.history, self.max_retries)
        scene.dialogue.append(prompts.INITIAL + plan_text(plan))
        for _ in range(self.max_rounds):
            against = self._review(scene, plan)
            if not against:
                break
            turns = [
                *messages,
                Message(role="assistant", content=plan_text(plan)),
                _user(prompts.objections(against)),
            ]
            reply = scene.ask(turns, "planner", "central")
            plan = scene.usable(
                turns, reply, role="planner", speaker="central", retries=self.max_retries
            )
            scene.dialogue.append(prompts.INITIAL + plan_text(plan))
        return plan

    def _review(self, scene: Scene, plan: dict[str, str]) -> dict[str, str]:
        against = {}
        view = scene.view
        for agent in self._reviewers(scene, plan):

            def assemble(history: str, agent: str = agent) -> str:
                return prompts.review(view, history, agent, plan)

            prompt = scene.history(self.history, assemble, prompts.review(view, "", agent, {}))
            reply = scene.ask([_user(prompt)], "verifier", agent)
            scene.dialogue.append(f"[{agent}]: {' '.join(reply.split())}")
            if not agrees(reply, self.agree):
                against[agent] = reply
        return against

    def _reviewers(self, scene: Scene, plan: dict[str, str]) -> tuple[str, ...]:
        if self.reviewers == "all":
            return scene.world.agents
        named = scene.world.named(plan)
        if self.reviewers == "in_plan":
            return named
        colliding = {a for c in scene.world.foresee(scene.state, plan) for a in c.agents}
        return tuple(agent for agent in named if agent in colliding)


@dataclass(frozen=True)
class _Talk(Framework):
    max_rounds: int = 4
    speak_order: SpeakOrder = "fixed"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("max_rounds", self.max_rounds, 1, 100)
        _choice("speak_order", self.speak_order, SpeakOrder)

    def talk(
        self, scene: Scene, agents: Sequence[str], *, final_from: int | None = None
    ) -> dict[str, str] | None:
        """The plan of the first valid EXECUTE; None after the last round."""
        order = list(agents)
        if self.speak_order == "rotate" and order:
            shift = len(scene.pasts) % len(order)
            order = order[shift:] + order[:shift]
        view = scene.view
        for turn in range(self.max_rounds):
            final = final_from is not None and turn >= final_from
            for agent in order:

                def assemble(history: str, agent: str = agent, final: bool = final) -> str:
                    return prompts.speak(view, history, agent, scene.dialogue, final=final)

                fixed = prompts.speak(view, "", agent, (), final=final)
                messages = [_user(scene.history(self.history, assemble, fixed))]
                reply = scene.ask(messages, "target", agent)
                if final or final_plan(reply) is not None:
                    plan = scene.usable(
                        messages,
                        reply,
                        role="target",
                        speaker=agent,
                        retries=self.max_retries,
                        speech=True,
                    )
                    scene.dialogue.append(f"[{agent}]: EXECUTE {plan_text(plan)}")
                    return plan
                scene.dialogue.append(f"[{agent}]: {' '.join(reply.split())}")
        return None


@dataclass(frozen=True)
class DMAS(_Talk):
    """A round-robin dialogue of all robots, without a centre.

    Args:
        max_rounds: over all robots; then nobody acts in this step.
        speak_order: "fixed", or "rotate": another robot opens every step.
    """

    name = "DMAS"

    def plan(self, scene: Scene) -> dict[str, str]:
        """What the dialogue ends with, or {}."""
        return self.talk(scene, scene.world.agents) or {}


@dataclass(frozen=True)
class HMAS1(_Talk):
    """A central plan opens a dialogue of the robots that it names.

    Args:
        max_rounds: over the robots of the plan; then the initial plan stands.
        speak_order: as in `DMAS`.
        fast: from the second round on a robot has to give the final plan.
    """

    fast: bool = False

    @property
    def name(self) -> str:  # type: ignore[override]
        """ "HMAS-1" or "HMAS-1-fast"."""
        return "HMAS-1-fast" if self.fast else "HMAS-1"

    def plan(self, scene: Scene) -> dict[str, str]:
        """What the dialogue ends with, or the initial plan."""
        _, initial = scene.central(self.history, self.max_retries)
        scene.dialogue.append(prompts.INITIAL + plan_text(initial))
        named = scene.world.named(initial)
        plan = self.talk(scene, named, final_from=1 if self.fast else None)
        return initial if plan is None else plan


def _choice(name: str, value: str, options: Any) -> None:
    if value not in get_args(options):
        raise InputError(f"{name}={value!r}; choose one of {', '.join(get_args(options))}")
