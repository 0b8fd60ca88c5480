"""Traces: made from real text, written, read, and refused where they are wrong."""

from __future__ import annotations

import json

import pytest

from outlay.errors import InputError
from outlay.schedule import Request
from outlay.schedule.traces import LONG, MIXED, Trace, TraceSpec, make, read
from tiny_models import tiny_tokenizer

SPEC = TraceSpec("some", 12, (40, 400), (2, 5))


@pytest.fixture(scope="module")
def trace() -> Trace:
    return make(SPEC, tiny_tokenizer(), 4.0)


def test_a_seed_gives_one_trace(trace: Trace) -> None:
    assert make(SPEC, tiny_tokenizer(), 4.0).digest == trace.digest
    other = TraceSpec("some", 12, (40, 400), (2, 5), seed=1)
    assert make(other, tiny_tokenizer(), 4.0).digest != trace.digest


def test_prompts_are_real_functions_within_the_bounds(trace: Trace) -> None:
    for request in trace.requests:
        assert 40 <= len(request.prompt) <= 400
        assert 2 <= request.max_new <= 5
    texts = [tiny_tokenizer().decode(list(request.prompt)) for request in trace.requests]
    assert all("def " in text for text in texts)
    assert len({len(request.prompt) for request in trace.requests}) > 3


def test_arrivals_are_a_poisson_process_of_the_rate() -> None:
    trace = make(TraceSpec("many", 400, (1, 4), (1, 1)), tiny_tokenizer(), 8.0)
    gaps = [b.arrival - a.arrival for a, b in zip(trace.requests, trace.requests[1:], strict=False)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / 8, rel=0.15)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.4)


def test_another_rate_scales_the_gaps_and_nothing_else(trace: Trace) -> None:
    faster = trace.at_rate(8.0)
    assert [r.prompt for r in faster.requests] == [r.prompt for r in trace.requests]
    assert faster.requests[-1].arrival == pytest.approx(trace.requests[-1].arrival / 2)
    with pytest.raises(InputError, match="rate=0"):
        trace.at_rate(0)


def test_a_file_gives_the_same_trace_back(trace: Trace, tmp_path) -> None:
    extra = Request(99, (1, 2), 3, 1e9, frozenset({2}), 5.0, 4)
    full = Trace("some", 0, 4.0, (*trace.requests, extra))
    again = read(full.write(tmp_path / "t.jsonl"), vocabulary=len(tiny_tokenizer()))
    assert again == full
    assert again.digest == full.digest


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no header"),
        (["{}"], "no header"),
        (["[1]"], "no JSON object"),
        (["{"], "line 1 is no JSON"),
        (['{"trace": "t"}'], "has no request"),
        (['{"trace": "t"}', '{"arrival": 0, "max_new": 1}'], "line 2 lacks 'prompt'"),
        (['{"trace": "t"}', '{"arrival": 0, "max_new": 1, "prompt": []}'], "line 2.*empty"),
        (['{"trace": "t"}', '{"arrival": -1, "max_new": 1, "prompt": [1]}'], "line 2.*arrival"),
        (['{"trace": "t"}', '{"arrival": 0, "max_new": "x", "prompt": [1]}'], "is no request"),
        (['{"trace": "t"}', '{"arrival": 0, "max_new": 1, "prompt": [999]}'], "vocabulary of 300"),
        (
            [
                '{"trace": "t"}',
                '{"arrival": 1, "max_new": 1, "prompt": [1]}',
                '{"arrival": 0, "max_new": 1, "prompt": [1]}',
            ],
            "not sorted",
        ),
        (
            [
                '{"trace": "t"}',
                '{"id": 1, "arrival": 0, "max_new": 1, "prompt": [1]}',
                '{"id": 1, "arrival": 0, "max_new": 1, "prompt": [1]}',
            ],
            "repeats an id",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(tmp_path, lines: list[str], message: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(lines or [json.dumps({"no": 1})]) + "\n")
    with pytest.raises(InputError, match=message):
        read(path, vocabulary=300)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"requests": 0}, "requests=0"),
        ({"prompt": (5, 4)}, "prompt="),
        ({"new": (0, 4)}, "new="),
        ({"unit": "page"}, "unit='page'"),
    ],
)
def test_specs_out_of_range_are_named(fields: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TraceSpec(**{"name": "t", "requests": 1, "prompt": (1, 2), "new": (1, 2), **fields})


def test_the_named_traces_are_one_of_long_prompts_and_one_mixed() -> None:
    assert LONG.prompt[0] >= 256
    assert MIXED.prompt[0] <= 32 <= MIXED.prompt[1]
    assert MIXED.new[1] > LONG.new[1]
