"""Questions whose answer stands in one sentence of a long text.

Without a `path`, the text is the Python language reference as it comes with every Python
(`pydoc_data.topics`); with one, the user's own text and Markdown files. Questions come from the
user's JSON lines, or are made from the documents: a sentence with one word left out, where the word
is a literal, a number or a name that the sentence alone decides. Other documents surround the one
that holds the answer, at a place drawn from the seed.

Answers are short, so they are compared after normalisation: equal, contained, or by the F1 of their
words (as in SQuAD, arXiv 1606.05250).
"""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import ClassVar, Literal, get_args

from outlay.errors import InputError
from outlay.evals.answers import final_answer
from outlay.evals.base import Kind, Problem
from outlay.evals.checks import check_chars, check_sample, check_whole, choose
from outlay.evals.metrics import answer_contains, answer_exact, answer_f1, normalise_answer
from outlay.evals.sampling import digest, drawn
from outlay.evals.sources import count_reasons, unix
from outlay.files import PROSE, read_text

AnswerMetric = Literal["answer contained", "exact answer", "answer f1"]

_MEASURES = {
    "answer contained": answer_contains,
    "exact answer": answer_exact,
    "answer f1": answer_f1,
}
_LONGEST_CONTAINING = 4  # an answer that only contains the gold may have this many times its words
_GAP = "____"
_JOIN = "\n\n"
_TARGET = re.compile(
    r"""(?<![\w"'/])"(?P<quoted>[A-Za-z_][\w.]{2,30}(?:\(\))?)"(?![\w"'/])"""  # "literal"
    r"""|``(?P<literal>[^`\s]{3,30})``"""
    r"""|(?<![\w.,-])(?P<number>\d{2,}(?:\.\d+)*)(?![\w,-])"""
    r"""|(?<=[a-z,] )(?P<name>[A-Z][A-Za-z]{3,}(?: [A-Z][A-Za-z]{3,})*)\b"""
)


@dataclass(frozen=True)
class Document:
    """One text by its name."""

    name: str
    text: str


@dataclass(frozen=True)
class RetrievalQA:
    """Answer a question from long prose that holds the answer once.

    Args:
        path: a folder of text or Markdown files, or one file; None for the documentation that
            comes with Python.
        questions: a file of JSON lines {"question", "answer", "document"}, where the document is a
            file's path below `path`; None to leave words out of sentences of the documents.
        metric: "answer contained" (the gold words in a row in a short answer), "exact answer", or
            "answer f1".
        min_chars, max_chars: size of the context in characters; documents that are longer than
            `max_chars` are cut around the answer for made questions and left out for the user's.
        max_files: read at most this many documents.
        max_file_bytes: leave out larger files.

    Raises:
        InputError: for knobs out of range, or questions without a path.
    """

    path: str | os.PathLike[str] | None = None
    questions: str | os.PathLike[str] | None = None
    metric: AnswerMetric = "answer contained"
    min_chars: int = 8_000
    max_chars: int = 24_000
    max_files: int = 5_000
    max_file_bytes: int = 5_000_000

    name: ClassVar[str] = "retrieval-qa"
    kind: ClassVar[Kind] = "generation"
    chat: ClassVar[bool] = True  # the prompt is a question
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "metric", choose("metric", self.metric, get_args(AnswerMetric)))
        check_chars(self.min_chars, self.max_chars)
        check_whole("max_files", self.max_files, least=1)
        check_whole("max_file_bytes", self.max_file_bytes, least=1)
        if self.questions is not None and self.path is None:
            raise InputError("questions= names documents below path=; give path= as well")

    def documents(self) -> tuple[list[Document], dict[str, str]]:
        """The usable documents, sorted by name, and the skipped files with the reasons.

        Raises:
            InputError: if there is none.
        """
        if self.path is None:
            return _topics(), {}
        return _read_documents(Path(self.path), self.max_files, self.max_file_bytes)

    def sample(self, seed: int, n: int) -> list[Problem]:
        """`n` problems, from as many documents as possible.

        Raises:
            InputError: if there are fewer than n questions, with the reasons.
        """
        check_sample(seed, n)
        documents, skipped = self.documents()
        if self.questions is not None:
            problems = self._given(documents, seed, n)
        else:
            problems = self._made(documents, seed, n)
        if len(problems) < n:
            where = "the Python documentation" if self.path is None else str(self.path)
            source = "questions" if self.questions is None else str(self.questions)
            raise InputError(
                f"{where} gives {len(problems)} questions ({source}), {n} wanted; lower n, give "
                f"more documents, or raise max_chars={self.max_chars} "
                f"(files skipped: {count_reasons(skipped.values())})"
            )
        return problems

    def prompt(self, problem: Problem, context: str) -> str:
        """The text, the question, and "Answer:" without white space after it."""
        body = context.strip("\n")
        question = f"Question: {problem.question}\nAnswer with a few words.\nAnswer:"
        return f"{body}\n\n{question}" if body else question

    def verify(self, problem: Problem, answer: str) -> float:
        """Quality of the final answer by `metric`, in [0, 1].

        An answer that is much longer than the reference does not count as containing it:
        repeating the text is no answer.
        """
        given = final_answer(answer).split("\n")[0]
        if self.metric == "answer contained":
            most = _LONGEST_CONTAINING * len(normalise_answer(problem.answer).split()) + 8
            if len(given.split()) > most:
                return 0.0
        return _MEASURES[self.metric](problem.answer, given)

    def _made(self, documents: list[Document], seed: int, n: int) -> list[Problem]:
        def gapped(document: Document) -> list[Problem]:
            gaps = list(_gaps(document))
            Random(f"{seed}:{document.name}").shuffle(gaps)
            made = [
                self._problem(documents, document, question, answer, span, seed)
                for question, answer, span in gaps
            ]
            return [problem for problem in made if problem is not None]

        return drawn(documents, f"{self.name}:{seed}", n, gapped)

    def _given(self, documents: list[Document], seed: int, n: int) -> list[Problem]:
        assert self.questions is not None
        by_name = {document.name: document for document in documents}
        rows = _read_questions(Path(self.questions), by_name)
        Random(f"{self.name}:{seed}").shuffle(rows)
        problems = []
        for question, answer, name in rows:
            document = by_name[name]
            at = document.text.casefold().find(answer.casefold())
            span = (at, at + len(answer)) if at >= 0 else None
            problem = self._problem(documents, document, question, answer, span, seed)
            if problem is not None:
                problems.append(problem)
            if len(problems) == n:
                break
        return problems

    def _problem(
        self,
        documents: list[Document],
        document: Document,
        question: str,
        answer: str,
        span: tuple[int, int] | None,
        seed: int,
    ) -> Problem | None:
        """The problem with its context, None if the document is too long to be one."""
        text = document.text
        random = Random(f"{seed}:{document.name}:{question}")
        if len(text) > self.max_chars:
            if self.questions is not None or span is None:
                return None
            start, text = _window(text, span, self.max_chars, random)
            span = (span[0] - start, span[1] - start)
        before, after = _surround(
            documents, document, len(text), self.min_chars, self.max_chars, random
        )
        context = _JOIN.join([*before, text, *after])
        shift = len(_JOIN.join([*before, ""])) if before else 0
        gold = None if span is None else (span[0] + shift, span[1] + shift)
        if len(context) < self.min_chars:
            return None
        identity = digest(context, question, answer)
        return Problem(
            id=f"{document.name}:{identity}",
            question=question,
            context=context,
            answer=answer,
            gold_span=gold,
            meta={"document": document.name, "made": self.questions is None},
        )


def _window(text: str, span: tuple[int, int], size: int, random: Random) -> tuple[int, str]:
    """A piece of at most `size` characters around `span`, cut at blank lines where it can be."""
    room = size - (span[1] - span[0])
    start = max(0, min(span[0] - random.randint(0, max(0, room)), len(text) - size))
    stop = min(len(text), start + size)
    if start and 0 <= (cut := text.find(_JOIN, start)) <= span[0] - 2:
        start = cut + 2
    if stop < len(text) and (cut := text.rfind(_JOIN, span[1], stop)) >= 0:
        stop = cut
    return start, text[start:stop]


def _surround(
    documents: list[Document],
    document: Document,
    size: int,
    least: int,
    most: int,
    random: Random,
) -> tuple[list[str], list[str]]:
    """Other documents for before and after, until the context has `least` characters."""
    before: list[str] = []
    after: list[str] = []
    others = [other for other in documents if other.name != document.name]
    random.shuffle(others)
    for other in others:
        if size >= least:
            break
        if size + len(other.text) + len(_JOIN) <= most:
            size += len(other.text) + len(_JOIN)
            (before if random.random() < 0.5 else after).append(other.text)
    return before, after


def _gaps(document: Document) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """Sentences with one word left out: question, answer, and the sentence's span."""
    text = document.text
    for match in re.finditer(r"(?<=[.!?\n])\s+([A-Z][^.!?]*(?:\.\S[^.!?]*)*[.!?])(?=\s)", text):
        raw = match[1]
        flat = " ".join(raw.split())
        if not 60 <= len(flat) <= 400 or "\n\n" in raw or text.count(raw) > 1:
            continue
        for target in _TARGET.finditer(flat):
            answer = next(part for part in target.groups() if part is not None)
            place = target.span(target.lastgroup or 0)
            # Left out once, and not said elsewhere in the sentence.
            if flat.count(answer) != 1 or not normalise_answer(answer):
                continue
            gapped = flat[: place[0]] + _GAP + flat[place[1] :]
            yield (
                f"Which word is missing ({_GAP}) in this sentence of the text? {gapped}",
                answer,
                match.span(1),
            )
            break


def _topics() -> list[Document]:
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise InputError(
            "this Python comes without its documentation (pydoc_data); give path="
        ) from error
    return [Document(name, unix(topics[name])) for name in sorted(topics)]


def _read_documents(
    root: Path, max_files: int, max_file_bytes: int
) -> tuple[list[Document], dict[str, str]]:
    root = root.expanduser()
    if root.is_file():
        text = unix(read_text(root, max_bytes=max_file_bytes).text)
        return [Document(root.name, text)], {}
    if not root.is_dir():
        raise InputError(f"path={str(root)!r} does not exist; give a folder or a text file")
    documents: list[Document] = []
    skipped: dict[str, str] = {}
    for folder, below, names in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            place = Path(folder) / name
            relative = place.relative_to(root).as_posix()
            if place.suffix.lower() not in PROSE:
                skipped[relative] = "not text or Markdown"
            elif len(documents) >= max_files:
                skipped[relative] = f"beyond max_files={max_files}"
            else:
                try:
                    text = unix(read_text(place, max_bytes=max_file_bytes).text)
                except InputError as error:
                    skipped[relative] = f"unusable: {error}"
                else:
                    documents.append(Document(relative, text))
    if not documents:
        raise InputError(
            f"path={str(root)!r} holds no usable document ({', '.join(sorted(PROSE))}); "
            f"skipped: {count_reasons(skipped.values())}"
        )
    return sorted(documents, key=lambda document: document.name), skipped


def _read_questions(path: Path, documents: dict[str, Document]) -> list[tuple[str, str, str]]:
    rows = []
    for number, line in enumerate(unix(read_text(path).text).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number} is not JSON ({error}); correct it") from error
        fields = ("question", "answer", "document")
        if not isinstance(row, dict) or any(not isinstance(row.get(f), str) for f in fields):
            raise InputError(f"{path}, line {number} lacks one of the texts {', '.join(fields)}")
        question, answer, name = (row[f].strip() for f in fields)
        if not question or not normalise_answer(answer):
            raise InputError(f"{path}, line {number} has an empty question or answer")
        if name not in documents:
            raise InputError(
                f"{path}, line {number} names the document {name!r}, which is not among the "
                f"{len(documents)} usable ones below path="
            )
        rows.append((question, answer, name))
    return rows
