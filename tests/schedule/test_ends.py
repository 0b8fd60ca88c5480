"""Cancellation, time-outs and limits, at any moment: everything that was held is freed."""

from __future__ import annotations

import random

import pytest
from served import SCHEDULERS, simulated, some_requests

from outlay.errors import InputError
from outlay.schedule import LayeredPrefill, Request
from outlay.schedule.engine import Engine
from outlay.schedule.serving import Server
from tiny_models import tiny_network


def test_ten_thousand_requests_leave_nothing_behind() -> None:
    """Cancelled, timed out, over their limit or finished, on a small pool with preemptions."""
    rng = random.Random(0)
    server = simulated(LayeredPrefill(ref_chunk=8, max_num_batched_tokens=48), num_blocks=12)
    sent, seen = 0, set()
    while sent < 10_000 or not server.state.idle:
        while sent < 10_000 and len(server.state.jobs) < 12:
            prompt = (1,) * rng.randrange(1, 80)
            server.submit(
                Request(
                    sent,
                    prompt,
                    rng.randrange(1, 30),
                    server.time.now(),
                    timeout=rng.choice((None, None, 0.35)),
                    limit=rng.choice((None, len(prompt) + 9)),
                )
            )
            sent += 1
        for id_ in list(server.state.jobs):
            if rng.random() < 0.03:
                cohort = server.state.cohort
                seen.add(
                    "in a cohort" if cohort and any(c.id == id_ for c in cohort.chunks) else ""
                )
                assert server.cancel(id_)
            elif rng.random() < 0.02:
                server.lower(id_, 1)
        server.step()
    pool = server.state.pool
    assert (pool.free, pool.lent, pool.allocated - pool.freed) == (12, {}, 0)
    assert server.state.cohort is None
    assert [*server.state.waiting, *server.state.prefilling, *server.state.decoding] == []
    assert {timing.end for timing in server.timings.values()} == {
        "length", "limit", "timeout", "cancelled",
    }  # fmt: skip
    assert len(server.timings) == 10_000
    assert "in a cohort" in seen
    assert server.state.preemptions > 0


@pytest.mark.parametrize("name", ["layered", "layered, cut prompts", "chunked", "orca"])
def test_the_engine_frees_caches_and_hidden_states_mid_prefill(name: str) -> None:
    engine = Engine(tiny_network("Mixtral", num_hidden_layers=6))
    server = Server(engine, SCHEDULERS[name], 100, clock="virtual", cost=lambda shape: 0.1)
    rng = random.Random(1)
    for request in some_requests(30, 4):
        server.submit(request)
    while not server.state.idle:
        server.step()
        for id_ in list(server.state.jobs):
            if rng.random() < 0.1:
                server.cancel(id_)
        held = set(server.state.jobs)
        assert set(engine.caches) <= held
        assert set(engine.saved) <= held
    assert not engine.caches
    assert not engine.saved
    engine.close()


def test_a_cancelled_member_does_not_disturb_the_rest_of_its_cohort() -> None:
    network = tiny_network("Mixtral", num_hidden_layers=6)
    requests = [Request(i, tuple(range(10 + i, 40 + i)), 6) for i in range(3)]
    tokens = []
    for cancel in (False, True):
        engine = Engine(network)
        server = Server(engine, LayeredPrefill(ref_chunk=15), 100)
        for request in requests:
            server.submit(request)
        server.step()
        if cancel:
            assert 1 in engine.saved
            server.cancel(1)
            assert 1 not in engine.saved
        while not server.state.idle:
            server.step()
        tokens.append([server.timings[i].token_ids for i in (0, 2)])
        engine.close()
    assert tokens[0] == tokens[1]


def test_a_request_that_times_out_while_it_is_read_ends_then() -> None:
    server = simulated(LayeredPrefill(ref_chunk=10))
    server.submit(Request(0, (1,) * 60, 5, timeout=0.25))
    for _ in range(4):
        server.step()
    assert server.timings[0].end == "timeout"
    assert not server.timings[0].tokens
    assert server.state.idle


def test_a_limit_ends_a_request_at_its_last_allowed_token() -> None:
    server = simulated(LayeredPrefill())
    server.submit(Request(0, (1,) * 10, 50, limit=13))
    while not server.state.idle:
        server.step()
    assert server.timings[0].end == "limit"
    assert len(server.timings[0].token_ids) == 3


def test_end_of_text_ends_a_request() -> None:
    server = simulated(LayeredPrefill())
    server.submit(Request(0, (1,), 50, eos=frozenset({0})))  # the simulator says 0
    server.step()
    assert server.timings[0].end == "eos"


def test_cancelling_what_is_not_there_is_no_error_and_lowering_it_is() -> None:
    server = simulated(LayeredPrefill())
    assert not server.cancel(3)
    with pytest.raises(InputError, match="not in flight"):
        server.lower(3, 1)
