"""The documentation: generated parts are current, links resolve, and examples run."""

import ast
import contextlib
import importlib.util
import io
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from tests.fashion import needs_fashion

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *ROOT.glob("docs/**/*.md"),
    ]
)
BLOCK = re.compile(
    r"(?:<!-- runnable(?P<needs>: model|: fashion)? -->\n)?```python\n(?P<code>.*?)```\n"
    r"(?:\n<!-- output -->\n```text\n(?P<output>.*?)```)?",
    re.DOTALL,
)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
# Paths of one machine, and hosts of package registries and model hubs.
PRIVATE = re.compile(
    r"(?<![\w.])/(?:work|tmp|root|home|mnt|usr|opt)/|pypi\.|pythonhosted|huggingface\.co|npmjs",
    re.I,
)


@dataclass(frozen=True)
class Example:
    """A Python block of a page."""

    page: Path
    line: int
    code: str
    runnable: bool
    needs: str
    output: str | None

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def examples() -> list[Example]:
    found: list[Example] = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        found += [
            Example(
                page,
                text.count("\n", 0, match.start("code")),
                match["code"],
                runnable=match[0].startswith("<!-- runnable"),
                needs=(match["needs"] or "").removeprefix(": "),
                output=match["output"],
            )
            for match in BLOCK.finditer(text)
        ]
    return found


EXAMPLES = examples()


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_parts_are_up_to_date(generator):
    assert [page.name for page in generator.stale()] == [], "run: python docs/generate.py"


def test_check_names_the_stale_page_and_exits_with_1(generator, tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text("<!-- generated:tasks -->\nold\n<!-- /generated -->\n", encoding="utf-8")
    monkeypatch.setattr(generator, "ROOT", tmp_path)
    monkeypatch.setattr(generator, "pages", lambda: [page])
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generator.main() == 1
    assert "page.md is out of date" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    assert generator.main() == 0
    assert "code-completion" in page.read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generator.main() == 0


def test_every_method_has_a_row_and_every_system_with_a_paper_a_page(generator):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for entry in generator.registry.methods():
        assert f"| `{entry.slug}` |" in readme
        if entry.paper:
            page = ROOT / "docs" / "methods" / f"{entry.slug.split('/')[0]}.md"
            assert page.is_file(), f"{entry.slug} has no page"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_resolves(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for target in LINK.findall(text):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        inside = file.exists() and file.is_relative_to(ROOT)
        if not inside or (anchor and anchor not in _anchors(file)):
            broken.append(target)
    assert broken == []


def _anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in ROOT.glob("docs/**/*.md"):
        assert f": {page.relative_to(ROOT / 'docs').as_posix()}\n" in navigation


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_names_a_machines_paths_or_registry_hosts(page):
    assert PRIVATE.findall(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_every_python_block_is_python(example):
    if "docs/api.md" not in example.name:  # signatures without bodies
        ast.parse(example.code)


def test_all_marked_blocks_were_found():
    marks = sum(page.read_text(encoding="utf-8").count("\n<!-- runnable") for page in PAGES)
    assert sum(example.runnable for example in EXAMPLES) == marks


def _run(example: Example) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(example.code, example.name, "exec"), {"__name__": "__main__"})
    return printed.getvalue()


@pytest.mark.parametrize(
    "example", [e for e in EXAMPLES if e.runnable and not e.needs], ids=lambda e: e.name
)
def test_examples_without_a_model_print_what_the_page_says(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = _run(example)
    assert printed
    if example.output is not None:
        assert printed == example.output


@pytest.mark.model
@pytest.mark.xdist_group("model")
@pytest.mark.parametrize(
    "example", [e for e in EXAMPLES if e.needs == "model"], ids=lambda e: e.name
)
def test_examples_with_a_model_run(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _run(example).strip()


@needs_fashion
@pytest.mark.parametrize(
    "example", [e for e in EXAMPLES if e.needs == "fashion"], ids=lambda e: e.name
)
def test_examples_with_pictures_run(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _run(example).strip()


def test_the_architecture_names_modules_that_exist():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    source = ROOT / "src" / "outlay"
    tree = text.split("src/outlay/\n", 1)[1].split("```", 1)[0]
    for line in tree.splitlines():
        name, _, about = line.strip().partition(" ")
        assert (source / name).exists(), name
        if name.endswith("/") and not about.strip().startswith("one "):
            for module in re.sub(r"\(.*?\)", "", about).split(","):
                if " " not in module.strip():
                    known = (source / name / f"{module.strip()}.py", source / name / module.strip())
                    assert any(path.exists() for path in known), f"{name}{module.strip()}"
