"""Where accuracy comes from: hops and answer types, the steps of a trace, train/test overlap.

*Process accuracy* (ours) is the share of a trace's checkable statements that the graph states: a
right answer after wrong steps is luck. A statement is a clause that names a relation and two nodes
which that relation could join. It is right if the graph joins any such pair, wrong if it joins
none. Questions, negations and clauses about anything else are not judged, so a trace may have no
score; a clause with several facts is judged as a whole.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np

from outlay.errors import InputError
from outlay.evals.factuality.answers import embed, normalise
from outlay.evals.factuality.graph import Graph, Triple, fold
from outlay.evals.factuality.questions import mentioned
from outlay.stats import Interval, mean_interval

Label = TypeVar("Label", bound=Hashable)

MAX_TRACE = 200_000
MAX_CLAUSE = 600
_BLOCK = 1_024
_CLAUSE = re.compile(r"[^\n;]+?(?:[.!?](?=\s|$)|(?=[\n;])|$)")
_NEGATED = re.compile(r"\b(?:not|never|no|neither|nor)\b|n't\b", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?[\d.,\s]*\d\s*%?")
_DATE = re.compile(
    r"(?:\d{1,2}\s+)?(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
    r"(?:\s+\d{1,2},?)?\s+\d{3,4}|\d{4}-\d{2}(?:-\d{2})?|\d{1,2}/\d{1,2}/\d{2,4}|1\d{3}|20\d{2}",
    re.IGNORECASE,
)


def breakdown(
    qualities: Sequence[float], labels: Sequence[Label], *, seed: int = 0
) -> dict[Label, Interval]:
    """The mean quality per label (hops, answer type, domain), with its interval.

    Raises:
        InputError: for no qualities, or not one label each.
    """
    if not qualities or len(qualities) != len(labels):
        raise InputError(f"{len(qualities)} qualities, {len(labels)} labels; give one label each")
    groups: dict[Label, list[float]] = defaultdict(list)
    for quality, label in zip(qualities, labels, strict=True):
        groups[label].append(float(quality))
    return {
        label: mean_interval(np.array(values), seed=seed)
        for label, values in sorted(groups.items(), key=lambda item: str(item[0]))
    }


def answer_type(text: str) -> str:
    """ "date", "number", "yes/no" or "entity"."""
    bare = text.strip()
    if _DATE.fullmatch(bare):
        return "date"
    if _NUMBER.fullmatch(bare):
        return "number"
    return "yes/no" if bare.casefold() in ("yes", "no", "true", "false") else "entity"


@dataclass(frozen=True)
class Statement:
    """A clause of a trace that the graph can judge.

    Args:
        start, end: characters of the trace.
        right: whether the graph states it.
        triples: the facts that it states rightly; () for a wrong one.
        relation: label of the (first) relation that decided.
    """

    start: int
    end: int
    right: bool
    triples: tuple[Triple, ...]
    relation: str


@dataclass(frozen=True)
class Process:
    """Process accuracy of one or more traces.

    Args:
        right: statements that the graph states.
        wrong: statements that it contradicts.
    """

    right: int
    wrong: int

    @property
    def accuracy(self) -> float | None:
        """Share of right statements; None where nothing could be judged."""
        total = self.right + self.wrong
        return self.right / total if total else None

    def __add__(self, other: Process) -> Process:
        return Process(self.right + other.right, self.wrong + other.wrong)


def process(graph: Graph, trace: str, words: Mapping[str, Sequence[str]] | None = None) -> Process:
    """How many statements of a trace the graph states, and how many it contradicts."""
    found = statements(graph, trace, words)
    right = sum(statement.right for statement in found)
    return Process(right, len(found) - right)


def statements(
    graph: Graph, trace: str, words: Mapping[str, Sequence[str]] | None = None
) -> list[Statement]:
    """The clauses of a trace that the graph can judge, in order.

    Args:
        graph: of facts.
        trace: thinking or any text.
        words: relation id -> words that name it, beside its label.

    Raises:
        InputError: for a trace that is too long.
    """
    if len(trace) > MAX_TRACE:
        raise InputError(f"a trace of {len(trace)} characters, at most {MAX_TRACE} are read")
    forms = _forms(graph, tuple((r, tuple(w)) for r, w in sorted((words or {}).items())))
    found = []
    for clause in _CLAUSE.finditer(trace):
        text = clause.group()
        if len(text) > MAX_CLAUSE or text.endswith("?") or _NEGATED.search(text):
            continue
        if (judged := _judge(graph, text, forms)) is not None:
            right, triples, relation = judged
            start = clause.start() + len(text) - len(text.lstrip())
            end = clause.start() + len(text.rstrip())
            found.append(Statement(start, end, right, triples, relation))
    return found


@dataclass(frozen=True)
class _Forms:
    """How relations are written, and what they can join."""

    pattern: re.Pattern[str]
    relations: Mapping[str, tuple[str, ...]]
    subjects: Mapping[str, frozenset[str]]
    objects: Mapping[str, frozenset[str]]


@lru_cache(maxsize=8)
def _forms(graph: Graph, words: tuple[tuple[str, tuple[str, ...]], ...]) -> _Forms:
    relations: dict[str, list[str]] = defaultdict(list)
    extra = dict(words)
    subjects: dict[str, set[str]] = defaultdict(set)
    objects: dict[str, set[str]] = defaultdict(set)
    for triple in graph.triples:
        subjects[triple.relation].add(triple.subject)
        objects[triple.relation].add(triple.object)
    for relation in graph.relations:
        for form in (*graph.names(relation), *extra.get(relation, ())):
            relations[fold(form)].append(relation)
    longest_first = sorted(relations, key=lambda form: (-len(form), form))
    pattern = "|".join(re.escape(form).replace(r"\ ", r"\s+") for form in longest_first)
    return _Forms(
        re.compile(rf"(?<!\w)(?:{pattern})(?!\w)"),
        {form: tuple(ids) for form, ids in relations.items()},
        {relation: frozenset(nodes) for relation, nodes in subjects.items()},
        {relation: frozenset(nodes) for relation, nodes in objects.items()},
    )


def _judge(graph: Graph, text: str, forms: _Forms) -> tuple[bool, tuple[Triple, ...], str] | None:
    said = [
        relation
        for match in forms.pattern.finditer(text.casefold())
        for relation in forms.relations[fold(match.group())]
    ]
    if not said:
        return None
    names = [name for _, _, name in mentioned(graph, text)]
    nodes = list(dict.fromkeys(node for name in names for node in graph.find(name)))
    right: list[Triple] = []
    wrong = ""
    for relation in dict.fromkeys(said):
        starts = [node for node in nodes if node in forms.subjects[relation]]
        ends = [node for node in nodes if node in forms.objects[relation]]
        # Two readings of one name (Luxembourg) are no statement about each other.
        pairs = [
            Triple(s, relation, t)
            for s in starts
            for t in ends
            if s != t and graph.label(s) != graph.label(t)
        ]
        stated = [triple for triple in pairs if graph.has(triple)]
        right += stated
        if pairs and not stated:
            wrong = wrong or relation
    if wrong:
        return False, (), graph.label(wrong)
    return (True, tuple(right), graph.label(right[0].relation)) if right else None


@dataclass(frozen=True)
class Overlap:
    """Test questions that the training set already holds.

    Args:
        exact: (test index, train index) of equal normalised questions.
        close: (test index, index of the closest train question, cosine) above the threshold.
        tests: number of test questions.
    """

    exact: tuple[tuple[int, int], ...]
    close: tuple[tuple[int, int, float], ...]
    tests: int

    @property
    def share(self) -> float:
        """Share of test questions that are equal or close to a training question."""
        return len({row[0] for row in (*self.exact, *self.close)}) / self.tests


def overlap(train: Sequence[str], test: Sequence[str], *, tau: float = 0.9) -> Overlap:
    """Exact matches, and MiniLM cosines above `tau`, between two sets of questions.

    Raises:
        InputError: for an empty set, or tau outside (0, 1].
        DependencyError: without the embedding model.
    """
    if not train or not test:
        raise InputError(f"{len(train)} training and {len(test)} test questions; give both sets")
    if not 0 < tau <= 1:
        raise InputError(f"tau={tau} is outside (0, 1]; 0.9 is the paper's")
    place: dict[str, int] = {}
    for index, text in enumerate(train):
        place.setdefault(normalise(text), index)
    exact = [
        (index, place[key]) for index, text in enumerate(test) if (key := normalise(text)) in place
    ]
    train_ND, test_MD = embed(train), embed(test)
    close = []
    for start in range(0, len(test), _BLOCK):
        cosines_BN = test_MD[start : start + _BLOCK] @ train_ND.T
        nearest_B = cosines_BN.argmax(axis=1)
        for row, column in enumerate(nearest_B):
            if (cosine := float(cosines_BN[row, column])) > tau:
                close.append((start + row, int(column), cosine))
    return Overlap(tuple(exact), tuple(close), len(test))
