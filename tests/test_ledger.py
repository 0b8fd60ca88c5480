"""Ledgers: totals, merging, threads, processes, storage."""

import json
import pickle
import threading
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import InputError, OutlayError, ResultsError
from outlay.ledger import Entry, Ledger, Totals

COUNT = st.integers(0, 10**6)
ENTRIES = st.builds(
    Entry,
    stage=st.sampled_from(["prompt", "vision", "think", "answer", "train"]),
    role=st.sampled_from(["target", "scorer", "draft", "verifier", "planner", "judge"]),
    prompt_new=COUNT,
    prompt_cached=COUNT,
    generated=COUNT,
    forced=COUNT,
    retried=COUNT,
    estimated=st.booleans(),
    branch=st.sampled_from([None, "a", "b", "c", "d"]),
    method=st.sampled_from(["", "m1", "longcodezip"]),
    seconds=st.integers(0, 1000).map(lambda n: n / 8),
    flops=st.integers(0, 10**6).map(float),
    note=st.sampled_from(["", "usage does not add up", "zwei\u2028Zeilen\nund \u00fc"]),
)
LEDGERS = st.builds(
    Ledger,
    st.lists(ENTRIES, max_size=12),
    st.frozensets(st.sampled_from(["a", "b", "c", "d", "elsewhere"])),
)


@given(LEDGERS)
def test_everything_produced_is_delivered_or_discarded(ledger):
    for total in (ledger.totals(), *ledger.by("role").values(), *ledger.by("stage").values()):
        assert total.generated + total.forced == total.delivered + total.discarded
        assert total.delivered >= 0
        assert total.discarded >= 0


@given(LEDGERS)
def test_totals_equal_a_plain_sum_of_the_entries(ledger):
    total = ledger.totals()
    for name in ("prompt_new", "prompt_cached", "generated", "forced", "retried", "flops"):
        assert getattr(total, name) == sum(getattr(entry, name) for entry in ledger)
    assert total.calls == len(ledger)
    assert total.prompt == total.prompt_new + total.prompt_cached
    assert total.all == total.prompt + total.generated + total.forced + total.retried
    assert total.delivered == sum(
        e.generated + e.forced for e in ledger if e.branch in ledger.delivered
    )
    assert total.estimated == any(e.estimated for e in ledger)


@given(LEDGERS, st.sampled_from([("stage",), ("role",), ("method",), ("stage", "role", "method")]))
def test_groups_partition_the_whole(ledger, keys):
    groups = ledger.by(*keys)
    for name in ("calls", "generated", "forced", "delivered", "discarded", "seconds", "all"):
        assert sum(getattr(t, name) for t in groups.values()) == getattr(ledger.totals(), name)


@given(LEDGERS)
def test_a_filter_equals_the_group_of_that_name(ledger):
    for (stage, role), total in ledger.by("stage", "role").items():
        assert ledger.totals(stage=stage, role=role) == total
    assert Ledger().totals(stage="think") == Totals()


@given(LEDGERS, LEDGERS, LEDGERS)
def test_merging_is_associative_with_the_empty_ledger_as_unit(a, b, c):
    assert (a + b) + c == a + (b + c)
    assert a + Ledger() == a == Ledger() + a
    grown = Ledger(a.entries, a.delivered)
    grown.extend(b)
    assert grown == a + b


def test_a_ledger_may_be_extended_by_itself():
    ledger = Ledger()
    ledger.record("answer", "target", generated=2)
    ledger.extend(ledger)
    assert ledger.totals().generated == 4


@given(LEDGERS)
def test_pickles_and_dicts_give_the_same_ledger_back(ledger):
    assert pickle.loads(pickle.dumps(ledger)) == ledger  # noqa: S301 - our own bytes
    assert Ledger.from_dict(json.loads(json.dumps(ledger.to_dict()))) == ledger


@given(LEDGERS, LEDGERS)
def test_lines_on_disk_give_the_same_ledger_back_and_concatenate(tmp_path_factory, a, b):
    folder = tmp_path_factory.mktemp("ledgers")
    for name, ledger in (("a", a), ("b", b)):
        ledger.to_jsonl(folder / name)
        assert Ledger.from_jsonl(folder / name) == ledger
    both = folder / "both"
    both.write_text((folder / "a").read_text() + (folder / "b").read_text())
    assert Ledger.from_jsonl(both) == a + b


def test_delivery_may_be_marked_after_the_fact():
    ledger = Ledger()
    ledger.record("think", "target", generated=5, forced=1, branch="a")
    ledger.record("think", "target", generated=7, branch="b")
    assert ledger.totals().delivered == 0
    ledger.deliver(["a"])
    assert (ledger.totals().delivered, ledger.totals().discarded) == (6, 7)


def test_notes_are_distinct_and_in_order():
    ledger = Ledger()
    for note in ("second", "", "first", "second"):
        ledger.record("answer", "target", note=note)
    assert ledger.notes() == ["second", "first"]


def test_eight_threads_lose_nothing():
    ledger = Ledger()
    start = threading.Barrier(8)

    def work(index: int) -> None:
        start.wait()
        for turn in range(500):
            ledger.record("think", "target", generated=turn, branch=f"{index}-{turn}")
            if turn % 2:
                ledger.deliver([f"{index}-{turn}"])
            if turn % 100 == 0:
                ledger.totals()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(ledger) == 4_000
    assert len({entry.branch for entry in ledger}) == 4_000
    total = ledger.totals()
    assert total.generated == 8 * sum(range(500))
    assert total.delivered == 8 * sum(range(1, 500, 2))


def spend(index: int) -> Ledger:
    ledger = Ledger()
    for turn in range(5):
        ledger.record("answer", "draft", generated=index + turn, branch=f"{index}-{turn}")
    ledger.deliver([f"{index}-0"])
    return ledger


def test_ledgers_from_processes_merge_to_the_serial_one():
    serial = Ledger()
    for index in range(6):
        serial.extend(spend(index))
    # Not forked: other tests may have left threads behind.
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        parallel = sum(pool.map(spend, range(6)), Ledger())
    assert parallel == serial
    assert Counter(parallel.entries) == Counter(serial.entries)


def test_a_ledger_is_no_key():
    with pytest.raises(TypeError):
        hash(Ledger())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"stage": "draft"}, "choose one of prompt, vision"),
        ({"role": "policy"}, "choose one of target, scorer"),
        ({"generated": -1}, "generated=-1"),
        ({"forced": 1.5}, "forced=1.5"),
        ({"prompt_new": "3"}, "prompt_new='3'"),
        ({"seconds": -0.1}, "seconds=-0.1"),
        ({"flops": float("nan")}, "flops=nan"),
    ],
)
def test_bad_entries_are_refused_with_the_value(fields, words):
    with pytest.raises(InputError, match=r".") as caught:
        Ledger().record(**{"stage": "answer", "role": "target", **fields})
    assert words in str(caught.value)
    assert isinstance(caught.value, OutlayError)


@pytest.mark.parametrize(
    "line",
    [
        '{"stage": "answer"',
        "5",
        '"delivered"',
        "[]",
        '{"delivered": 3}',
        '{"stage": "answer"}',
        '{"stage": "answer", "role": "target", "tokens": 5}',
        '{"stage": "answer", "role": "target", "generated": -5}',
        '{"stage": "nowhere", "role": "target"}',
    ],
)
def test_a_damaged_file_is_a_results_error(tmp_path, line):
    path = tmp_path / "ledger.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ResultsError):
        Ledger.from_jsonl(path)


@pytest.mark.parametrize("data", [{}, {"entries": 3}, {"entries": [], "delivered": 3}, []])
def test_a_damaged_dict_is_a_results_error(data):
    with pytest.raises(ResultsError, match="delete it and run again"):
        Ledger.from_dict(data)
