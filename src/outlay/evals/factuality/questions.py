"""Questions over a graph: made from templates, with held-out compositions.

A question asks for what a chain of one to three relations leads to: "What is the currency of the
country whose capital is Paris?" is `capital of`, then `currency`. A composition is such a chain.
Some compositions are held out for testing; facts never are: every one-hop question stays in the
training part, so that what a held-out question needs was stated.

A chain may lead to several nodes; each of them answers the question. The number of hops is honest:
no gold node is nearer to the question's entity than the chain says.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from outlay.errors import InputError
from outlay.evals.checks import check_whole, choose
from outlay.evals.factuality import countries as c
from outlay.evals.factuality.graph import Graph, Triple
from outlay.evals.factuality.paths import PathFinder
from outlay.evals.sampling import digest

Split = Literal["all", "train", "heldout"]
Composition = tuple[str, ...]

MOST_HOPS = 3
COUNTRY_PHRASES: Mapping[str, str] = {
    c.CAPITAL: "the capital of {}",
    c.CAPITAL_OF: "the country whose capital is {}",
    c.CURRENCY: "the currency code of {}",
    c.LANGUAGE: "the official language of {}",
    c.REGION: "the continent of {}",
    c.SUBREGION: "the subregion of {}",
    c.BORDERS: "a country that borders {}",
    c.CALLING: "the calling code of {}",
    c.DOMAIN: "the internet domain of {}",
}


@dataclass(frozen=True)
class Question:
    """A question with its gold answers.

    Args:
        id: unique in its set.
        text: what is asked.
        entities: ids of the nodes that it names.
        gold: ids of the nodes that answer it.
        answers: for every gold node, its names: label first, then aliases.
        hops: facts between entity and answer; 0 where unknown.
        composition: the chain of relations; () where unknown.
        kind: type of the answer: the last relation, or what the data set says.
    """

    id: str
    text: str
    entities: tuple[str, ...]
    gold: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    hops: int = 0
    composition: Composition = ()
    kind: str = ""

    def __post_init__(self) -> None:
        if not self.gold or not self.answers or not all(self.answers):
            raise InputError(f"question {self.id!r} has no gold answer; leave it out")


@dataclass(frozen=True)
class QuestionMaker:
    """Makes templated questions.

    Args:
        hops: lengths of the chains.
        holdout: share of the compositions of two and more relations that are held out.
        split: which part is made: "all", "train" or "heldout".
        max_gold: leave out questions with more answers.
        phrases: relation id -> phrase with one "{}"; others read "the <label> of {}".
        split_seed: of the choice of held-out compositions.

    Raises:
        InputError: for values out of range.
    """

    hops: tuple[int, ...] = (1, 2, 3)
    holdout: float = 0.25
    split: Split = "all"
    max_gold: int = 8
    phrases: Mapping[str, str] = field(default_factory=lambda: dict(COUNTRY_PHRASES))
    split_seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "hops", tuple(self.hops))
        for hop in self.hops:
            check_whole("hops", hop, least=1)
            if hop > MOST_HOPS:
                raise InputError(f"hops={hop} is more than {MOST_HOPS}; ask shorter questions")
        if not self.hops or len(set(self.hops)) < len(self.hops):
            raise InputError(f"hops={self.hops}; give different lengths, 1 to {MOST_HOPS}")
        if not 0 <= self.holdout < 1:
            raise InputError(f"holdout={self.holdout} is outside [0, 1); 0.25 is usual")
        choose("split", self.split, get_args(Split))
        check_whole("max_gold", self.max_gold, least=1)
        check_whole("split_seed", self.split_seed)
        for relation, phrase in self.phrases.items():
            if phrase.count("{}") != 1:
                raise InputError(f"the phrase of {relation!r} is {phrase!r}; it needs one {{}}")

    def compositions(self, graph: Graph) -> list[Composition]:
        """Chains of relations of this part that some node of the graph can start."""
        held = self.held_out(graph)
        return [
            chain
            for chain in _chains(graph, MOST_HOPS)
            if len(chain) in self.hops
            and (self.split == "all" or (self.split == "heldout") == (chain in held))
        ]

    def held_out(self, graph: Graph) -> frozenset[Composition]:
        """The held-out compositions: the wanted share of those of each length from 2 on.

        They depend on `split_seed` alone, not on `hops` or `split`.
        """
        held: set[Composition] = set()
        for size in range(2, MOST_HOPS + 1):
            chains = [chain for chain in _chains(graph, MOST_HOPS) if len(chain) == size]
            chains.sort(key=lambda chain: digest(str(self.split_seed), *chain))
            held.update(chains[: round(self.holdout * len(chains))])
        return frozenset(held)

    def make(self, graph: Graph) -> list[Question]:
        """All questions of this part, sorted by id."""
        chains = set(self.compositions(graph))
        made = [
            question
            for node in graph.nodes
            for chain, ends in _reached(graph, node, max(self.hops)).items()
            if chain in chains and len(ends) <= self.max_gold
            if (question := self._question(graph, node, chain, ends)) is not None
        ]
        return sorted(made, key=lambda question: question.id)

    def _question(
        self, graph: Graph, node: str, chain: Composition, ends: Sequence[str]
    ) -> Question | None:
        name = graph.label(node)
        names = [graph.names(end) for end in ends]
        told = name.casefold()
        if len(graph.find(name)) > 1 or any(
            told == text.casefold() for row in names for text in row
        ):
            return None  # the name stands for several nodes, or gives the answer away
        if len(chain) > 1:
            closer = PathFinder(max_hops=len(chain) - 1, max_paths=1)
            if any(closer.between(graph, node, end) for end in ends):
                return None
        text = name
        for relation in chain:
            phrase = self.phrases.get(relation, f"the {graph.label(relation)} of {{}}")
            text = phrase.replace("{}", text)
        return Question(
            id=f"{node}|{'|'.join(chain)}",
            text=f"What is {text}?",
            entities=(node,),
            gold=tuple(ends),
            answers=tuple(names),
            hops=len(chain),
            composition=chain,
            kind=graph.label(chain[-1]),
        )


def facts_of(graph: Graph, question: Question) -> frozenset[Triple]:
    """Every fact that the question's chain walks over."""
    found: set[Triple] = set()
    nodes = set(question.entities)
    for relation in question.composition:
        walked = [t for node in nodes for t in graph.out(node) if t.relation == relation]
        found.update(walked)
        nodes = {triple.object for triple in walked}
    return frozenset(found)


def _chains(graph: Graph, longest: int) -> list[Composition]:
    found = {chain for node in graph.nodes for chain in _reached(graph, node, longest)}
    return sorted(found, key=lambda chain: (len(chain), chain))


def _reached(graph: Graph, start: str, longest: int) -> dict[Composition, tuple[str, ...]]:
    """Chain -> the nodes that it leads to from `start`; walks back to `start` are left out."""
    level: dict[Composition, dict[str, None]] = {(): {start: None}}
    found: dict[Composition, tuple[str, ...]] = {}
    for _ in range(longest):
        following: dict[Composition, dict[str, None]] = defaultdict(dict)
        for chain, nodes in level.items():
            for node in nodes:
                for triple in graph.out(node):
                    if triple.object != start:
                        following[(*chain, triple.relation)][triple.object] = None
        found |= {chain: tuple(nodes) for chain, nodes in following.items()}
        level = following
    return found


def mentioned(graph: Graph, text: str, *, longest: int = 10) -> Iterator[tuple[int, int, str]]:
    """(start, end, name) of the longest known names in `text`, left to right, not overlapping.

    A name of up to three characters must be written as it is stored.
    """
    words = [match.span() for match in re.finditer(r"[\w.+'\u2019-]+", text)]
    at = 0
    while at < len(words):
        for size in range(min(longest, len(words) - at), 0, -1):
            start, end = words[at][0], words[at + size - 1][1]
            bare = text[start:end].rstrip(".'\u2019-")
            name = next((form for form in (bare, _owner(bare)) if _is_name(graph, form)), "")
            if name:
                yield start, start + len(name), name
                at += size
                break
        else:
            at += 1


def _owner(text: str) -> str:
    return re.sub(r"['\u2019]s?$", "", text)


def _is_name(graph: Graph, text: str) -> bool:
    nodes = graph.find(text)
    return bool(nodes) and (len(text) > 3 or any(text in graph.names(node) for node in nodes))
