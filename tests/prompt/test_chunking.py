import argparse
import inspect
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import DependencyError, InputError
from outlay.prompt import grammars
from outlay.prompt.chunking import (
    LANGUAGES,
    Chunk,
    comment_prefix,
    resolve_language,
    split_chunks,
)

SAMPLES = {
    "javascript": (
        "import x from 'y';\n// adds\nexport function add(a, b) { return a + b; }\n"
        "export const sub = (a, b) => {\n  return a - b;\n};\nclass A extends B {\n"
        "  constructor() { super(); }\n  async m() {\n    return 1;\n  }\n}",
        ["", "add", "sub", "A", "A.constructor", "A.m"],
    ),
    "typescript": (
        "interface A { x: number }\nexport abstract class B<T> implements A {\n  x = 1;\n"
        "  f(): string { return ''; }\n}\nexport default function g<T>(a: T): T { return a; }",
        ["A", "B", "B.f", "g"],
    ),
    "tsx": ("const V = (p: P) => <div>{p.x}</div>;\nfunction W() { return <V/>; }", ["V", "W"]),
    "java": (
        "package a;\n/** doc */\n@Foo\npublic class A {\n  int x = 1;\n  @Override\n"
        "  public int f() {\n    return g(1);\n  }\n  A() {}\n}",
        ["", "A", "A.f", "A.A"],
    ),
    "go": (
        'package main\nimport "fmt"\ntype T struct { x int }\nfunc (t *T) F() int {\n'
        "\treturn t.x\n}\nfunc main() { fmt.Println(1) }",
        ["", "", "F", "main"],
    ),
    "c": (
        "#include <stdio.h>\nstatic int x;\nstruct point { int x; };\nint *add(int a) {\n"
        "  foo(a);\n  return &x;\n}",
        ["", "point", "add"],
    ),
    "cpp": (
        "namespace n {\ntemplate <typename T>\nT add(T a, T b) {\n  return a + b;\n}\nclass Q {\n"
        " public:\n  int g() const { return 1; }\n};\n}\nint Q::z(int* p) { foo(p); return 0; }",
        ["n", "n.add", "n.Q", "n.Q.g", "Q::z"],
    ),
    "rust": (
        "use a::b;\n#[derive(Debug)]\npub struct P { x: i32 }\nimpl P {\n    /// doc\n"
        "    pub fn new() -> Self { P { x: 1 } }\n}\nfn main() {}",
        ["", "P", "P", "P.new", "main"],
    ),
}


def covers(chunks: list[Chunk], n: int) -> bool:
    borders = [c.first for c in chunks] + [n]
    return borders[0] == 0 and [c.stop for c in chunks] == borders[1:]


@pytest.mark.parametrize("language", SAMPLES)
def test_each_grammar_finds_functions_methods_and_classes(language: str) -> None:
    text, names = SAMPLES[language]
    lines = text.split("\n")
    chunks, notes = split_chunks(lines, language)
    assert covers(chunks, len(lines))
    assert [c.name for c in chunks] == names
    assert notes == []


def test_python_decorators_comments_and_async_stay_with_their_function() -> None:
    lines = [
        "import a",
        "",
        "# why",
        "@dec(",
        "    1)",
        "async def f():",
        "    def inner(): pass",
        "    return inner",
        "",
        "x = 1",
        "class C:",
        '    """Doc."""',
        "    @property",
        "    def p(self): return 1",
        "    y = 2",
        "if x:",
        "    def g(): pass",
    ]
    chunks, _ = split_chunks(lines, "python")
    assert covers(chunks, len(lines))
    assert [(c.name, c.first) for c in chunks] == [
        ("", 0),
        ("f", 2),
        ("", 9),
        ("C", 10),
        ("C.p", 12),
        ("", 14),
        ("g", 16),
    ]


@pytest.mark.parametrize("module", [argparse, json.decoder, inspect])
def test_chunks_of_real_modules_cover_every_line(module) -> None:
    lines = inspect.getsource(module).split("\n")
    chunks, _ = split_chunks(lines, "python")
    assert covers(chunks, len(lines))
    assert len(chunks) > 3


@given(st.text(alphabet="def clas:\n(){}@#x ;"), st.sampled_from([*LANGUAGES, "text", "kotlin"]))
def test_chunks_cover_any_text(text: str, language: str) -> None:
    lines = text.split("\n")
    chunks, _ = split_chunks(lines, language)
    assert covers(chunks, len(lines))


def test_broken_python_is_cut_at_definitions_with_a_warning() -> None:
    chunks, notes = split_chunks(["def f(:", "  pass", "@dec", "async def g():", " x"], "python")
    assert [(c.name, c.first) for c in chunks] == [("f", 0), ("g", 2)]
    assert "does not parse" in notes[0]


def test_prose_is_cut_at_blank_lines() -> None:
    chunks, _ = split_chunks(["One.", "", "Two", "two.", "", "", "Three."], "text")
    assert chunks == [Chunk(0, 2), Chunk(2, 6), Chunk(6, 7)]


def test_a_separator_begins_a_chunk_and_files_are_parsed_apart() -> None:
    lines = ["def f(): pass", "---", "def (broken", "---", "def g(): pass", "---"]
    chunks, notes = split_chunks(lines, "python", separator="---")
    assert covers(chunks, len(lines))
    assert {1, 3, 5} <= {c.first for c in chunks}
    assert [c.name for c in chunks] == ["f", "", "g", ""]
    assert len(notes) == 1


def test_unknown_language_or_broken_code_without_fallback_is_an_error() -> None:
    with pytest.raises(InputError, match="klingon"):
        split_chunks(["x"], "klingon", fallback=False)
    with pytest.raises(InputError, match="does not parse"):
        split_chunks(["def ("], "python", fallback=False)


def test_a_missing_grammar_falls_back_or_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(grammars.GRAMMARS, "go", ("tree_sitter_absent", "language"))
    grammars._parser.cache_clear()
    lines = SAMPLES["go"][0].split("\n")
    chunks, notes = split_chunks(lines, "go")
    assert covers(chunks, len(lines))
    assert "outlay[code]" in notes[0]
    with pytest.raises(DependencyError, match=r"outlay\[code\]"):
        split_chunks(lines, "go", fallback=False)
    grammars._parser.cache_clear()


def test_languages_are_detected_and_have_their_own_comments() -> None:
    for language in ("javascript", "java", "go", "c", "rust", "typescript"):
        assert resolve_language("", SAMPLES[language][0]) == language
        assert comment_prefix(language) == "//"
    assert resolve_language("", "import os\nprint(1)") == "python"
    assert resolve_language("", "It was a dark night.") == "text"
    assert (resolve_language("PY", ""), resolve_language("c++", "")) == ("python", "cpp")
    assert (comment_prefix("python"), comment_prefix("text")) == ("#", "")
