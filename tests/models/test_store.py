"""The cache of converted models: whole, or rebuilt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from outlay.errors import ModelError
from outlay.models import store


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OUTLAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Maker:
    """Writes two files, and counts how often."""

    def __init__(self) -> None:
        self.builds = 0

    def __call__(self, folder: Path) -> dict[str, Any]:
        self.builds += 1
        (folder / "weights.bin").write_bytes(b"w" * 1000)
        (folder / "tokens.json").write_text("{}")
        return {"licence": "Apache-2.0"}


def test_a_whole_folder_is_built_once() -> None:
    make = Maker()
    folder, reason = store.build("m", make)
    assert reason == "it was never completed"
    assert store.build("m", make) == (folder, None)
    assert make.builds == 1
    assert json.loads((folder / store.MANIFEST).read_text())["licence"] == "Apache-2.0"
    assert store.build("m", make, force=True) == (folder, "it was asked for")
    assert make.builds == 2


def flip(folder: Path) -> None:
    path = folder / "weights.bin"
    path.write_bytes(b"w" * 999 + b"x")
    os.utime(path, ns=(0, 0))  # a copy that keeps old times is found by its checksum


def no_files(folder: Path) -> None:
    (folder / store.MANIFEST).write_text('{"files": {}}')


DAMAGE = {
    "flipped": (flip, "weights.bin does not match its checksum"),
    "truncated": (lambda f: (f / "weights.bin").write_bytes(b"w"), "has 1 bytes, not 1000"),
    "missing": (lambda f: (f / "tokens.json").unlink(), "tokens.json cannot be read"),
    "half built": (lambda f: (f / store.MANIFEST).unlink(), "never completed"),
    "cut manifest": (lambda f: (f / store.MANIFEST).write_text('{"fi'), "manifest is damaged"),
    "binary manifest": (lambda f: (f / store.MANIFEST).write_bytes(b"\xff\0"), "is damaged"),
    "other manifest": (lambda f: (f / store.MANIFEST).write_text("[]"), "manifest is damaged"),
    "odd manifest": (
        lambda f: (f / store.MANIFEST).write_text('{"files": {"tokens.json": {}}}'),
        "manifest is damaged",
    ),
    "list manifest": (lambda f: (f / store.MANIFEST).write_text('{"files": []}'), "is damaged"),
    "empty manifest": (no_files, "names no files"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_rebuilt_and_says_why(damage: str) -> None:
    make = Maker()
    folder, _ = store.build("m", make)
    spoil, why = DAMAGE[damage]
    spoil(folder)
    again, reason = store.build("m", make)
    assert again == folder
    assert reason is not None
    assert why in reason
    assert make.builds == 2
    assert store.verify(folder) is None


def test_touching_a_file_costs_a_hash_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    make = Maker()
    folder, _ = store.build("m", make)
    hashed: list[str] = []
    true_hash = store.sha256

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return true_hash(path)

    monkeypatch.setattr(store, "sha256", counted)
    assert store.verify(folder) is None
    assert hashed == []
    os.utime(folder / "weights.bin", ns=(0, 0))
    assert store.build("m", make) == (folder, None)
    assert hashed == ["weights.bin"]
    assert make.builds == 1


def test_a_failed_build_leaves_nothing_and_keeps_what_was_there(cache: Path) -> None:
    folder, _ = store.build("m", Maker())

    def fails(work: Path) -> dict[str, Any]:
        (work / "half").write_text("x")
        raise ModelError("no network")

    with pytest.raises(ModelError, match="no network"):
        store.build("m", fails, force=True)
    assert store.verify(folder) is None
    assert sorted(p.name for p in cache.iterdir()) == ["m", "m.lock"]


def test_what_a_killed_build_left_is_cleared_away(cache: Path) -> None:
    (cache / ".m-dead").mkdir(parents=True)
    (cache / ".m-dead" / "half").write_text("x")
    store.build("m", Maker())
    assert sorted(p.name for p in cache.iterdir()) == ["m", "m.lock"]


def test_a_cache_that_cannot_be_written_is_an_error_that_names_the_knob(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OUTLAY_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="set OUTLAY_CACHE"):
        store.build("m", Maker())


BUILDER = """
import sys, time
from pathlib import Path
from outlay.models import store

def make(folder):
    with open(sys.argv[1], "a") as log:
        log.write("built\\n")
    time.sleep(0.5)
    (folder / "weights.bin").write_bytes(b"w")
    return {}

print(store.build("m", make)[0])
"""


def test_two_processes_build_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    run = [sys.executable, "-c", BUILDER, str(log)]
    both = [subprocess.Popen(run, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {process.communicate(timeout=60)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(answers) == 1
    assert log.read_text() == "built\n"


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    assert store.cache_dir() == cache
    monkeypatch.delenv("OUTLAY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert store.cache_dir() == Path("/somewhere/outlay")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert store.cache_dir() == Path.home() / ".cache" / "outlay"
