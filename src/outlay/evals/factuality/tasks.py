"""The task `Factuality`: multi-hop questions over a knowledge graph, closed book or with the paths.

fs1 (arXiv 2505.11140), its evaluation half. The default graph is `countries`, which ships with a
package; another graph or a ComplexWebQuestions file comes from a path. With `paths="path"` the
prompt holds the minimal paths from the question's entities to its answer: an upper reference, as
the paths tell the answer. These facts are the problem's context, so that prompt compressors see
them.

Differences from the paper: questions are made from templates by default; exact match decides, with
semantic match as a choice (the language-model judge is `outlay.evals.factuality.judge`).
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random
from typing import ClassVar, Literal, get_args

from outlay.errors import InputError
from outlay.evals.base import Kind, Mark, Problem
from outlay.evals.checks import check_sample, check_whole, choose
from outlay.evals.factuality import countries as facts
from outlay.evals.factuality.analysis import Statement, process, statements
from outlay.evals.factuality.answers import TAU, exact_match, extract_answer, semantic_match
from outlay.evals.factuality.graph import Graph
from outlay.evals.factuality.linking import load_cwq, load_id_map
from outlay.evals.factuality.loaders import load_graph
from outlay.evals.factuality.paths import Grounding, PathFinder
from outlay.evals.factuality.prompts import BOXED, Paths, closed_book, path_grounded
from outlay.evals.factuality.questions import (
    COUNTRY_PHRASES,
    Question,
    QuestionMaker,
    Split,
)
from outlay.evals.sampling import in_turns

Match = Literal["exact", "semantic"]

COUNTRIES = "countries"


@dataclass(frozen=True)
class Factuality:
    """Questions whose answers a knowledge graph states.

    Args:
        graph: "countries", or a .tsv, .jsonl or .nt file.
        labels: TSV of id, label and aliases for a .tsv or .jsonl graph.
        questions: a ComplexWebQuestions file; None makes questions from templates.
        id_map: TSV of foreign id and node id, for `questions`.
        hops: lengths of the templated questions.
        split: compositions asked for: "all", "train" or "heldout".
        holdout: share of the compositions that is held out.
        max_gold: leave out templated questions with more answers.
        paths: "closed" book, or with the "path" in the prompt.
        max_hops: longest path looked for.
        directed: walk facts from subject to object only.
        max_paths: most paths in a prompt.
        block_relations: relations that paths leave out.
        match: how an answer is compared: "exact" or "semantic".
        tau: cosine from which a semantic match counts.
        aliases: accept further names of an answer.
        instruction: ends the prompt.

    Raises:
        InputError: for knobs out of range.
    """

    graph: str = COUNTRIES
    labels: str | None = None
    questions: str | None = None
    id_map: str | None = None
    hops: tuple[int, ...] = (1, 2)
    split: Split = "all"
    holdout: float = 0.25
    max_gold: int = 8
    paths: Paths = "closed"
    max_hops: int = 3
    directed: bool = True
    max_paths: int = 20
    block_relations: tuple[str, ...] = ()
    match: Match = "exact"
    tau: float = TAU
    aliases: bool = True
    instruction: str = BOXED

    name: ClassVar[str] = "factuality"
    kind: ClassVar[Kind] = "generation"
    chat: ClassVar[bool] = True  # the prompt is a request
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "hops", tuple(self.hops))
        object.__setattr__(self, "block_relations", tuple(self.block_relations))
        choose("paths", self.paths, get_args(Paths))
        choose("match", self.match, get_args(Match))
        if not 0 < self.tau <= 1:
            raise InputError(f"tau={self.tau} is outside (0, 1]; 0.9 is usual")
        check_whole("max_hops", self.max_hops, least=1)
        self.maker()
        finder = self.finder()
        if self.questions is None and max(self.hops) > finder.max_hops:
            raise InputError(f"hops={self.hops} is more than max_hops={self.max_hops}; raise it")
        if self.id_map is not None and self.questions is None:
            raise InputError("id_map= links a question file; give questions= as well")

    @property
    def metric(self) -> str:
        """ "exact match" or "semantic match"."""
        return f"{self.match} match"

    def store(self) -> Graph:
        """The graph, loaded once per file."""
        if self.graph == COUNTRIES:
            if self.labels is not None:
                raise InputError("labels= is for a graph from a file; leave it out for countries")
            return facts.countries()
        return _load(self.graph, self.labels, _stamp(self.graph), _stamp(self.labels))

    def maker(self) -> QuestionMaker:
        """What makes templated questions."""
        phrases = COUNTRY_PHRASES if self.graph == COUNTRIES else {}
        knobs = self.hops, self.holdout, self.split, self.max_gold
        return QuestionMaker(*knobs, phrases=dict(phrases))

    def finder(self) -> PathFinder:
        """What finds paths."""
        return PathFinder(
            self.max_hops, self.directed, self.max_paths, block_relations=self.block_relations
        )

    def sample(self, seed: int, n: int) -> list[Problem]:
        """`n` questions; lengths alternate, and kinds of questions within a length.

        Raises:
            InputError: if there are fewer than n, with the reasons.
        """
        check_sample(seed, n)
        graph = self.store()
        asked, reasons = self._asked(graph)
        random = Random(f"factuality:{seed}")
        groups: dict[int, dict[tuple[str, ...], list[Question]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for question in asked:
            groups[question.hops][question.composition or (question.kind,)].append(question)
        streams: list[list[Problem]] = []
        for hops in sorted(groups):
            kinds = [groups[hops][key] for key in sorted(groups[hops])]
            for kind in kinds:
                random.shuffle(kind)
            random.shuffle(kinds)
            mixed = [
                kind[turn]
                for turn in range(max(map(len, kinds)))
                for kind in kinds
                if turn < len(kind)
            ]
            stream: list[Problem] = []
            for question in mixed:
                if len(stream) == n:
                    break
                made = self._problem(graph, question)
                if isinstance(made, Problem):
                    stream.append(made)
                else:
                    reasons[made] += 1
            streams.append(stream)
        chosen = list(in_turns(streams, n))
        if len(chosen) < n:
            why = "; ".join(f"{count} {reason}" for reason, count in reasons.items()) or "no others"
            raise InputError(
                f"{graph.name} gives {len(chosen)} questions, {n} wanted; lower n, or widen hops, "
                f"max_gold, max_hops or split (left out: {why})"
            )
        return chosen

    def prompt(self, problem: Problem, context: str) -> str:
        """The question and the instruction; with the facts between them where there are any."""
        if context.strip():
            return path_grounded(problem.question, context.splitlines(), self.instruction)
        return closed_book(problem.question, self.instruction)

    def verify(self, problem: Problem, answer: str) -> float:
        """1.0 if the extracted answer matches a name of a gold entity, else 0.0."""
        given = extract_answer(answer).text
        names = self._names(problem)
        if exact_match(given, names):
            return 1.0
        if self.match == "exact" or not given:
            return 0.0
        return float(semantic_match([given], [names], tau=self.tau)[0])

    def explain(self, problem: Problem, answer: str) -> Mapping[str, str]:
        """What was taken as the answer and where it was found; what the graph says of the steps."""
        found = extract_answer(answer)
        told = {
            "extracted": found.text,
            "found by": found.how,
            "answer words": str(len(found.text.split())),
            "gold": " | ".join(names[0] for names in self._names(problem)),
        }
        judged = process(self.store(), answer, self._words())
        if judged.accuracy is not None:
            told["statements"] = f"{judged.right} match the graph, {judged.wrong} contradict it"
        return told

    def marks(self, problem: Problem, text: str) -> Sequence[Mark]:
        """The statements in `text` that the graph states or contradicts."""
        return [
            Mark(
                one.start,
                one.end,
                f"{one.relation}: {'matches' if one.right else 'contradicts'} the graph",
                one.right,
            )
            for one in self.statements(text)
        ]

    def statements(self, text: str) -> list[Statement]:
        """The clauses of `text` that the graph can judge."""
        return statements(self.store(), text, self._words())

    def _words(self) -> Mapping[str, Sequence[str]]:
        return facts.WORDS if self.graph == COUNTRIES else {}

    def _names(self, problem: Problem) -> list[list[str]]:
        try:
            answers = problem.meta["answers"]
        except KeyError:
            raise InputError(f"problem {problem.id!r} is not of the task factuality") from None
        return [list(names) if self.aliases else list(names[:1]) for names in answers]

    def _asked(self, graph: Graph) -> tuple[list[Question], Counter[str]]:
        """The questions that there are, and what was left out."""
        if self.questions is None:
            return list(_templated(replace(self, paths="closed"), graph)), Counter()
        ids = {} if self.id_map is None else load_id_map(self.id_map)
        linked = load_cwq(self.questions, graph, id_map=ids)
        return list(linked.questions), Counter(linked.unlinked)

    def _problem(self, graph: Graph, question: Question) -> Problem | str:
        """The problem, or why there is none."""
        grounding = Grounding(())
        if self.paths == "path" or not question.hops:
            grounding = self.finder().connect(graph, question.entities, question.gold)
        if self.paths == "path" and not grounding.paths:
            return "no path between question and answer"
        lines = map(graph.line, grounding.triples) if self.paths == "path" else ()
        return Problem(
            id=question.id,
            question=question.text,
            context="\n".join(lines),
            answer=question.answers[0][0],
            meta={
                "answers": [list(names) for names in question.answers],
                "entities": list(question.entities),
                "gold": list(question.gold),
                "hops": question.hops or grounding.hops,
                "kind": question.kind,
                "composition": list(question.composition),
                "graph": f"{graph.name} {graph.version}".strip(),
            },
        )


@lru_cache(maxsize=8)
def _templated(task: Factuality, graph: Graph) -> tuple[Question, ...]:
    return tuple(task.maker().make(graph))


def _stamp(path: str | None) -> tuple[int, int]:
    """Size and time of a file: a changed file is read again."""
    if path is None or not os.path.exists(path):
        return (0, 0)
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=4)
def _load(
    path: str, labels: str | None, stamp: tuple[int, int], label_stamp: tuple[int, int]
) -> Graph:
    return load_graph(path, labels=labels)
