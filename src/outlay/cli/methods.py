"""`outlay methods`: what there is, from the registry."""

from __future__ import annotations

import dataclasses
from typing import Annotated, cast

import typer

from outlay import registry
from outlay.cli import AsJson, errors, show_json


def rows(kind: registry.Kind = "methods") -> list[dict[str, str]]:
    """Registered entries as data; imports none of them.

    Published systems that are tasks stand among the methods, too.
    """
    entries = {
        "methods": registry.methods,
        "tasks": registry.tasks,
        "verifiers": registry.verifiers,
    }[kind]()
    if kind == "methods":
        entries = entries + [entry for entry in registry.tasks() if entry.paper]
    return [
        {
            "slug": entry.slug,
            "room": entry.room,
            "paper": entry.paper,
            "title": entry.title,
            "class": entry.target,
            "summary": entry.summary,
        }
        for entry in entries
    ]


def knobs(slug: str) -> list[dict[str, str]]:
    """The public knobs of a method, task or verifier: name, type and default."""
    cls = registry.find(kind_of(slug), slug).load()
    found = []
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        default = field.default
        if default is dataclasses.MISSING:
            made = field.default_factory
            default = "required" if made is dataclasses.MISSING else made()
        found.append({"knob": field.name, "type": str(field.type), "default": str(default)})
    return found


def kind_of(slug: str) -> registry.Kind:
    """The table that holds `slug`; tasks where none does."""
    tables = {"methods": registry.methods, "verifiers": registry.verifiers}
    for kind, entries in tables.items():
        if slug in {entry.slug for entry in entries()}:
            return cast(registry.Kind, kind)
    return "tasks"


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def methods(
        slug: Annotated[str | None, typer.Argument(help="Show this one's knobs.")] = None,
        tasks: Annotated[bool, typer.Option("--tasks", help="List tasks instead.")] = False,
        verifiers: Annotated[
            bool, typer.Option("--verifiers", help="List verifiers instead.")
        ] = False,
        as_json: AsJson = False,
    ) -> None:
        """List methods (or tasks, or verifiers), or the knobs of one."""
        with errors(as_json):
            kind: registry.Kind = "tasks" if tasks else "verifiers" if verifiers else "methods"
            found = rows(kind) if slug is None else knobs(slug)
            if as_json:
                show_json(found)
                return
            from rich.console import Console
            from rich.table import Table

            table = Table(header_style="bold")
            columns = list(found[0]) if found else []
            for name in columns:
                if name != "class":
                    table.add_column(name, overflow="fold")
            for row in found:
                table.add_row(*(row[name] for name in columns if name != "class"))
            Console().print(table)
