"""`outlay serve`, `keys` and `budgets` on a database of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from outlay import cli
from outlay.cli import budgets, keys, serve

runner = CliRunner()


@pytest.fixture
def call(tmp_path: Path) -> Any:
    import typer

    app = typer.Typer()
    for command in (serve, keys, budgets):
        command.register(app)
    config = tmp_path / "g.toml"
    config.write_text(f'[store]\nurl = "sqlite:///{tmp_path}/g.db"\n')

    def run(*words: str, code: int = 0) -> Any:
        result = runner.invoke(app, [*words, "--config", str(config), "--json"])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)

    return run


def test_a_key_is_made_listed_rotated_and_revoked(call: Any) -> None:
    made = call("keys", "create", "ann", "--team", "red", "--model", "gpt*", "--days", "2")
    assert made["token"].startswith(f"olk_{made['id']}_")
    (row,) = call("keys", "list")
    assert (row["name"], row["team"], row["models"]) == ("ann", "red", ["gpt*"])
    assert "token" not in row
    new = call("keys", "rotate", made["id"])
    assert new["id"] != made["id"]
    call("keys", "revoke", new["id"])
    assert all(each["revoked_at"] for each in call("keys", "list"))
    assert "no key has the id" in call("keys", "revoke", "x", code=2)["error"]["message"]


def test_a_budget_is_made_listed_changed_and_archived(call: Any) -> None:
    made = call("budgets", "create", "all", "--usd", "12.50", "--window", "week")
    (row,) = call("budgets", "list")
    assert (row["unit"], row["amount"], row["left"]) == ("nanousd", 12_500_000_000, 12_500_000_000)
    call("budgets", "change", made["id"], "5")
    assert call("budgets", "list")[0]["amount"] == 5
    call("budgets", "archive", made["id"])
    assert call("budgets", "list") == []
    message = call("budgets", "create", "x", code=2)["error"]["message"]
    assert "--tokens or as --usd" in message


def test_the_example_configuration_is_one(tmp_path: Path) -> None:
    import typer

    app = typer.Typer()
    serve.register(app)
    path = tmp_path / "g.toml"
    path.write_text(serve.EXAMPLE)
    result = runner.invoke(app, [str(path), "--check"])
    assert result.exit_code == 0, result.output
    assert "listens on http://127.0.0.1:8080" in result.output
    assert "smollm2-135m: here (embedded), priced" in result.output


def test_every_command_is_registered() -> None:
    assert {"serve", "keys", "budgets"} <= set(cli.COMMANDS)
