"""ComplexWebQuestions and other question files, linked to the nodes of a graph.

fs1 (arXiv 2505.11140) takes the 3,519 questions of the ComplexWebQuestions development set and maps
their Freebase ids to Wikidata through property P646. Here an id map does that, or an exact label or
alias; questions that cannot be linked are counted with the reason, never dropped in silence.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlay.errors import InputError
from outlay.evals.factuality.graph import Graph
from outlay.evals.factuality.questions import Question, mentioned

MAX_BYTES = 500_000_000
MAX_QUESTIONS = 200_000
_MID = re.compile(r"\bns:(m\.\w+|g\.\w+)")


@dataclass(frozen=True)
class Linked:
    """Questions with their nodes, and how many could not be linked.

    Args:
        questions: linked ones, in file order.
        unlinked: reason -> how many questions.
    """

    questions: tuple[Question, ...]
    unlinked: Mapping[str, int]


def load_id_map(path: str | os.PathLike[str]) -> dict[str, str]:
    """A TSV of foreign id and node id ("m.0f8l9c", "Q142").

    Raises:
        InputError: for a missing file, a line without two columns, or an id mapped twice.
    """
    found: dict[str, str] = {}
    for at, line in enumerate(_read(path).splitlines(), 1):
        if not line.strip():
            continue
        parts = [part.strip() for part in line.split("\t")]
        if len(parts) != 2 or not all(parts):
            raise InputError(f"{path}, line {at}: give a foreign id, a tab and a node id")
        if found.setdefault(parts[0], parts[1]) != parts[1]:
            raise InputError(f"{path}, line {at}: {parts[0]} is mapped to two nodes; keep one")
    return found


def load_cwq(
    path: str | os.PathLike[str],
    graph: Graph,
    *,
    id_map: Mapping[str, str] | None = None,
    max_questions: int = MAX_QUESTIONS,
) -> Linked:
    """The questions of a ComplexWebQuestions file: a JSON list, or JSON lines.

    A row has "ID", "question", "answers" (each with "answer", "answer_id", "aliases") and "sparql",
    whose Freebase ids name the question's entities. Rows without usable ids are linked by the names
    in the question and the text of the answers.

    Args:
        path: the file.
        graph: whose nodes are meant.
        id_map: Freebase id -> node id.
        max_questions: refuse larger files.

    Raises:
        InputError: for a malformed file, or a question id that occurs twice.
    """
    rows = _objects(path)
    if len(rows) > max_questions:
        raise InputError(f"{path} has {len(rows)} questions, more than {max_questions}")
    seen: set[str] = set()
    questions: list[Question] = []
    unlinked: Counter[str] = Counter()
    for index, row in enumerate(rows):
        name, text, answers = row.get("ID"), row.get("question"), row.get("answers")
        if not (isinstance(name, str) and name and isinstance(text, str) and text.strip()):
            raise InputError(f"{path}, question {index}: needs a text as ID and as question")
        if not isinstance(answers, list) or not all(isinstance(a, Mapping) for a in answers):
            raise InputError(f"{path}, question {name!r}: answers must be a list of objects")
        if name in seen:
            raise InputError(f"{path}: question id {name!r} occurs twice; make the ids unique")
        seen.add(name)
        made = _link(graph, name, text, row, answers, id_map or {})
        if isinstance(made, Question):
            questions.append(made)
        else:
            unlinked[made] += 1
    return Linked(tuple(questions), dict(unlinked))


def link_entities(graph: Graph, text: str) -> tuple[str, ...]:
    """Nodes whose label or alias stands in `text`; names of several nodes are left out."""
    found = [graph.find(name) for _, _, name in mentioned(graph, text)]
    return tuple(dict.fromkeys(nodes[0] for nodes in found if len(nodes) == 1))


def _link(
    graph: Graph,
    name: str,
    text: str,
    row: Mapping[str, Any],
    answers: Sequence[Mapping[str, Any]],
    id_map: Mapping[str, str],
) -> Question | str:
    golds: dict[str, tuple[str, ...]] = {}
    named = 0
    for answer in answers:
        label = answer.get("answer")
        label = label.strip() if isinstance(label, str) else ""
        foreign = answer.get("answer_id")
        node = _node(graph, id_map, foreign if isinstance(foreign, str) else "", label)
        named += bool(label or node)
        if node is not None:
            extra = answer.get("aliases")
            names = [label, *(extra if isinstance(extra, list) else ()), *graph.names(node)]
            clean = [text.strip() for text in names if isinstance(text, str) and text.strip()]
            golds[node] = tuple(dict.fromkeys(clean))
    if not named:
        return "no gold answer"
    if not golds:
        return "no gold answer is in the graph"
    sparql = row.get("sparql")
    ids = _MID.findall(sparql) if isinstance(sparql, str) else []
    mapped = [_node(graph, id_map, one, "") for one in dict.fromkeys(ids)]
    entities = [node for node in mapped if node is not None and node not in golds]
    entities = entities or [node for node in link_entities(graph, text) if node not in golds]
    if not entities:
        return "no question entity is in the graph"
    kind = row.get("compositionality_type")
    return Question(
        id=name,
        text=text.strip(),
        entities=tuple(dict.fromkeys(entities)),
        gold=tuple(golds),
        answers=tuple(golds.values()),
        kind=kind if isinstance(kind, str) else "",
    )


def _node(graph: Graph, id_map: Mapping[str, str], foreign: str, label: str) -> str | None:
    for candidate in (id_map.get(foreign, foreign), foreign):
        if candidate and candidate in graph:
            return candidate
    named = graph.find(label) if label else ()
    return named[0] if len(named) == 1 else None


def _read(path: str | os.PathLike[str]) -> str:
    source = Path(path)
    if not source.is_file():
        raise InputError(f"{source} is no file; give the path of a question file or id map")
    if (size := source.stat().st_size) > MAX_BYTES:
        raise InputError(f"{source} has {size} bytes, at most {MAX_BYTES} are read; split it")
    try:
        return source.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not UTF-8 ({error.reason}); convert it first") from error


def _objects(path: str | os.PathLike[str]) -> list[Mapping[str, Any]]:
    text = _read(path)
    try:
        rows: Iterable[Any]
        if text.lstrip().startswith("["):
            rows = json.loads(text)
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} is neither a JSON list nor JSON lines ({error})") from error
    found = list(rows)
    for index, row in enumerate(found):
        if not isinstance(row, Mapping):
            raise InputError(f"{path}, question {index} is {type(row).__name__}, not an object")
    return found
