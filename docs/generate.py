"""Write the parts of the documentation that come from code and results.

A page marks such a part with `<!-- generated:NAME -->` and `<!-- /generated -->`; what stands
between them is written by the function of that NAME below. Without arguments every page and the
README are rewritten; `--check` only reports which are out of date, and exits with 1. No model is
loaded, and torch is not imported.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import typer

import outlay
from outlay import cli, registry
from outlay.cli.methods import kind_of
from outlay.proofs.base import VERDICTS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
RESULTS = ROOT / "results"
PART = re.compile(r"(<!-- generated:(\S+) -->\n)(.*?)(<!-- /generated -->)", re.DOTALL)
SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Example|Examples):\s*$")
SLOTS = {
    "prompt": "--prompt",
    "vision": "--vision",
    "decode": "--decode",
    "cache": "--cache",
    "reason": "--reason",
}


# -- Markdown -------------------------------------------------------------------------------------


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table; pipes in cells are escaped."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
        for row in lines
    )


def arxiv(number: str) -> str:
    """A link to a paper, "" where there is none."""
    return f"[{number}](https://arxiv.org/abs/{number})" if number else ""


def shown_type(hint: Any) -> str:
    """A type in words that fit a table cell."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "none"
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(shown_type(arg) for arg in args)
    if origin is tuple and args:
        inner = [shown_type(arg) for arg in args if arg is not Ellipsis]
        return f"tuple of {'; '.join(inner)}" if Ellipsis in args else f"({', '.join(inner)})"
    return getattr(origin or hint, "__name__", str(hint))


def shown_default(field: dataclasses.Field[Any]) -> str:
    """A field's default as code."""
    value = field.default
    if value is dataclasses.MISSING:
        if field.default_factory is dataclasses.MISSING:
            return "required"
        value = field.default_factory()
    if isinstance(value, str):
        return f"`{json.dumps(value)}`"
    text = repr(value)
    return f"`{text}`" if len(text) <= 80 else f"`{type(value).__name__}(...)`"


# -- docstrings -----------------------------------------------------------------------------------


def sections(doc: str) -> dict[str, str]:
    """A Google-style docstring by section; the text before the first one is ""."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in inspect.cleandoc(doc).splitlines():
        if match := SECTION.match(line):
            name = match[1]
            found[name] = []
        else:
            found[name].append(line)
    return {key: inspect.cleandoc("\n".join(lines)) for key, lines in found.items()}


def entries(text: str) -> list[tuple[str, str]]:
    """(names, meaning) of an Args or Raises section."""
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        match = re.match(r"([\w*]+(?:, [\w*]+)*): (.*)", line)
        if match:
            found.append((match[1], match[2]))
        elif found and line.strip():
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
    return found


def meanings(cls: type) -> dict[str, str]:
    """What a class says of each of its arguments."""
    args = entries(sections(cls.__doc__ or "").get("Args", ""))
    return {name: text for names, text in args for name in names.split(", ")}


def described(doc: str) -> Iterator[str]:
    """A docstring as Markdown paragraphs and lists."""
    parts = sections(doc)
    yield parts.pop("")
    for name, text in parts.items():
        if name.startswith("Example"):
            yield f"```pycon\n{text}\n```"
        elif items := entries(text):
            yield f"{name}:\n\n" + "\n".join(f"- `{key}`: {value}" for key, value in items)
        elif text:
            yield f"{name}: {text}"


# -- parts ----------------------------------------------------------------------------------------


def methods() -> str:
    """Methods that the registry holds."""
    rows = [
        (
            f"`{entry.slug}`",
            f"`{SLOTS[entry.room]}`" if entry.room in SLOTS else entry.room,
            entry.title,
            entry.summary,
            arxiv(entry.paper),
        )
        for entry in registry.methods()
    ]
    return table(("name", "slot", "method", "what it does", "paper"), rows)


def tasks() -> str:
    """Tasks that the registry holds."""
    rows = [(f"`{entry.slug}`", entry.title, entry.summary) for entry in registry.tasks()]
    return table(("name", "task", "what it asks"), rows)


def verifiers() -> str:
    """Verifiers that the registry holds."""
    rows = [(f"`{e.slug}`", e.title, e.summary, arxiv(e.paper)) for e in registry.verifiers()]
    return table(("name", "verifier", "what it does", "paper"), rows)


def knobs(slug: str) -> str:
    """The knobs of one method or task, from its dataclass."""
    cls = registry.find(kind_of(slug), slug).load()
    hints, known = typing.get_type_hints(cls), meanings(cls)
    rows = [
        (f"`{f.name}`", shown_type(hints[f.name]), shown_default(f), known.get(f.name, ""))
        for f in dataclasses.fields(cls)
        if f.init
    ]
    return table(("knob", "type", "default", "meaning"), rows)


def systems() -> str:
    """The systems of the plan, and which of them are there."""
    here = registry.systems()
    listed = json.loads((DOCS / "systems.json").read_text(encoding="utf-8"))
    rows = []
    for row in listed:
        page = DOCS / "methods" / f"{row['slug']}.md"
        title = f"[{row['title']}](methods/{page.name})" if page.exists() else row["title"]
        state = "yes" if row["slug"] in here else ""
        rows.append((title, f"`{row['slug']}`", row["summary"], arxiv(row["arxiv"]), state))
    done = sum(row[-1] == "yes" for row in rows)
    head = f"{done} of {len(rows)} can be used today.\n\n"
    return head + table(("system", "name", "in one line", "paper", "here"), rows)


def commands() -> str:
    """Every command of the command line, with its arguments and options."""
    app = typer.Typer(name="outlay")
    for name in cli.COMMANDS:
        importlib.import_module(f"{cli.__name__}.{name}").register(app)
    group: Any = typer.main.get_command(app)
    return "\n\n".join(_commands("outlay", group))


def _commands(path: str, command: Any) -> Iterator[str]:
    if children := getattr(command, "commands", None):
        for name in sorted(children):
            yield from _commands(f"{path} {name}", children[name])
        return
    shown = [p for p in command.params if p.name != "help"]
    words = [f"{path} [OPTIONS]"]
    rows = []
    for param in shown:
        argument = param.param_type_name == "argument"
        if argument:
            word = param.name.upper() + ("..." if param.nargs == -1 else "")
            words.append(word if param.required else f"[{word}]")
        name = param.name.upper() if argument else ", ".join(param.opts)
        default = "required" if param.required else _default(param)
        several = getattr(param, "multiple", False) or param.nargs == -1
        meaning = (getattr(param, "help", None) or "") + " May be repeated." * several
        rows.append((f"`{name}`", default, meaning))
    yield f"## {path}"
    yield inspect.cleandoc(command.help or "")
    yield "```text\n" + " ".join(words) + "\n```"
    if rows:
        yield table(("argument or option", "default", "meaning"), rows)


def _default(param: Any) -> str:
    value = param.default
    if value is None or value is False or value == () or value == [] or value == "":
        return ""
    return f"`{value}`" if isinstance(value, str | int | float | Path) else ""


def api() -> str:
    """Signatures and docstrings of the public names."""
    return "\n\n".join(part for name in outlay.__all__ for part in _public(name))


def _public(name: str) -> Iterator[str]:
    value = getattr(outlay, name)
    yield f"## outlay.{name}"
    yield f"```python\n{signature(value, name)}\n```"
    yield from described(value.__doc__ or "")
    if not inspect.isclass(value):
        return
    rows = []
    for key, member in vars(value).items():
        inner = getattr(member, "__func__", getattr(member, "fget", member))
        public = inspect.isfunction(inner) and not key.startswith("_")
        if public and not key.startswith("model_") and inner.__doc__:
            first = sections(inner.__doc__)[""].split("\n\n")[0]
            call = key if isinstance(member, property) else f"{key}()"
            rows.append(f"- `{call}`: {' '.join(first.split())}")
    if rows:
        yield "Members:\n\n" + "\n".join(rows)


def signature(value: Any, name: str) -> str:
    """How `value` is called, one argument a line where that is long."""
    if inspect.isclass(value) and issubclass(value, Exception):
        return f"class {name}({value.__bases__[0].__name__})"
    written: dict[str, Any] = {}
    for cls in reversed(getattr(value, "__mro__", ())):
        written |= vars(cls).get("__annotations__", {})
    parts: list[str] = []
    for param in inspect.signature(value).parameters.values():
        if param.name.startswith("_"):
            continue
        if param.kind is param.KEYWORD_ONLY and not any(p.startswith("*") for p in parts):
            parts.append("*")
        kind = written.get(param.name, param.annotation)
        text = "**" * (param.kind is param.VAR_KEYWORD) + param.name
        if isinstance(kind, str):
            text += f": {kind}"
        if param.default is not param.empty:
            shown = repr(param.default)
            text += f" = {'...' if '<' in shown or len(shown) > 40 else shown}"
        parts.append(text)
    line = f"{name}({', '.join(parts)})"
    if len(line) > 88:
        line = f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + ")"
    return ("class " if inspect.isclass(value) else "") + line


# -- results --------------------------------------------------------------------------------------


def _read(folder: str) -> list[dict[str, Any]]:
    files = sorted((RESULTS / folder).glob("*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in files]


def _number(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def proofs() -> str:
    """Committed results of proofs, claim by claim."""
    parts = []
    for proof in _read("proofs"):
        judged = [check["holds"] for check in proof["checks"] if check["holds"] is not None]
        cpu = proof["machine"].get("gpu") or proof["machine"]["cpu"]
        seeds = ", ".join(map(str, proof["seeds"]))
        rows = [
            (
                check["claim"],
                check["paper"],
                _number(check["measured"]),
                " to ".join(map(_number, check["ci"])) if check["ci"] else "",
                VERDICTS[check["holds"]],
            )
            for check in proof["checks"]
        ]
        parts += [
            f"### {proof['system']}",
            f"{sum(judged)} of {len(judged)} claims with a target hold. Scale {proof['scale']}, "
            f"{proof['date']}, {cpu}, {proof['minutes']:.1f} minutes, seeds {seeds}.",
            table(("claim", "paper", "measured", "95 % interval", "holds"), rows),
        ]
    return "\n\n".join(parts) or "No proof has been run at a scale that is committed yet."


def frontier(points: list[dict[str, Any]]) -> str:
    """Quality of every method by the mean cost that its budget allowed."""
    limits = sorted({p["budget"].get("tokens") or 0 for p in points} - {0})
    shown: dict[str, dict[int, float]] = {}
    for point in points:
        limit = point["budget"].get("tokens") or 0
        shown.setdefault(point["stack"], {})[limit] = point["quality"]
    rows = [
        (name, *(_number(found.get(limit)) for limit in (*limits, 0)))
        for name, found in shown.items()
    ]
    heads = ("method", *(f"{limit} tokens" for limit in limits), "no limit")
    return table(heads, rows)


def benchmarks() -> str:
    """Committed results of benchmarks."""
    parts = []
    for bench in _read("benchmarks"):
        about = f"{bench['date']}, {bench['machine'].get('gpu') or bench['machine']['cpu']}."
        if "points" in bench:
            parts += [f"### {bench['name']}", about, frontier(bench["points"])]
            continue
        rows = [
            (
                row["case"],
                row["unit"],
                _number(row["ours"]),
                _number(row["theirs"]),
                row["peer"],
                _number(row["ratio"]),
            )
            for row in bench["rows"]
        ]
        parts += [
            f"### {bench['name']}",
            about,
            table(("case", "unit", "ours", "theirs", "peer", "ratio"), rows),
        ]
    return "\n\n".join(parts) or "No benchmark result is committed yet."


def pictures() -> str:
    """The committed pictures of proofs, for the README."""
    return "\n\n".join(
        f"![Proof of {path.stem}](results/proofs/{path.name})"
        for path in sorted((RESULTS / "proofs").glob("*.png"))
    )


PARTS: dict[str, Callable[..., str]] = {
    "methods": methods,
    "tasks": tasks,
    "verifiers": verifiers,
    "knobs": knobs,
    "systems": systems,
    "cli": commands,
    "api": api,
    "proofs": proofs,
    "benchmarks": benchmarks,
    "pictures": pictures,
}


# -- pages ----------------------------------------------------------------------------------------


def pages() -> list[Path]:
    """Every page that may hold generated parts."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def rendered(page: Path) -> str:
    """The page's text with its generated parts written anew.

    Raises:
        KeyError: for a part that no function writes.
    """

    def write(match: re.Match[str]) -> str:
        name, _, argument = match[2].partition("/")
        body = PARTS[name](argument) if argument else PARTS[name]()
        return f"{match[1]}{body}\n{match[4]}" if body else match[1] + match[4]

    return PART.sub(write, page.read_text(encoding="utf-8"))


def stale() -> list[Path]:
    """Pages whose generated parts are out of date."""
    return [page for page in pages() if rendered(page) != page.read_text(encoding="utf-8")]


def main() -> int:
    """Write all pages, or check them; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="report stale pages, write nothing")
    check = parser.parse_args().check
    found = stale()
    for page in found:
        name = page.relative_to(ROOT)
        if check:
            print(f"{name} is out of date; run: python docs/generate.py", file=sys.stderr)
        else:
            page.write_text(rendered(page), encoding="utf-8")
            print(f"wrote {name}")
    return int(check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
