"""Where definitions stand in JavaScript, TypeScript, Java, Go, C, C++ and Rust sources.

Thin over the tree-sitter grammars from PyPI (the extra `outlay[code]`), imported on first use. A
syntax error in one place does not lose the rest: tree-sitter recovers.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from outlay.errors import DependencyError

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

# language -> (module, name of its language function)
GRAMMARS = {
    "javascript": ("tree_sitter_javascript", "language"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
    "tsx": ("tree_sitter_typescript", "language_tsx"),
    "java": ("tree_sitter_java", "language"),
    "go": ("tree_sitter_go", "language"),
    "c": ("tree_sitter_c", "language"),
    "cpp": ("tree_sitter_cpp", "language"),
    "rust": ("tree_sitter_rust", "language"),
}

_FUNCTIONS = frozenset(
    {
        "function_declaration",
        "generator_function_declaration",
        "method_definition",
        "method_declaration",
        "constructor_declaration",
        "compact_constructor_declaration",
        "function_definition",
        "function_item",
        "macro_definition",
        "type_declaration",
        "struct_item",
        "enum_item",
        "type_alias_declaration",
    }
)
_CONTAINERS = frozenset(
    {
        "class_declaration",
        "abstract_class_declaration",
        "interface_declaration",
        "enum_declaration",
        "record_declaration",
        "annotation_type_declaration",
        "class_specifier",
        "struct_specifier",
        "enum_specifier",
        "namespace_definition",
        "internal_module",
        "impl_item",
        "trait_item",
        "mod_item",
    }
)
# Nodes around a definition that belong to it: `export`, `template<...>`, `const f = () => ...`.
_WRAPPERS = frozenset(
    {
        "export_statement",
        "template_declaration",
        "ambient_declaration",
        "lexical_declaration",
        "variable_declaration",
        "variable_declarator",
        "declaration",
        "type_definition",
    }
)
_VALUES = frozenset({"arrow_function", "function_expression", "generator_function", "class"})


@lru_cache(maxsize=16)
def _parser(language: str) -> Parser:
    module, function = GRAMMARS[language]
    try:
        import tree_sitter

        grammar: Any = importlib.import_module(module)
    except ImportError as error:
        raise DependencyError(
            f"cutting {language} into functions needs {error.name}; "
            "install it with: pip install 'outlay[code]'"
        ) from error
    return tree_sitter.Parser(tree_sitter.Language(getattr(grammar, function)()))


def definitions(text: str, language: str) -> list[tuple[int, int, str, bool]]:
    """(first line, line after the last, dotted name, has members) of every definition, in order.

    Functions inside functions are not listed; a class with members is listed with its members.

    Raises:
        DependencyError: if the grammar is not installed.
    """
    found: list[tuple[int, int, str, bool]] = []
    # The walk keeps its own stack: generated code can nest deeper than Python recurses.
    stack: list[tuple[Node, str]] = [(_parser(language).parse(text.encode()).root_node, "")]
    while stack:
        node, prefix = stack.pop()
        if _is_definition(node):
            outer = node
            while outer.parent is not None and outer.parent.type in _WRAPPERS:
                outer = outer.parent
            name = prefix + _name(node)
            members = node.type in _CONTAINERS and _has_members(node)
            found.append((outer.start_point.row, outer.end_point.row + 1, name, members))
            if not members:
                continue
            prefix = f"{name}."
        stack.extend((child, prefix) for child in reversed(node.named_children))
    return found


def _is_definition(node: Node) -> bool:
    kind = node.type
    if kind in _FUNCTIONS:
        return True
    if kind in _CONTAINERS:  # `struct point p;` only mentions a struct
        return kind == "impl_item" or node.child_by_field_name("body") is not None
    return kind in _VALUES and node.parent is not None and node.parent.type == "variable_declarator"


def _has_members(node: Node) -> bool:
    stack = list(node.named_children)
    while stack:
        child = stack.pop()
        if _is_definition(child):
            return True
        stack.extend(child.named_children)
    return False


def _name(node: Node) -> str:
    """The declared name, found through C's nested declarators and JavaScript's assignments."""
    holder: Node | None = node
    if node.type in _VALUES and node.parent is not None:
        holder = node.parent
    while holder is not None:
        for field in ("name", "declarator", "type"):
            child = holder.child_by_field_name(field)
            if child is not None and (field != "type" or holder.type == "impl_item"):
                break
        else:
            text = holder.text if holder.type.endswith("identifier") else None
            return text.decode() if text else ""
        if child.type.endswith("identifier") or child.child_by_field_name("declarator") is None:
            return child.text.decode() if child.text else ""
        holder = child
    return ""
