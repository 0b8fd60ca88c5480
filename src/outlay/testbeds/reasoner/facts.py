"""ChainRecall: synthetic facts that must be remembered, in questions of one or two hops.

200 entities have three relations each: `friend` (another entity), `home` and `size` (a number), 600
facts in all. 70 % of them are *known*: they occur in training. The others never do, so no amount of
thinking can recover them: accuracy on them is chance, 1 / values. Questions of one hop ask for a
number, `c7.size=?`; of two hops, `c7.friend.size=?`. No torch.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from outlay.errors import InputError
from outlay.testbeds.reasoner.chains import Split, split_of

LETTERS = "abcdefghij"
LINK = "friend"
ATTRIBUTES = ("home", "size")
RELATIONS = (LINK, *ATTRIBUTES)

Fact = tuple[str, str]


@dataclass(frozen=True)
class FactWorld:
    """All facts of one world, and which of them are known.

    Args:
        seed: of the facts and of their division.
        entities: number of entities, at most 1000; facts are three times as many.
        values: attributes lie in 0..values-1.
        known: share of facts that occur in training.

    Raises:
        InputError: for values out of range.
    """

    seed: int = 0
    entities: int = 200
    values: int = 20
    known: float = 0.7

    def __post_init__(self) -> None:
        if not 2 <= self.entities <= len(LETTERS) * 100:
            raise InputError(f"entities={self.entities}; must be in 2..{len(LETTERS) * 100}")
        if not 2 <= self.values <= 100:
            raise InputError(f"values={self.values}; must be in 2..100 (one token per number)")
        if not 0 < self.known < 1:
            raise InputError(f"known={self.known}; must be between 0 and 1")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of all entities: a letter and a number."""
        return tuple(
            f"{LETTERS[i % len(LETTERS)]}{i // len(LETTERS)}" for i in range(self.entities)
        )

    @cached_property
    def facts(self) -> Mapping[Fact, str]:
        """Value of every (entity, relation)."""
        rng = random.Random(f"facts:{self.seed}")
        facts: dict[Fact, str] = {}
        for name in self.names:
            facts[name, LINK] = rng.choice([other for other in self.names if other != name])
            for attribute in ATTRIBUTES:
                facts[name, attribute] = str(rng.randrange(self.values))
        return facts

    @cached_property
    def known_facts(self) -> frozenset[Fact]:
        """The facts that training shows: exactly `known` of all, rounded."""
        rng = random.Random(f"known:{self.seed}")
        return frozenset(rng.sample(sorted(self.facts), round(self.known * len(self.facts))))

    def problem(self, entity: str, *relations: str) -> RecallProblem:
        """The question that follows `relations` from `entity`."""
        hops = []
        at = entity
        for relation in relations:
            if (at, relation) not in self.facts:
                raise InputError(f"no fact {at}.{relation} in this world")
            hops.append((at, relation, self.facts[at, relation]))
            at = self.facts[at, relation]
        known = all(hop[:2] in self.known_facts for hop in hops)
        return RecallProblem(tuple(hops), known)

    def sample(
        self, rng: random.Random, hops: int, known: bool, split: Split | None = None
    ) -> RecallProblem:
        """A random question that asks for a number.

        Args:
            rng: source of randomness.
            hops: 1 or 2.
            known: whether all facts needed were in training; else at least one was not.
            split: of two-hop questions with known facts: "train" or "heldout" compositions.
        """
        if hops not in (1, 2):
            raise InputError(f"hops={hops}; must be 1 or 2")
        links = (LINK,) * (hops - 1)
        while True:
            problem = self.problem(rng.choice(self.names), *links, rng.choice(ATTRIBUTES))
            if problem.known != known:
                continue
            if hops == 1 or not known or split is None or split_of(problem.question) == split:
                return problem

    def led_astray(self, problem: RecallProblem, rng: random.Random) -> RecallProblem:
        """The same two-hop question, its first hop replaced by a random known way to go on."""
        (entity, link, _), (_, relation, _) = problem.hops
        known = [name for name in self.names if (name, relation) in self.known_facts]
        other = rng.choice(known)
        hops = ((entity, link, other), (other, relation, self.facts[other, relation]))
        return RecallProblem(hops, known=True, astray=True)


@dataclass(frozen=True)
class RecallProblem:
    """One question: its hops (entity, relation, value).

    Args:
        hops: in order; each starts where the one before ends.
        known: all facts were in training.
        astray: the first hop states a wrong entity, and the others follow it.
    """

    hops: tuple[tuple[str, str, str], ...]
    known: bool
    astray: bool = False

    @property
    def question(self) -> str:
        """What the model reads, such as `c7.friend.size=?`."""
        return ".".join([self.hops[0][0], *(relation for _, relation, _ in self.hops)]) + "=?"

    @property
    def answer(self) -> str:
        """The value at the end of the last hop."""
        return self.hops[-1][2]

    @property
    def operations(self) -> int:
        """Number of hops."""
        return len(self.hops)
