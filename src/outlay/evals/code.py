"""Long-context code completion from source trees on this machine (LongCodeZip, arXiv 2510.00446).

A case is a function that needs a definition made elsewhere in its module: a helper that it calls, a
class, a constant. The context is the rest of the module, the question is the beginning of the
function, the target is what comes next. A compressor that keeps the needed definition helps.

Differences from the paper's completion set: cases are cut from any Python source tree at run time
(the standard library by default), the needed definition is known (`gold_span`), and the default
quality is the target's mean loss in nats per token, because a 135M model rarely writes exact lines.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from random import Random
from typing import ClassVar, Literal, get_args

from outlay.errors import InputError
from outlay.evals.base import Kind, Problem
from outlay.evals.checks import check_chars, check_sample, check_whole, choose
from outlay.evals.metrics import code_lines, edit_similarity, exact_match
from outlay.evals.pysource import (
    Definition,
    DefinitionKind,
    Module,
    Use,
    line_offset,
    parse_module,
    uses,
)
from outlay.evals.sampling import digest, drawn
from outlay.evals.sources import SourceFile, SourceTree, count_reasons, read_tree

Query = Literal["visible", "hidden"]
CompletionMetric = Literal["nats per token", "edit similarity", "exact match"]


@dataclass(frozen=True)
class CodeCompletion:
    """Complete a function whose needed definition lies elsewhere in a long module.

    Args:
        path: a folder or a Python file; None for the Python standard library.
        query: "visible": the function up to and including the line of the use, target = the next
            `target_lines` lines; "hidden": up to the line before it, target = the line of the use.
        target_lines: code lines of the target of a visible query; blank and comment lines between
            them come on top, at most as many.
        min_chars, max_chars: size of the context in characters; the defaults are about 2k to 6k
            tokens.
        metric: "nats per token" (mean loss of the target, lower is better), "edit similarity" or
            "exact match" (of generated lines, in [0, 1], as in the paper).
        needs: kinds of needed definitions; calls are preferred to other uses.
        max_gold_share: leave out definitions larger than this share of the context.
        max_files: read at most this many files.
        max_file_bytes: leave out larger files.
        skip_tests: leave out test files and folders.

    Raises:
        InputError: for knobs out of range.
    """

    path: str | os.PathLike[str] | None = None
    query: Query = "visible"
    target_lines: int = 3
    min_chars: int = 8_000
    max_chars: int = 24_000
    metric: CompletionMetric = "nats per token"
    needs: tuple[DefinitionKind, ...] = ("function", "method", "class", "constant")
    max_gold_share: float = 0.25
    max_files: int = 5_000
    max_file_bytes: int = 1_000_000
    skip_tests: bool = True

    name: ClassVar[str] = "code-completion"
    chat: ClassVar[bool] = False  # the prompt is code to go on with

    def __post_init__(self) -> None:
        object.__setattr__(self, "query", choose("query", self.query, get_args(Query)))
        metric = choose("metric", self.metric, get_args(CompletionMetric))
        object.__setattr__(self, "metric", metric)
        check_whole("target_lines", self.target_lines, least=1)
        check_chars(self.min_chars, self.max_chars)
        object.__setattr__(self, "needs", tuple(self.needs))
        if not self.needs:
            raise InputError("needs is empty; name at least one kind of definition")
        for kind in self.needs:
            choose("needs", kind, get_args(DefinitionKind))
        if not 0 < self.max_gold_share <= 1:
            raise InputError(f"max_gold_share={self.max_gold_share} is outside (0, 1]")
        check_whole("max_files", self.max_files, least=1)
        check_whole("max_file_bytes", self.max_file_bytes, least=1)

    @property
    def kind(self) -> Kind:
        """ "likelihood" for nats per token, else "generation"."""
        return "likelihood" if self.metric == "nats per token" else "generation"

    @property
    def higher_is_better(self) -> bool:
        """False for nats per token."""
        return self.metric != "nats per token"

    def tree(self) -> SourceTree:
        """The files that cases are made from, and the skipped ones with the reasons."""
        return read_tree(
            self.path,
            languages=("python",),
            max_files=self.max_files,
            max_file_bytes=self.max_file_bytes,
            skip_tests=self.skip_tests,
        )

    def sample(self, seed: int, n: int) -> list[Problem]:
        """`n` cases, from as many modules as possible.

        Raises:
            InputError: if the source yields fewer than n cases, with the reasons.
        """
        check_sample(seed, n)
        tree = self.tree()
        refused: list[str] = []
        problems = drawn(
            tree.files, f"{self.name}:{seed}", n, lambda file: self._cases(file, seed, refused)
        )
        if len(problems) < n:
            raise InputError(
                f"{tree.root} gives {len(problems)} completion cases, {n} wanted; lower n, give a "
                f"larger path=, or widen min_chars={self.min_chars} and max_chars={self.max_chars} "
                f"(files skipped: {tree.reasons()}; functions: {count_reasons(refused)})"
            )
        return problems

    def prompt(self, problem: Problem, context: str) -> str:
        """The context, two blank lines, the beginning of the function (no line end after it)."""
        body = context.strip("\n")
        return f"{body}\n\n\n{problem.question}" if body else problem.question

    def verify(self, problem: Problem, answer: str) -> float:
        """Edit similarity (or exact match) of generated lines with the target, in [0, 1]."""
        measure = exact_match if self.metric == "exact match" else edit_similarity
        return measure(problem.answer, answer)

    def _cases(self, file: SourceFile, seed: int, refused: list[str]) -> list[Problem]:
        if len(file.text) < self.min_chars:
            refused.append("module shorter than min_chars")
            return []
        if len(file.text) > 2 * self.max_chars:  # no function is half of it; saves the parsing
            refused.append("module longer than 2 x max_chars")
            return []
        module = parse_module(file.text)
        if module is None:
            refused.append("module not parsed by this Python")
            return []
        cases = []
        functions = list(module.functions)
        Random(f"{seed}:{file.path}").shuffle(functions)
        for function in functions:
            case = self._case(file, module, function, seed)
            if isinstance(case, Problem):
                cases.append(case)
            else:
                refused.append(case)
        return cases

    def _case(
        self, file: SourceFile, module: Module, function: Definition, seed: int
    ) -> Problem | str:
        """A case made of `function`, or why there is none."""
        size = len(file.text) - sum(
            len(line) + 1 for line in module.lines[function.first - 1 : function.last]
        )
        if not self.min_chars <= size <= self.max_chars:
            return "rest of the module outside min_chars..max_chars"
        fitting = [
            (use, last)
            for use in uses(module, function)
            if use.definition.kind in self.needs
            and self._small(module, use.definition, size)
            and (last := self._target_end(module, function, use)) is not None
        ]
        if not fitting:
            return "no use of a definition with enough lines around it"
        calls = [(use, last) for use, last in fitting if use.call]
        use, last = Random(f"{seed}:{file.path}:{function.name}").choice(calls or fitting)
        if self.query == "visible":
            cut, end = use.last, last
        else:
            cut, end = use.first - 1, use.first
        question = "\n".join(module.lines[function.first - 1 : cut])
        # The line end belongs to the target: a prompt without trailing white space tokenises as
        # the whole text does, and a model that continues it starts a new line.
        target = "\n" + "\n".join(module.lines[cut:end])
        rest = [*module.lines[: function.first - 1], *module.lines[function.last :]]
        gold = use.definition
        gone = function.last - function.first + 1 if gold.first > function.last else 0
        start = line_offset(rest, gold.first - gone)
        stop = line_offset(rest, gold.last - gone) + len(rest[gold.last - gone - 1])
        context = "\n".join(rest)
        if "\n".join(module.lines[function.first - 1 : use.last]) in context:
            return "the same code stands elsewhere in the module"
        return Problem(
            id=f"{file.path}:{function.name}:{use.first}:{digest(context, question, target)}",
            question=question,
            context=context,
            answer=target,
            language="python",
            gold_span=(start, stop),
            meta={
                "path": file.path,
                "function": function.name,
                "line": use.first,
                "needs": gold.name,
                "needs_kind": gold.kind,
                "call": use.call,
                "query": self.query,
            },
        )

    def _small(self, module: Module, definition: Definition, size: int) -> bool:
        lines = module.lines[definition.first - 1 : definition.last]
        return sum(len(line) + 1 for line in lines) <= self.max_gold_share * size

    def _target_end(self, module: Module, function: Definition, use: Use) -> int | None:
        """Last line of the visible query's target; None if the function is too short around.

        Both variants ask for the same, so that they are made from the same functions.
        """
        header = function.node.body[0].lineno - 1  # type: ignore[attr-defined]
        if use.first <= header:
            return None
        left = self.target_lines
        # At most as many blank and comment lines as code: a target of prose says nothing of code.
        end = min(function.last, use.last + 2 * self.target_lines)
        for line in range(use.last + 1, end + 1):
            left -= bool(code_lines(module.lines[line - 1]))
            if left == 0:
                return line
        return None
