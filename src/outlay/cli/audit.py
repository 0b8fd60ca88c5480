"""`outlay audit`: does the bill for hidden tokens hold? From files, or against a live provider."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outlay.cli import AsJson, errors, show_json

if TYPE_CHECKING:
    from outlay.audit.coin import CoIn, Report

MALICIOUS, INCONCLUSIVE = 3, 4  # exit codes; 0 is "no inflation detected"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(audit)


def audit(
    files: Annotated[
        list[Path], typer.Argument(help="Cases as JSON: bill, answer, commitment, openings.")
    ],
    url: Annotated[str | None, typer.Option(help="A live provider with /commit and /open.")] = None,
    method: Annotated[str, typer.Option(help='The audit, such as "verifier=rule,q=4".')] = "",
    seed: Annotated[
        int | None, typer.Option(help="Of the challenges; yours alone until it is committed.")
    ] = None,
    challenge: Annotated[
        bool, typer.Option(help="Only print which tokens the provider must open.")
    ] = False,
    key_env: Annotated[
        str | None, typer.Option(help="Environment variable with the provider's key.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as a page here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Audit bills for hidden reasoning tokens without seeing their text.

    Exit codes: 0 no inflation detected, 3 a bill does not hold, 4 too little was seen, 2 error.
    """
    with errors(as_json):
        from dataclasses import replace

        from outlay import registry
        from outlay.audit import offline
        from outlay.audit.page import write_page
        from outlay.audit.wire import Case
        from outlay.errors import InputError

        knobs = registry.parse_spec(f"coin:{method}" if method else "coin")[1]
        coin = _coin(knobs)
        if seed is not None:
            coin = replace(coin, seed=seed)
        if challenge and url:
            raise InputError("--challenge is for files; a live provider is asked directly")
        cases: list[tuple[Path, Case]] = [(file, offline.load_case(file)) for file in files]
        if challenge:
            asked = {str(file): offline.wanted(coin, case) for file, case in cases}
            show_json(asked)
            return
        key = _key(key_env)
        reports: dict[str, Report] = {}
        for file, case in cases:
            if url:
                reports[str(file)] = offline.audit_live(coin, case, url, key=key)
            else:
                reports[str(file)] = offline.audit_case(coin, case)
        if html is not None:
            write_page(html, reports, live=bool(url))
        if as_json:
            show_json({name: offline.report_json(report) for name, report in reports.items()})
        else:
            for name, report in reports.items():
                _show(name, report, live=bool(url))
        verdicts = {report.verdict for report in reports.values()}
    if "malicious" in verdicts:
        raise typer.Exit(MALICIOUS)
    if "inconclusive" in verdicts:
        raise typer.Exit(INCONCLUSIVE)


def _coin(knobs: dict[str, str]) -> CoIn:
    """The audit with knobs as they are written in a spec."""
    import json
    from dataclasses import fields

    from outlay.audit.coin import CoIn
    from outlay.errors import InputError

    known = {field.name for field in fields(CoIn)}
    values: dict[str, Any] = {}
    for name, text in knobs.items():
        if name not in known:
            raise InputError(f"--method: no knob {name!r}; there are {', '.join(sorted(known))}")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    try:
        return CoIn(**values)
    except TypeError as error:
        raise InputError(f"--method {knobs}: {error}") from error


def _key(variable: str | None) -> str:
    from outlay.errors import InputError

    if variable is None:
        return ""
    if not os.environ.get(variable):
        raise InputError(f"--key-env {variable}: this environment variable is not set")
    return os.environ[variable]


def _show(name: str, report: Report, *, live: bool) -> None:
    from outlay.audit.page import lines

    colours = {"benign": "green", "malicious": "red", "inconclusive": "yellow"}
    first, *rest = lines(report, live=live)
    typer.secho(f"{name}: {first}", fg=colours[report.verdict], bold=True)
    for line in rest:
        typer.echo(f"  {line}")
