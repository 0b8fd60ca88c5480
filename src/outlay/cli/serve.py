"""`outlay serve`: the gateway."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outlay.cli import errors

if TYPE_CHECKING:
    from outlay.gateway.config import Config

EXAMPLE = """\
# outlay serve gateway.toml
[server]
port = 8080

[store]
url = "sqlite:///outlay.db"

[upstreams.here]
local = "embedded"

# [upstreams.openai]
# url = "https://api.openai.com/v1"
# api_key_env = "OPENAI_API_KEY"

[models."smollm2-135m"]
upstream = "here"
context = 2048
price = { input = 0.01, output = 0.02 } # US dollars per million tokens

[routes.default]
models = ["*"]
default_max_output = 256
choose = ["short", "none"] # by a request's own field: {"outlay": {"policy": "short"}}

# [telemetry] # traces over OTLP/HTTP; needs the extra 'otel'
# endpoint = "http://127.0.0.1:4318/v1/traces"

[policies.short] # see 'outlay policy explain'
prompt = "bm25"
above = 1000
keep = 0.5
"""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def serve(
        config: Annotated[
            Path | None, typer.Argument(help="TOML file; without it, the environment alone.")
        ] = None,
        host: Annotated[str | None, typer.Option(help="Overrides server.host.")] = None,
        port: Annotated[int | None, typer.Option(help="Overrides server.port.")] = None,
        workers: Annotated[int | None, typer.Option(help="Overrides server.workers.")] = None,
        example: Annotated[
            bool, typer.Option("--example", help="Print an example file and stop.")
        ] = False,
        check: Annotated[
            bool, typer.Option("--check", help="Read the configuration, say what it is, stop.")
        ] = False,
        as_json: Annotated[bool, typer.Option("--json", help="With --check: JSON.")] = False,
    ) -> None:
        """Serve models behind hard budgets, with an OpenAI-compatible API and a dashboard."""
        with errors(as_json):
            if example:
                typer.echo(EXAMPLE, nl=False)
                return
            import os

            for name, value in (("HOST", host), ("PORT", port), ("WORKERS", workers)):
                if value is not None:
                    os.environ[f"OUTLAY_SERVER__{name}"] = str(value)
            from outlay.cli import show_json
            from outlay.gateway.config import read

            settings = read(config)
            if check:
                from outlay.gateway import app

                app.check(settings)
                if as_json:
                    show_json(settings.model_dump(mode="json"))
                else:
                    typer.echo(summary(settings))
                return
            from outlay.gateway.run import run

            run(settings, config)


def summary(settings: Config) -> str:
    """What a configuration serves, in a few lines."""
    scheme = "https" if settings.server.certificate else "http"
    lines = [f"listens on {scheme}://{settings.server.host}:{settings.server.port}"]
    for name, model in settings.models.items():
        upstream = settings.upstreams[model.upstream]
        price = "priced" if model.price else "no price"
        lines.append(f"{name}: {model.upstream} ({upstream.url or upstream.local}), {price}")
    for name, route in settings.routes.items():
        offered = [*(policy for policy in (route.policy,) if policy), *route.choose]
        if offered:
            lines.append(f"route {name}: policies {', '.join(dict.fromkeys(offered))}")
    return "\n".join(lines)
