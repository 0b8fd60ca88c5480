"""Python modules seen through `ast`: definitions, functions, and which definition a line needs.

Only what can be decided from the source counts: a name that a function binds itself, that the
module defines twice, or that sits in an f-string (whose positions `ast` gives wrongly before
Python 3.12) is not a use of a definition.
"""

from __future__ import annotations

import ast
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

DefinitionKind = Literal["function", "method", "class", "constant"]
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
_NAMED = FunctionNode | ast.ClassDef | ast.ExceptHandler | ast.MatchAs | ast.MatchStar


@dataclass(frozen=True)
class Definition:
    """A named piece of a module; lines are 1-based and inclusive, decorators included."""

    name: str
    kind: DefinitionKind
    first: int
    last: int
    node: ast.stmt


@dataclass(frozen=True)
class Use:
    """The first place where a function uses a definition; lines of the whole expression."""

    definition: Definition
    first: int
    last: int
    call: bool


@dataclass(frozen=True)
class Module:
    """A parsed module.

    Args:
        lines: of the source, without line ends.
        tree: its syntax tree.
        definitions: by qualified name ("helper", "Class.method"), only those defined once.
        functions: module-level functions and methods of module-level classes, by source order.
    """

    lines: tuple[str, ...]
    tree: ast.Module
    definitions: dict[str, Definition]
    functions: tuple[Definition, ...]


def parse_module(text: str) -> Module | None:
    """The module in `text` ("\\n" line ends), None if this Python cannot parse it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in others' code
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    found: list[Definition] = []
    for node in tree.body:
        found += _defined(node, "")
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, FunctionNode):
                    found += _defined(inner, f"{node.name}.")
    times = Counter(definition.name for definition in found)
    # A name that is also bound below an `if` or `try`, by an import or a loop is left out.
    hidden = Counter(
        name
        for node in tree.body
        if not isinstance(node, FunctionNode | ast.ClassDef | ast.Assign | ast.AnnAssign)
        for name in bound_names(node)
    )
    once = {d.name: d for d in found if times[d.name] == 1 and d.name not in hidden}
    functions = tuple(d for d in found if d.kind in ("function", "method"))
    return Module(tuple(text.split("\n")), tree, once, functions)


def _defined(node: ast.stmt, prefix: str) -> list[Definition]:
    last = node.end_lineno or node.lineno
    if isinstance(node, FunctionNode | ast.ClassDef):
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        kind: DefinitionKind = "class" if isinstance(node, ast.ClassDef) else "function"
        if prefix:
            kind = "method"
        return [Definition(prefix + node.name, kind, first, last, node)]
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        targets = [node.target]
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    return [
        Definition(name, "constant", node.lineno, last, node)
        for name in names
        if not (name.startswith("__") and name.endswith("__"))
    ]


def bound_names(node: ast.AST) -> set[str]:
    """Every name that something below `node` binds: targets, parameters, imports, definitions."""
    names: set[str] = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and not isinstance(inner.ctx, ast.Load):
            names.add(inner.id)
        elif isinstance(inner, ast.arg):
            names.add(inner.arg)
        elif isinstance(inner, ast.alias):
            names.add((inner.asname or inner.name).split(".")[0])
        elif isinstance(inner, _NAMED) and inner.name:
            names.add(inner.name)
        elif isinstance(inner, ast.MatchMapping) and inner.rest:
            names.add(inner.rest)
        elif isinstance(inner, ast.Global | ast.Nonlocal):
            names.update(inner.names)
    return names


def uses(module: Module, function: Definition) -> list[Use]:
    """The first use of every definition of the module in the body of `function`, by line.

    A definition that overlaps the function (its own class, itself) is not reported.
    """
    node = function.node
    assert isinstance(node, FunctionNode)
    bound = bound_names(node) - {node.name}
    receiver, owner = _receiver(function, node)
    first: dict[str, Use] = {}
    for expression, call in _loads(node.body):
        if isinstance(expression, ast.Name):
            name = expression.id
            if name in bound:
                continue
        elif (
            isinstance(expression, ast.Attribute)
            and isinstance(expression.value, ast.Name)
            and expression.value.id == receiver
        ):
            name = f"{owner}.{expression.attr}"
        else:
            continue
        definition = module.definitions.get(name)
        if definition is None or _overlap(definition, function):
            continue
        outer = call or expression
        use = Use(definition, outer.lineno, outer.end_lineno or outer.lineno, call is not None)
        if name not in first or use.first < first[name].first:
            first[name] = use
    return sorted(first.values(), key=lambda use: (use.first, use.definition.name))


def _receiver(function: Definition, node: FunctionNode) -> tuple[str | None, str]:
    """Name of `self` or `cls` and of the class, (None, "") outside methods."""
    arguments = [*node.args.posonlyargs, *node.args.args]
    static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
    if function.kind != "method" or static or not arguments:
        return None, ""
    return arguments[0].arg, function.name.split(".")[0]


def _loads(body: list[ast.stmt]) -> Iterator[tuple[ast.expr, ast.Call | None]]:
    """Names and attributes that are read, with the call where they are what is called."""
    waiting: list[ast.AST] = list(body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.JoinedStr):
            continue
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield node.func, node
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node, None
        waiting.extend(ast.iter_child_nodes(node))


def _overlap(a: Definition, b: Definition) -> bool:
    return a.first <= b.last and b.first <= a.last


def statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Every statement of `body`, nested ones included; expressions are not walked."""
    waiting: list[ast.AST] = list(body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.stmt):
            yield node
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            waiting.extend(getattr(node, name, ()))


def line_offset(lines: tuple[str, ...] | list[str], line: int) -> int:
    """First character of 1-based `line` in `"\\n".join(lines)`."""
    return sum(len(text) + 1 for text in lines[: line - 1])


def strip_docstrings(module: Module) -> str:
    """The module's source without docstrings of functions and classes; `...` where one was all."""
    lines: list[str | None] = list(module.lines)
    for node in statements(module.tree.body):
        if not isinstance(node, FunctionNode | ast.ClassDef) or ast.get_docstring(node) is None:
            continue
        doc = node.body[0]
        first, last = doc.lineno, doc.end_lineno or doc.lineno
        before = module.lines[first - 1].encode()[: doc.col_offset].decode()
        after = module.lines[last - 1].encode()[doc.end_col_offset :].decode()
        alone = not before.strip() and not after.strip()
        if len(node.body) == 1 or not alone:
            lines[first - 1] = before + "..." + after
        else:
            lines[first - 1] = None
        lines[first:last] = [None] * (last - first)
    return "\n".join(line for line in lines if line is not None)
