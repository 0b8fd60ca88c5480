"""Questions about one function or constant of a long module, answered by the source itself.

Four kinds, each with one right answer that `ast` proves:
- "search": which function does this sentence describe? The sentence is the first of the function's
  docstring, and all docstrings are taken out of the context: the needle-function search of RepoQA
  (arXiv 2406.06025), with the name instead of the body as the answer.
- "default": the default value of a parameter, None left out: it would be right too often.
- "constant": the value of a module-level constant in capitals that no function rebinds.
- "caller": the one function that calls a helper.
The choice form offers the answer among others of the same kind from the same module, so that a
small model can be measured by the likelihood of the options.
"""

from __future__ import annotations

import ast
import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from random import Random
from typing import ClassVar, Literal, get_args

from outlay.errors import InputError
from outlay.evals.answers import extract_choice, final_answer
from outlay.evals.base import Kind, Problem
from outlay.evals.checks import check_chars, check_sample, check_whole, choose
from outlay.evals.pysource import (
    Definition,
    FunctionNode,
    Module,
    line_offset,
    parse_module,
    statements,
    strip_docstrings,
    uses,
)
from outlay.evals.sampling import digest, drawn, in_turns
from outlay.evals.sources import SourceFile, SourceTree, count_reasons, read_tree

QuestionKind = Literal["search", "default", "constant", "caller"]
Form = Literal["open", "choice"]

_LONGEST_VALUE = 40  # characters of a literal that can be asked for
_USUAL = ("None", "True", "False", "0", "1", "-1", "2", "10", "''", "'utf-8'", "'r'")
_NAME = re.compile(r"[A-Za-z_][\w.]*")


@dataclass(frozen=True)
class _Asked:
    kind: QuestionKind
    about: Definition
    question: str
    answer: str
    others: tuple[str, ...]


@dataclass(frozen=True)
class CodeQA:
    """Answer a question about one function of a long module.

    Args:
        path: a folder or a Python file; None for the Python standard library.
        form: "open": the model writes the answer; "choice": it picks one of `options`.
        questions: the kinds of questions asked.
        options: number of options of a choice question.
        min_chars, max_chars: size of the context (docstrings taken out) in characters.
        max_files: read at most this many files.
        max_file_bytes: leave out larger files.
        skip_tests: leave out test files and folders.

    Raises:
        InputError: for knobs out of range.
    """

    path: str | os.PathLike[str] | None = None
    form: Form = "open"
    questions: tuple[QuestionKind, ...] = ("search", "default", "constant", "caller")
    options: int = 4
    min_chars: int = 8_000
    max_chars: int = 24_000
    max_files: int = 5_000
    max_file_bytes: int = 1_000_000
    skip_tests: bool = True

    name: ClassVar[str] = "code-qa"
    metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        choose("form", self.form, get_args(Form))
        object.__setattr__(self, "questions", tuple(self.questions))
        if not self.questions:
            raise InputError("questions is empty; name at least one kind")
        for kind in self.questions:
            choose("questions", kind, get_args(QuestionKind))
        check_whole("options", self.options, least=2)
        check_chars(self.min_chars, self.max_chars)
        check_whole("max_files", self.max_files, least=1)
        check_whole("max_file_bytes", self.max_file_bytes, least=1)

    @property
    def kind(self) -> Kind:
        """ "choice" for the choice form, else "generation"."""
        return "choice" if self.form == "choice" else "generation"

    @property
    def chat(self) -> bool:
        """True where the answer is generated; options are scored after the bare prompt."""
        return self.form == "open"

    def tree(self) -> SourceTree:
        """The files that questions are made from, and the skipped ones with the reasons."""
        return read_tree(
            self.path,
            languages=("python",),
            max_files=self.max_files,
            max_file_bytes=self.max_file_bytes,
            skip_tests=self.skip_tests,
        )

    def sample(self, seed: int, n: int) -> list[Problem]:
        """`n` questions, from as many modules as possible; kinds alternate inside a module.

        Raises:
            InputError: if the source yields fewer than n questions, with the reasons.
        """
        check_sample(seed, n)
        tree = self.tree()
        refused: list[str] = []
        chosen = drawn(
            tree.files, f"{self.name}:{seed}", n, lambda file: self._problems(file, seed, refused)
        )
        if len(chosen) < n:
            raise InputError(
                f"{tree.root} gives {len(chosen)} questions, {n} wanted; lower n, give a larger "
                f"path=, more kinds in questions=, or widen min_chars={self.min_chars} and "
                f"max_chars={self.max_chars} (files skipped: {tree.reasons()}; "
                f"modules: {count_reasons(refused)})"
            )
        return chosen

    def prompt(self, problem: Problem, context: str) -> str:
        """The code, the question, and "Answer:" without white space after it."""
        lines = [context.strip("\n"), "", f"Question: {problem.question}"]
        if self.form == "choice":
            lines.append("Options: " + "; ".join(problem.choices))
        else:
            lines.append("Answer with the name or value only.")
        return "\n".join(lines).lstrip("\n") + "\nAnswer:"

    def verify(self, problem: Problem, answer: str) -> float:
        """1.0 if the answer names the right function or value, else 0.0.

        Values are compared as Python literals, names by their last part: `Class.method` and
        `method()` are the same name. An answer that names several functions of the module is wrong.
        """
        if problem.choices:
            if answer in problem.choices:
                return float(answer == problem.answer)
            letter = extract_choice(answer, problem.choices)
            return float(
                letter is not None and problem.choices[ord(letter) - ord("A")] == problem.answer
            )
        given = final_answer(answer)
        if problem.meta["kind"] in ("search", "caller"):
            known = set(problem.meta["names"])
            named = {_last(name) for name in _NAME.findall(given)} & known
            return float(named == {problem.answer})
        return float(_same_value(problem.answer, given))

    def _problems(self, file: SourceFile, seed: int, refused: list[str]) -> list[Problem]:
        if len(file.text) < self.min_chars:
            refused.append("shorter than min_chars")
            return []
        if len(file.text) > 3 * self.max_chars:  # docstrings are never that much; saves the parsing
            refused.append("longer than 3 x max_chars")
            return []
        module = parse_module(file.text)
        bare = None if module is None else parse_module(strip_docstrings(module))
        if module is None or bare is None:
            refused.append("not parsed by this Python")
            return []
        context = "\n".join(bare.lines)
        if not self.min_chars <= len(context) <= self.max_chars:
            refused.append("outside min_chars..max_chars without docstrings")
            return []
        random = Random(f"{seed}:{file.path}")
        streams: list[list[Problem]] = []
        for kind in self.questions:
            asked = list(_ASK[kind](module))
            random.shuffle(asked)
            made = [self._problem(file, bare, context, item, random) for item in asked]
            streams.append([problem for problem in made if problem is not None])
        random.shuffle(streams)
        problems = list(in_turns(streams, sum(map(len, streams))))
        if not problems:
            refused.append("no question with one provable answer")
        return problems

    def _problem(
        self, file: SourceFile, bare: Module, context: str, asked: _Asked, random: Random
    ) -> Problem | None:
        place = bare.definitions.get(asked.about.name)
        if place is None:
            return None
        choices: tuple[str, ...] = ()
        if self.form == "choice":
            others = sorted(set(asked.others) - {asked.answer})
            random.shuffle(others)
            if asked.kind in ("default", "constant"):  # values of the same type first
                kind = type(ast.literal_eval(asked.answer))
                others.sort(key=lambda text: type(ast.literal_eval(text)) is not kind)
            if len(others) < self.options - 1:
                return None
            mixed = [asked.answer, *others[: self.options - 1]]
            random.shuffle(mixed)
            choices = tuple(mixed)
        start = line_offset(bare.lines, place.first)
        stop = line_offset(bare.lines, place.last) + len(bare.lines[place.last - 1])
        identity = digest(context, asked.question, asked.answer, *choices)
        return Problem(
            id=f"{file.path}:{asked.about.name}:{asked.about.first}:{asked.kind}:{identity}",
            question=asked.question,
            context=context,
            answer=asked.answer,
            language="python",
            choices=choices,
            gold_span=(start, stop),
            meta={
                "path": file.path,
                "kind": asked.kind,
                "about": asked.about.name,
                "names": sorted({_last(function.name) for function in bare.functions}),
            },
        )


def _last(name: str) -> str:
    return name.rstrip(".").rsplit(".", 1)[-1]


def _same_value(gold: str, answer: str) -> bool:
    for text in (answer, answer.strip("`. "), answer.split("=")[-1].strip("`. ")):
        try:
            given = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            continue
        wanted = ast.literal_eval(gold)
        # bool is an int for Python, but True is no answer to a question for 1.
        if type(given) is type(wanted) and given == wanted:
            return True
    bare = ast.literal_eval(gold)  # a string without its quotes is right, too
    return isinstance(bare, str) and bare != "" and answer.strip("`'\". ") == bare


def _unique_functions(module: Module) -> list[Definition]:
    """Functions whose bare name is borne by one function of the module only."""
    by_name = defaultdict(list)
    for function in module.functions:
        by_name[_last(function.name)].append(function)
    return [
        found[0]
        for name, found in by_name.items()
        if len(found) == 1 and found[0].name in module.definitions
        if not (name.startswith("__") and name.endswith("__"))
    ]


def _sentence(node: ast.AST) -> str:
    """First sentence of a docstring in one line, "" without one."""
    doc = ast.get_docstring(node) if isinstance(node, FunctionNode) else None
    if not doc:
        return ""
    paragraph = " ".join(doc.split("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s", paragraph)[0]


def _ask_search(module: Module) -> list[_Asked]:
    functions = _unique_functions(module)
    sentences = {function.name: _sentence(function.node) for function in functions}
    names = tuple(_last(function.name) for function in functions)
    told = list(sentences.values())
    return [
        _Asked(
            "search",
            function,
            f'Which function does this describe: "{sentence}"',
            name,
            names,
        )
        for function, name in zip(functions, names, strict=True)
        if len((sentence := sentences[function.name]).split()) >= 4
        and len(sentence) <= 300
        and told.count(sentence) == 1
        # A description that says the name needs no search.
        and name.casefold() not in sentence.casefold().replace(" ", "_")
        and name.casefold() not in sentence.casefold()
    ]


def _literal(node: ast.expr | None) -> str | None:
    """Canonical text of a short literal, None for anything else."""
    if node is None:
        return None
    try:
        text = repr(ast.literal_eval(node))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    return text if len(text) <= _LONGEST_VALUE and "\\n" not in text else None


def _defaults(function: Definition) -> list[tuple[str, str]]:
    node = function.node
    assert isinstance(node, FunctionNode)
    arguments = node.args
    plain = [*arguments.posonlyargs, *arguments.args]
    pairs: list[tuple[ast.arg, ast.expr | None]] = [
        *zip(plain[len(plain) - len(arguments.defaults) :], arguments.defaults, strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    return [(arg.arg, text) for arg, value in pairs if (text := _literal(value)) is not None]


def _ask_default(module: Module) -> list[_Asked]:
    values = tuple(text for function in module.functions for _, text in _defaults(function))
    return [
        _Asked(
            "default",
            function,
            f"What is the default value of the parameter `{name}` of `{function.name}`?",
            text,
            (*values, *_USUAL),
        )
        for function in _unique_functions(module)
        for name, text in _defaults(function)
        if text != "None"
    ]


def _ask_constant(module: Module) -> list[_Asked]:
    rebound = {
        name
        for node in statements(module.tree.body)
        if isinstance(node, ast.Global)
        for name in node.names
    }
    found = [
        (definition, text)
        for definition in module.definitions.values()
        if isinstance(definition.node, ast.Assign | ast.AnnAssign)
        if definition.name.isupper() and definition.name not in rebound
        if (text := _literal(definition.node.value)) is not None
    ]
    values = tuple(text for _, text in found)
    return [
        _Asked(
            "constant",
            definition,
            f"What is the value of the module constant `{definition.name}`?",
            text,
            (*values, *_USUAL),
        )
        for definition, text in found
    ]


def _ask_caller(module: Module) -> list[_Asked]:
    callers: dict[str, list[Definition]] = defaultdict(list)
    for function in module.functions:
        for use in uses(module, function):
            callers[use.definition.name].append(function)
    functions = _unique_functions(module)
    unique = {function.name for function in functions}
    names = tuple(_last(function.name) for function in functions)
    mentions = Counter(re.findall(r"\w+", "\n".join(module.lines)))
    return [
        _Asked(
            "caller",
            found[0],
            f"Which function calls `{name}`?",
            _last(found[0].name),
            tuple(other for other in names if other != _last(name)),
        )
        for name, found in callers.items()
        if len(found) == 1
        and found[0].name in unique
        and module.definitions[name].kind in ("function", "method")
        # The definition and one call are all that the module says of it: no caller is overlooked.
        and mentions[_last(name)] == 2
    ]


_ASK = {
    "search": _ask_search,
    "default": _ask_default,
    "constant": _ask_constant,
    "caller": _ask_caller,
}
