"""The command line: JSON for tools, one line for a mistake, exit codes."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from outlay.cli import COMMANDS, app

SOURCE = '''def area(width, height):
    """Surface of a rectangle."""
    return width * height


def greet(name):
    """Say hello."""
    return "hello " + name
'''


@pytest.fixture(scope="session")
def runner() -> CliRunner:
    for name in COMMANDS:
        importlib.import_module(f"outlay.cli.{name}").register(app)
    return CliRunner()


@pytest.fixture
def cli(runner: CliRunner) -> Any:
    def call(*words: object, stdin: bytes | None = None) -> Any:
        return runner.invoke(app, [str(word) for word in words], input=stdin)

    return call


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "shapes.py"
    path.write_text(SOURCE)
    return path


def only_json(result: Any) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


# -- one JSON document ------------------------------------------------------------------------


def test_methods_give_exactly_these_keys(cli: Any) -> None:
    for words in (("methods", "--json"), ("methods", "--tasks", "--json")):
        rows = only_json(cli(*words))
        assert len(rows) > 4
        for row in rows:
            assert set(row) == {"slug", "room", "paper", "title", "class", "summary"}
    slugs = [row["slug"] for row in only_json(cli("methods", "--json"))]
    assert {"longcodezip", "m1", "plain"} <= set(slugs)


def test_knobs_of_one_method(cli: Any) -> None:
    rows = only_json(cli("methods", "m1", "--json"))
    assert {"knob": "max_think", "type": "int | None", "default": "None"} in rows
    assert only_json(cli("methods", "chainarith", "--json"))[0]["knob"] == "operations"
    assert only_json(cli("methods", "longcodezip", "--json"))[0]["default"] == "required"


def test_doctor_lists_models_and_machine(cli: Any) -> None:
    found = only_json(cli("doctor", "--json"))
    assert {item["what"] for item in found["findings"]} >= {"python", "extra local", "device"}
    assert all(set(item) == {"what", "ok", "state", "advice"} for item in found["findings"])
    assert "cpu" in found["machine"]


def test_doctor_says_what_to_do(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTLAY_CACHE", str(tmp_path))
    text = cli("doctor").stdout
    assert "never completed" in text
    assert "-> outlay models fetch" in text


def test_models_are_listed_with_their_state(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTLAY_CACHE", str(tmp_path))
    rows = only_json(cli("models", "list", "--json"))
    assert (rows[0]["spec"], rows[0]["ready"]) == ("embedded", False)
    assert any(row["spec"] == "reasoner" and row["ready"] for row in rows)
    assert "not ready" in cli("models", "list").stdout


@pytest.mark.model
def test_fetching_what_is_there_builds_nothing(cli: Any, model: Any) -> None:
    found = only_json(cli("models", "fetch", "--json"))
    assert (found["built"], found["reason"]) == (False, None)
    assert Path(found["path"], "model.safetensors").exists()
    assert "ready: " in cli("models", "fetch").stdout


def test_ask_answers_within_its_budget(cli: Any) -> None:
    words = ("ask", "Q:3+4+5=", "--raw", "--model", "reasoner", "--budget", 7)
    found = only_json(cli(*words, "--json"))
    assert set(found) == {"text", "finish_reason", "thinking", "budget", "ledger"}
    spent = sum(entry.get("generated", 0) for entry in found["ledger"]["entries"])
    assert spent <= 7
    assert found["budget"] == "7 generated tokens"
    plain = cli(*words)
    assert plain.exit_code == 0
    assert found["text"] in plain.stdout
    assert "answer/target: " in plain.stderr
    assert f"{spent} generated" in plain.stderr


def test_ask_runs_a_decoder(cli: Any) -> None:
    found = only_json(
        cli("ask", "Q:3+4", "--raw", "--model", "reasoner", "--budget", 40, "--decode",
            "m1:max_think=5,max_answer=8,think_open=<think>,think_close=</think>", "--json")
    )  # fmt: skip
    assert sum(e.get("generated", 0) for e in found["ledger"]["entries"]) <= 40


def test_ask_shortens_its_context(cli: Any, source: Path) -> None:
    words = ("ask", "Q", "--raw", "--model", "reasoner", "--budget", 4, "--context", source)
    head = (*words, "--prompt", "head")
    for counts, budget in (("generated", 4), ("all", 60)):
        found = only_json(
            cli(*head, "--context-budget", 20, "--counts", counts, "--budget", budget, "--json")
        )
        entries = found["ledger"]["entries"]
        prompt = sum(entry.get("prompt_new", 0) for entry in entries)
        spent = sum(entry.get("generated", 0) for entry in entries)
        assert 4 < prompt <= 20 + 6  # the context and the question under it
        assert (spent if counts == "generated" else spent + prompt) <= budget
    for wrong, why in (
        (head, "needs --context-budget"),
        ((*words, "--context-budget", 20), "needs a method that shortens"),
        ((*head, "--context-budget", 20, "--counts", "all"), "raise tokens="),
        ((*words, "--counts", "prompt"), "--counts prompt limits no answer"),
    ):
        result = cli(*wrong)
        assert result.exit_code == 2
        assert why in result.stderr


def test_compare_gives_points_and_a_page(cli: Any, tmp_path: Path) -> None:
    words = ("compare", "--task", "chainarith", "--model", "reasoner", "--method", "plain",
             "--budget", 8, "--budget", 16, "--n", 3, "--out", tmp_path / "run")  # fmt: skip
    found = only_json(cli(*words, "--json"))
    assert [point["verdict"] for point in found["points"]]
    assert Path(found["report"]).exists()
    assert Path(found["folder"], "records.jsonl").read_text().count("\n") == 6
    table = cli(*words)  # the same run again: nothing to do, the table to see
    assert table.exit_code == 0
    assert "chainarith" in table.stdout
    assert f"report: {Path(found['report']).resolve()}" in table.stdout.replace("\n", "")


def test_eval_gives_efficiency_and_traces(cli: Any, tmp_path: Path) -> None:
    words = ["eval", "chainarith:operations=[2,3]", "--n", 3, "--max-tokens", 4]
    found = cli(*words, "--out", tmp_path, "--json")
    assert found.exit_code == 0, found.output
    said = json.loads(found.stdout)
    (point,) = said["points"]
    assert point["efficiency"]["n"] == 3
    assert point["efficiency"]["tokens_mean"] <= 4
    assert Path(said["traces"]).exists()
    assert Path(said["report"]).exists()
    shown = cli(*words, "--out", tmp_path)
    assert "per correct" in shown.stdout
    assert "traces:" in shown.stdout


def test_compare_reads_a_run_file(cli: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        '[[compare]]\ntask = "chainarith"\nmethods = ["plain"]\nbudgets = [4]\nn = 2\n'
        'model = "reasoner"\n'
    )
    found = only_json(cli("compare", path, "--out", tmp_path / "run", "--json"))
    assert len(found["points"]) == 1


def test_compress_keeps_its_promise(cli: Any, source: Path) -> None:
    words = ("compress", source, "--budget", 25, "--method", "head", "--model", "reasoner")
    found = only_json(cli(*words, "--json"))
    assert found["tokens"] <= 25 < found["original_tokens"]
    plain = cli(*words)
    assert plain.stdout == found["text"] + "\n"
    assert "-> " in plain.stderr


def test_compress_reads_standard_input(cli: Any, source: Path) -> None:
    words = ("--budget", 25, "--method", "head", "--model", "reasoner", "--json")
    piped = only_json(cli("compress", "-", *words, "--language", "python", stdin=SOURCE.encode()))
    assert piped["text"] == only_json(cli("compress", source, *words))["text"]
    empty = cli("compress", "-", *words, stdin=b"")
    assert empty.exit_code == 2
    assert "empty" in json.loads(empty.stdout)["error"]["message"]
    binary = cli("compress", "-", *words, stdin=b"\x7fELF\0\0\1\2")
    assert binary.exit_code == 2
    assert "standard input" in json.loads(binary.stdout)["error"]["message"]


@pytest.mark.model
def test_compress_a_real_file_for_the_embedded_model(cli: Any, model: Any, tmp_path: Path) -> None:
    path = tmp_path / "part.py"
    path.write_text("\n".join(Path(textwrap.__file__).read_text().splitlines()[-45:]))
    found = only_json(
        cli("compress", path, "--budget", 150, "--question", "def indent(text, prefix):", "--json")
    )
    assert found["tokens"] == model.count(found["text"])
    assert 0.8 * 150 <= found["tokens"] <= 150 < found["original_tokens"]
    assert "indent" in found["text"]
    assert found["ledger"]["entries"][0]["role"] == "scorer"


def test_prove_refuses_what_is_not_there(cli: Any) -> None:
    result = cli("prove", "plain", "--json")
    assert result.exit_code == 2
    assert (
        "no proof for 'plain'; there are: longcodezip"
        in (json.loads(result.stdout)["error"]["message"])
    )
    assert cli("prove", "m1", "--scale", "huge").exit_code == 2


# -- mistakes ---------------------------------------------------------------------------------

REASONER = ("--model", "reasoner")
MISTAKES = {
    "unknown method": ("methods", "longcodzip"),
    "unknown task": ("compare", "--task", "chain", "--method", "plain", "--budget", "4"),
    "no task": ("compare",),
    "no method": ("compare", "--task", "chainarith"),
    "zero budget": ("ask", "x", "--budget", "0"),
    "negative budget": ("compress", __file__, "--budget", "-3", "--model", "reasoner"),
    "unknown count": ("ask", "x", "--counts", "words"),
    "missing file": ("compress", "no/such/file.py", "--budget", "9", "--model", "reasoner"),
    "no compressor": ("compress", __file__, "--budget", "9", "--method", "m1", *REASONER),
    "unknown knob": ("compress", __file__, "--budget", "9", "--method", "head:x=1", *REASONER),
    "missing run file": ("compare", "no/such.toml"),
    "unknown model": ("ask", "x", "--model", "./no-such-folder"),
    "bad mode": ("ask", "x", "--model", "reasoner@quick"),
    "unknown scale": ("prove", "m1", "--scale", "huge"),
}


@pytest.mark.parametrize("words", MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_exits_with_2_in_one_line_or_as_json(
    cli: Any, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    plain = cli(*words)
    assert plain.exit_code == 2
    assert plain.stdout == ""
    assert plain.stderr.startswith("error: ")
    assert plain.stderr.count("\n") == 1
    as_json = cli(*words, "--json")
    assert as_json.exit_code == 2
    error = json.loads(as_json.stdout)["error"]
    assert error["type"].endswith("Error")
    assert plain.stderr == f"error: {error['message']}\n"


def test_ctrl_c_exits_with_130(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from outlay import api

    def interrupted(*args: object, **knobs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "ask", interrupted)
    result = cli("ask", "x")
    assert result.exit_code == 130
    assert result.stderr == "stopped\n"


def test_the_command_runs_and_helps() -> None:
    command = [str(Path(sys.executable).with_name("outlay"))]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    for name in ("ask", "compare", "compress", "doctor", "methods", "models", "prove"):
        assert name in done.stdout
    listed = subprocess.run(
        [*command, "methods", "--json"],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert json.load(io.BytesIO(listed.stdout))


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{Path(sys.executable).with_name('outlay')} methods --json | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout == "[\n"
    assert "Traceback" not in done.stderr
