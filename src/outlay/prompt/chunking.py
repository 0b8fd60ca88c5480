"""Cutting source code into function-sized chunks that concatenate to the source exactly.

Python is cut with `ast` (decorators, `async def` and comments directly above a definition stay with
it), JavaScript, TypeScript, Java, Go, C, C++ and Rust with tree-sitter grammars (the extra
`outlay[code]`), anything else at lines that look like definitions or, failing that, at blank lines.
Methods are chunks of their own; so is the head of a class, and so is code between definitions.

LongCodeZip (arXiv 2510.00446, section 3.2) cuts with one regular expression a language instead,
which glues decorators to the chunk before and splits C++ and Java at ordinary calls.
"""

from __future__ import annotations

import ast
import re
import warnings
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from outlay.errors import DependencyError, InputError
from outlay.prompt.grammars import GRAMMARS, definitions

ALIASES = {
    "py": "python",
    "python3": "python",
    "js": "javascript",
    "jsx": "javascript",
    "mjs": "javascript",
    "ts": "typescript",
    "golang": "go",
    "c++": "cpp",
    "cc": "cpp",
    "cxx": "cpp",
    "hpp": "cpp",
    "h": "c",
    "rs": "rust",
    "md": "text",
    "markdown": "text",
    "txt": "text",
}
LANGUAGES = ("python", *GRAMMARS)

_HASH = frozenset({"python", "ruby", "bash", "sh", "shell", "perl", "r", "yaml", "toml", "make"})
_DASH = frozenset({"sql", "lua", "haskell", "ada"})
_PROSE = frozenset({"text", ""})

_PYTHON_DEF = re.compile(r"\s*(?:async\s+def|def|class)\b")
_GENERIC_DEF = re.compile(
    r"\s*(?:(?:export|default|public|private|protected|internal|static|abstract|final|async|"
    r"inline|virtual|override|open|sealed|data|unsafe|extern|pub(?:\([^)]*\))?)\s+)*"
    r"(?:function|func|fun|fn|def|class|struct|enum|interface|trait|impl|module|namespace|sub|proc)"
    r"\s+[\w$<]"
)
# `type name(arguments) {` at the left margin: a definition in C-like languages, never a call.
_SIGNATURE = re.compile(
    r"(?!\s|if\b|for\b|while\b|switch\b|return\b|else\b|do\b)[\w<>\[\],*&:~ ]+[ *&]~?[\w:~]+\s*"
    r"\([^;]*(?:\)[^;]*\{?|,)\s*$"
)
_ATTACHED = re.compile(r"\s*(?:#(?!include|define|if|endif|else|pragma)|//|/\*|\*|--|@\w|\[\w|;;)")
_CLOSERS = re.compile(r"[\s})\];,]*(?:end)?[\s};]*$")
_UNPARSABLE = (SyntaxError, ValueError, RecursionError, MemoryError)
_CUES = (
    (
        "cpp",
        re.compile(r"^\s*(?:#include\s*<\w+>|using namespace |template\s*<|namespace \w+)", re.M),
    ),
    ("c", re.compile(r"^\s*#include\s*[<\"]", re.M)),
    ("go", re.compile(r"^package \w+\s*$", re.M)),
    (
        "rust",
        re.compile(r"^\s*(?:pub(?:\([^)]*\))? )?(?:fn \w+.*(?:\{|->)|impl\b.*\{|use \w+::)", re.M),
    ),
    (
        "java",
        re.compile(
            r"^\s*(?:package [\w.]+;|import [\w.*]+;|public (?:final |abstract )?class )", re.M
        ),
    ),
    (
        "typescript",
        re.compile(
            r"^\s*(?:export )?(?:interface \w+ \{|type \w+ =|enum \w+ \{)"
            r"|\w\??: (?:string|number|boolean)\b",
            re.M,
        ),
    ),
    (
        "javascript",
        re.compile(
            r"^\s*(?:export |async )*"
            r"(?:function\b.*\{|(?:const|let|var) \w+ = |import .* from ['\"])",
            re.M,
        ),
    ),
    (
        "python",
        re.compile(r"^\s*(?:def \w+\(|class \w+.*:$|from [\w.]+ import |import \w+$)", re.M),
    ),
)


@dataclass(frozen=True)
class Chunk:
    """Lines `first` to `stop - 1` (from 0) of a source: a definition, or code between two.

    Args:
        first: first line.
        stop: the line after the last one.
        name: dotted name of the definition, "" for other code.
    """

    first: int
    stop: int
    name: str = ""


@dataclass(frozen=True)
class Definition:
    """Where a definition stands: lines `first` to `stop - 1`; a `head` ends where members begin."""

    first: int
    stop: int
    name: str
    head: bool = False


def _parse(text: str) -> ast.Module:
    with warnings.catch_warnings():  # invalid escapes in the user's strings are not our business
        warnings.simplefilter("ignore")
        return ast.parse(text)


def resolve_language(language: str, text: str) -> str:
    """The canonical name of `language`; "" is detected from `text` ("text" for prose)."""
    if language:
        lower = language.lower()
        return ALIASES.get(lower, lower)
    try:
        tree = _parse(text)
    except _UNPARSABLE:
        tree = ast.Module([], [])
    if any(not isinstance(node, ast.Expr) for node in tree.body):
        return "python"
    for name, cue in _CUES:
        if cue.search(text):
            return name
    return "text"


def comment_prefix(language: str) -> str:
    """What begins a comment line in `language`; "" for prose."""
    if language in _PROSE:
        return ""
    if language in _HASH:
        return "#"
    return "--" if language in _DASH else "//"


def is_definition(line: str, language: str) -> bool:
    """Does `line` begin a definition, judged by its keyword?"""
    pattern = _PYTHON_DEF if language == "python" else _GENERIC_DEF
    return bool(pattern.match(line)) or (
        language not in ("python", *_PROSE) and bool(_SIGNATURE.match(line))
    )


def split_chunks(
    lines: Sequence[str], language: str, *, separator: str = "", fallback: bool = True
) -> tuple[list[Chunk], list[str]]:
    """Cut `lines` into chunks that cover every line once, in order.

    Args:
        lines: the source without line ends.
        language: canonical name, see `resolve_language`.
        separator: a line equal to it begins a new file, which is cut on its own; the separator
            line stays at the head of its file's first chunk. "" for none.
        fallback: cut by patterns where no parser serves; False makes that an error.

    Returns:
        The chunks, and warnings about parsers that did not serve.

    Raises:
        InputError: for a language without a parser, or unparsable code, when `fallback` is False.
        DependencyError: for a missing grammar when `fallback` is False.
    """
    if language not in LANGUAGES and not fallback:
        raise InputError(
            f"language={language!r} has no parser; choose one of {', '.join(LANGUAGES)}, "
            "or set fallback=True to cut at blank lines"
        )
    marks = [i for i, line in enumerate(lines) if separator and line.strip() == separator.strip()]
    borders = sorted({0, *marks, len(lines)})
    chunks: list[Chunk] = []
    notes: list[str] = []
    for first, stop in pairwise(borders):
        body = first + (first in marks)  # the separator itself is not code
        found = _find(lines[body:stop], language, fallback, notes)
        pieces = _cover(lines[body:stop], found)
        if body > first:
            if pieces:
                head = pieces[0]
                pieces[0] = Chunk(head.first - 1, head.stop, head.name)
            else:
                pieces = [Chunk(-1, 0)]
        chunks += [Chunk(p.first + body, p.stop + body, p.name) for p in pieces]
    return chunks, list(dict.fromkeys(notes))


def _find(
    lines: Sequence[str], language: str, fallback: bool, notes: list[str]
) -> list[Definition]:
    text = "\n".join(lines)
    if language == "python":
        try:
            return _python(_parse(text), lines)
        except _UNPARSABLE as error:
            problem = f"the Python source does not parse ({error})"
            if not fallback:
                raise InputError(f"{problem}; mend it, or set fallback=True") from error
            notes.append(f"{problem}; cut at lines that look like definitions")
    elif language in GRAMMARS:
        try:
            return [
                Definition(_attach(lines, first), stop, name, head)
                for first, stop, name, head in definitions(text, language)
            ]
        except DependencyError as error:
            if not fallback:
                raise
            notes.append(f"{error}; cut at lines that look like definitions")
    return _patterns(lines, language)


def _attach(lines: Sequence[str], first: int) -> int:
    """Move a definition's start up over comments and decorators directly above it."""
    while first > 0 and _ATTACHED.match(lines[first - 1]):
        first -= 1
    return first


def _python(tree: ast.Module, lines: Sequence[str]) -> list[Definition]:
    found: list[Definition] = []

    def visit(body: Iterable[ast.AST], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                top = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
                first, stop = _attach(lines, top), node.end_lineno or node.lineno
                name = f"{prefix}{node.name}"
                members = isinstance(node, ast.ClassDef) and any(
                    isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
                    for child in ast.walk(node)
                    if child is not node
                )
                found.append(Definition(first, stop, name, head=members))
                if members:
                    visit(node.body, f"{name}.")
            elif isinstance(node, ast.If | ast.Try | ast.TryStar | ast.With | ast.ExceptHandler):
                visit(ast.iter_child_nodes(node), prefix)

    visit(tree.body, "")
    return found


def _patterns(lines: Sequence[str], language: str) -> list[Definition]:
    """Definitions by their look; paragraphs where fewer than two lines look like one."""
    starts = [i for i, line in enumerate(lines) if is_definition(line, language)]
    if len(starts) < 2 or language in _PROSE:
        starts = [
            i
            for i, line in enumerate(lines)
            if line.strip() and (i == 0 or not lines[i - 1].strip())
        ]
        return [Definition(i, i + 1, "", head=True) for i in starts]
    names = [re.sub(r"\s*[({:].*", "", lines[i]).split()[-1] for i in starts]
    return [
        Definition(_attach(lines, i), i + 1, name, head=True)
        for i, name in zip(starts, names, strict=True)
    ]


def _cover(lines: Sequence[str], found: Sequence[Definition]) -> list[Chunk]:
    """Turn definitions into chunks that cover all lines once."""
    if not lines:
        return []
    cuts = {0, len(lines)}
    names: dict[int, str] = {}
    floor = 0
    for item in sorted(found, key=lambda d: (d.first, d.stop)):
        first = max(item.first, floor)  # two definitions on one line stay together
        if first >= item.stop and not item.head:
            continue
        cuts.add(first)
        names.setdefault(first, item.name)
        if not item.head:
            floor = item.stop
            while floor < len(lines) and not lines[floor].strip():
                floor += 1  # blank lines belong to what they follow
            cuts.add(floor)
    borders = sorted(cuts)
    filled = [bool(line.strip()) and not _CLOSERS.fullmatch(line) for line in lines]
    content = [i for i, full in enumerate(filled) if full]
    chunks: list[Chunk] = []
    for first, stop in pairwise(borders):
        at = bisect_left(content, first)
        empty = at == len(content) or content[at] >= stop
        name = names.get(first, "")
        if chunks and empty:  # blank lines and closing brackets belong to what they close
            chunks[-1] = Chunk(chunks[-1].first, stop, chunks[-1].name)
        elif len(chunks) == 1 and not _any(filled, chunks[0]):
            chunks[0] = Chunk(chunks[0].first, stop, name)
        else:
            chunks.append(Chunk(first, stop, name))
    return chunks


def _any(filled: Sequence[bool], chunk: Chunk) -> bool:
    return any(filled[chunk.first : chunk.stop])
