"""Methods and tasks by name: the table, specs, knobs, plug-ins."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay import registry
from outlay.decode.thinking_budget import ThinkingBudget
from outlay.errors import DependencyError, InputError
from outlay.reason.verifiers import SelfEvaluation
from outlay.registry import SLOTS, Entry, create, find, label, parse_spec, slug_of, split_spec
from tiny_models import tiny_model

METHODS, TASKS, VERIFIERS = registry.methods(), registry.tasks(), registry.verifiers()


@pytest.mark.parametrize("entry", METHODS + TASKS + VERIFIERS, ids=lambda entry: entry.slug)
def test_every_entry_is_a_frozen_dataclass_of_its_room(entry: Entry) -> None:
    cls: Any = entry.load()
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen
    module, _, name = entry.target.partition(":")
    assert cls.__module__ == module
    assert cls.__qualname__ == name
    assert module.split(".")[1] == entry.room
    assert entry.title
    assert entry.summary
    assert "\n" not in entry.summary


def test_names_are_unique_and_tables_do_not_share_them() -> None:
    names = [entry.slug for entry in METHODS + TASKS + VERIFIERS]
    assert len(set(names)) == len(names)
    assert len({entry.target for entry in METHODS + TASKS + VERIFIERS}) == len(names)


def test_systems_hold_every_entry_under_the_name_of_the_table_of_systems() -> None:
    found = registry.systems()
    assert sum(map(len, found.values())) == len(METHODS + TASKS + VERIFIERS)
    assert [entry.slug for entry in found["kg-traces"]] == ["factuality"]
    assert [entry.slug for entry in found["bm25"]] == ["bm25"]


@pytest.mark.parametrize(
    "entry", [e for e in METHODS + TASKS + VERIFIERS if e.proof], ids=lambda entry: entry.slug
)
def test_every_promised_proof_exists(entry: Entry) -> None:
    module = importlib.import_module(f"outlay.proofs.{entry.system.replace('-', '_')}")
    assert callable(module.run)


def test_looking_at_the_table_imports_no_method() -> None:
    code = (
        "import sys; from outlay import registry; registry.methods(); registry.tasks(); "
        "bad = [m for m in sys.modules if m.startswith(('torch', 'outlay.prompt', 'outlay.dec'))];"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# -- specs ------------------------------------------------------------------------------------


def test_specs_are_split_into_slug_and_knobs() -> None:
    assert parse_spec("m1") == ("m1", {})
    assert parse_spec(" m1 : n_wait = 2 , max_think=8,") == (
        "m1",
        {"n_wait": "2", "max_think": "8"},
    )
    assert parse_spec("t:operations=[2, 4],signs=+-") == (
        "t",
        {"operations": "[2, 4]", "signs": "+-"},
    )
    assert parse_spec('m:a="x,y=\\"]",b=1') == ("m", {"a": '"x,y=\\"]"', "b": "1"})
    for bad in ("m1:n_wait", "m1:=3"):
        with pytest.raises(InputError, match="is not knob=value"):
            parse_spec(bad)


def test_separators_inside_brackets_and_quotes_belong_to_the_value() -> None:
    assert split_spec('a:x="p+q"+b:y=[1+2]+c', "+") == ['a:x="p+q"', "b:y=[1+2]", "c"]
    assert split_spec("", "+") == [""]


def test_near_misses_are_answered_with_what_was_meant() -> None:
    with pytest.raises(InputError, match="unknown method 'longcodzip'; did you mean longcodezip"):
        find("methods", "longcodzip")
    with pytest.raises(InputError, match="unknown task 'chainarit'; did you mean chainarith"):
        find("tasks", "chainarit")
    with pytest.raises(InputError, match="unknown method 'qqqq'; known are: longcodezip, dynaicl"):
        find("methods", "qqqq")
    with pytest.raises(InputError, match="m1 has no knob 'max_thnk'; did you mean max_think"):
        create("methods", "m1:max_thnk=4")


@pytest.mark.parametrize("spec", ["m1:max_think=many", "m1:max_think=[1]", "m1:max_think=1.5"])
def test_values_of_the_wrong_type_are_refused(spec: str) -> None:
    with pytest.raises(InputError, match=r"m1: max_think=.* is not usable"):
        create("methods", spec)


def test_knobs_arrive_with_their_type() -> None:
    made = create("methods", "m1:max_think=12,think_open=<think>,think_close=</think>")
    assert (made.max_think, made.think_close) == (12, "</think>")
    task = create("tasks", "chainarith:operations=[3,5]")
    assert task.operations == (3, 5)
    assert create("methods", "m1:max_think=None").max_think is None


def test_text_that_looks_like_a_number_can_be_text() -> None:
    assert create("methods", "m1:overthink_prefix=42").overthink_prefix == "42"
    assert create("methods", 'm1:overthink_prefix="42"').overthink_prefix == "42"


def test_objects_are_given_not_written() -> None:
    with pytest.raises(InputError, match=r"longcodezip needs scorer; write longcodezip:scorer="):
        create("methods", "longcodezip")
    with pytest.raises(InputError, match="scorer is an object, which a spec cannot write"):
        create("methods", "longcodezip:scorer=embedded")
    scorer = tiny_model()
    assert create("methods", "longcodezip", given={"scorer": scorer}).scorer is scorer
    create("methods", "head", given={"scorer": scorer})  # a method without the field


# -- labels -----------------------------------------------------------------------------------

TEXT = st.one_of(
    st.text(min_size=1, max_size=8), st.sampled_from(["5", "true", "None", "a,b", '"'])
)


@given(st.integers(1, 99), TEXT, TEXT)
def test_a_label_makes_the_same_method_again(max_think: int, prefix: str, newline: str) -> None:
    made = ThinkingBudget(max_think=max_think, overthink_prefix=prefix, newline=newline)
    assert create("methods", label(made)) == made


@pytest.mark.parametrize("entry", METHODS, ids=lambda entry: entry.slug)
def test_defaults_are_not_spelled_out(entry: Entry) -> None:
    given = {"scorer": tiny_model(), "verifier": SelfEvaluation(tiny_model())}
    if entry.room not in SLOTS:  # what a stack is given is not for them
        given = {}
    made = create("methods", entry.slug, given=given)
    assert label(made) == entry.slug
    assert slug_of(made) == entry.slug


def test_what_is_not_registered_goes_by_its_class() -> None:
    assert slug_of(Path("x")) == type(Path("x")).__name__
    assert label(object()) == "object"


# -- plug-ins ---------------------------------------------------------------------------------

PLUGIN = """
from dataclasses import dataclass
from outlay.registry import Entry

@dataclass(frozen=True)
class Shorter:
    ratio: float = 0.5
    span: tuple[int, int] = (1, 2)

entry = Entry({slug!r}, "{module}:Shorter", "prompt", "Shorter", "a plug-in")
wrong = 5
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a package with an entry point on the path."""

    def install(
        module: str, slug: str, value: str = "entry", kind: Literal["methods", "tasks"] = "methods"
    ) -> None:
        (tmp_path / f"{module}.py").write_text(PLUGIN.format(slug=slug, module=module))
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[outlay.{kind}]\nx = {module}:{value}\n")

    monkeypatch.syspath_prepend(str(tmp_path))
    registry._table.cache_clear()
    yield install
    registry._table.cache_clear()


def test_entries_of_other_packages_are_found(plugin: Any) -> None:
    plugin("outlay_plug_a", "shorter")
    assert registry.methods()[-1].slug == "shorter"
    made = create("methods", "shorter:ratio=0.25,span=[3,4]")
    assert (made.ratio, made.span) == (0.25, (3, 4))
    assert label(made) == "shorter:ratio=0.25,span=[3, 4]"
    assert create("methods", label(made)) == made


def test_bad_entry_points_are_named(plugin: Any) -> None:
    plugin("outlay_plug_b", "shorter", value="wrong")
    with pytest.raises(InputError, match=r"outlay_plug_b:wrong\) is no outlay Entry"):
        registry.methods()


def test_a_name_that_is_taken_is_refused(plugin: Any) -> None:
    plugin("outlay_plug_c", "longcodezip")
    with pytest.raises(InputError, match="takes the name 'longcodezip', which exists already"):
        registry.methods()


def test_a_plugin_that_does_not_import_is_named(plugin: Any) -> None:
    plugin("outlay_plug_d", "shorter", value="missing")
    with pytest.raises(DependencyError, match=r"outlay_plug_d:missing\) cannot be loaded"):
        registry.methods()


def test_a_missing_dependency_names_the_extra() -> None:
    with pytest.raises(DependencyError, match=r"x needs a package .*pip install 'outlay\[all\]'"):
        Entry("x", "no_such_module_here:X", "prompt", "X", "x").load()
