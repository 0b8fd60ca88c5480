"""Schedules as plain Python: groups, cohorts, order, and what every policy guarantees."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from served import LAYERS, SCHEDULERS, ends, simulated, some_requests

from outlay.errors import InputError, ModelError
from outlay.schedule import (
    BlockPool,
    Chunk,
    ChunkedPrefill,
    LayeredPrefill,
    Orca,
    Plan,
    Request,
    State,
)
from outlay.schedule.base import even_groups
from outlay.schedule.layered import OFFICIAL
from outlay.schedule.serving import Server

every = pytest.mark.parametrize("name", SCHEDULERS)


@given(st.integers(1, 60), st.integers(1, 60))
def test_groups_are_those_of_array_split(layers: int, groups: int) -> None:
    if groups > layers:
        with pytest.raises(InputError, match="groups of"):
            even_groups(layers, groups)
        return
    assert even_groups(layers, groups) == tuple(
        len(part) for part in np.array_split(np.arange(layers), groups)
    )


@given(st.integers(1, 20_000), st.integers(1, 64), st.integers(1, 24))
def test_the_number_of_groups_matches_the_chunks_of_the_baseline(
    tokens: int, layers: int, most: int
) -> None:
    sizes = LayeredPrefill(ref_chunk=512, max_groups=most).groups(tokens, layers)
    assert sum(sizes) == layers
    assert len(sizes) == max(1, min(-(-tokens // 512), layers, most))


@pytest.mark.parametrize(
    ("tokens", "groups"), [(1, 1), (512, 1), (513, 2), (2048, 4), (4096, 8), (4097, 16)]
)
def test_the_official_rule_is_a_table_of_powers_of_two(tokens: int, groups: int) -> None:
    assert len(LayeredPrefill(rule="official").groups(tokens, 48)) == groups


@pytest.mark.parametrize("stages", OFFICIAL)
def test_the_official_rule_ends_at_num_stages(stages: int) -> None:
    policy = LayeredPrefill(rule="official", num_stages=stages)
    assert len(policy.groups(100_000, 48)) == stages
    assert len(policy.groups(512, 48)) == 1


def test_the_cohorts_sum_of_tokens_sets_its_groups_and_all_share_them() -> None:
    server = simulated(LayeredPrefill(ref_chunk=10))
    for i in range(3):
        server.submit(Request(i, (1,) * 10, 3))
    plan = server.scheduler.plan(server.state)
    assert [chunk.count for chunk in plan.prefill] == [10, 10, 10]
    assert len(plan.sizes) == 3


def test_a_lone_request_has_its_first_token_after_exactly_g_iterations() -> None:
    for groups in range(1, LAYERS + 1):
        server = simulated(LayeredPrefill(ref_chunk=8))
        server.submit(Request(0, (1,) * (8 * groups), 2))
        for _ in range(groups):
            assert not server.timings[0].tokens
            server.step()
        assert len(server.timings[0].tokens) == 1


@every
def test_every_decoding_request_gets_a_token_in_every_iteration(name: str) -> None:
    server = simulated(SCHEDULERS[name])  # chunks of 16 tokens: more than requests that decode
    for request in some_requests(12):
        server.submit(request)
    while not server.state.idle:
        before = {job.id: len(job.generated) for job in server.state.decoding}
        server.step()
        for id_, count in before.items():
            assert len(server.timings[id_].tokens) == count + 1


@every
def test_a_cohort_takes_as_many_iterations_as_it_has_groups(name: str) -> None:
    scheduler = SCHEDULERS[name]
    server = simulated(scheduler)
    for request in some_requests(10, 1):
        server.submit(request)
    seen: list[tuple[int, int]] = []
    while not server.state.idle:
        plan = scheduler.plan(server.state)
        if plan.prefill:
            low, high = plan.group
            assert low == (seen[-1][1] if seen else 0)
            seen.append((low, high))
            if plan.final:
                assert high == LAYERS
                assert len(seen) <= len(plan.sizes)
                assert "two groups" in name or len(seen) == len(plan.sizes)
                seen = []
        server.step()


@every
@given(seed=st.integers(0, 10_000), blocks=st.integers(5, 30))
def test_every_request_ends_and_every_block_comes_back(name: str, seed: int, blocks: int) -> None:
    server = simulated(SCHEDULERS[name], num_blocks=blocks)
    run = server.serve(some_requests(10, seed, gap=0.05))
    pool = server.state.pool
    assert set(ends(server)) == {"length"}
    assert pool.allocated == pool.freed
    assert pool.free == blocks
    assert all(len(t.tokens) == len(t.token_ids) for t in run.timings.values())


@every
@given(seed=st.integers(0, 10_000))
def test_prompts_cross_every_layer_once(name: str, seed: int) -> None:
    requests = some_requests(8, seed)
    run = simulated(SCHEDULERS[name]).serve(requests)
    total = sum(len(request.prompt) for request in requests)
    assert run.preemptions == 0
    assert set(run.traffic.crossings) == {total}
    assert set(run.traffic.prompt_calls) == {run.cohorts}


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "layered, short first"])
def test_requests_are_admitted_in_the_order_of_their_arrival(name: str) -> None:
    server = simulated(SCHEDULERS[name])
    admitted: list[int] = []
    for request in some_requests(15, 3):
        server.submit(request)
    while not server.state.idle:
        plan = server.scheduler.plan(server.state)
        admitted += [chunk.id for chunk in plan.prefill if chunk.id not in admitted]
        server.step()
    assert admitted == sorted(admitted)


def test_short_first_lets_short_prompts_pass_but_not_for_ever() -> None:
    policy = LayeredPrefill(ref_chunk=8, short_first=True, max_num_batched_tokens=8)
    server = simulated(policy)
    server.submit(Request(0, (1,) * 30, 1))
    for i in range(1, 20):
        server.submit(Request(i, (1,) * 8, 1))
    order: list[int] = []
    while not server.state.idle:
        plan = policy.plan(server.state)
        order += [chunk.id for chunk in plan.prefill if chunk.id not in order]
        server.step()
    assert order[0] != 0
    assert order.index(0) <= 4


def test_a_cohort_of_one_group_is_what_orca_does() -> None:
    requests = some_requests(10, 5)
    layered = simulated(LayeredPrefill(ref_chunk=10_000)).serve(requests)
    orca = simulated(Orca()).serve(requests)
    assert [step.shape for step in layered.steps] == [step.shape for step in orca.steps]


def test_chunks_as_large_as_the_prompt_give_the_first_token_when_orca_does() -> None:
    request = Request(0, (1,) * 50, 4)
    chunked = simulated(ChunkedPrefill(10_000)).serve([request])
    orca = simulated(Orca()).serve([request])
    assert chunked.timings[0].tokens == orca.timings[0].tokens


def test_chunked_prefill_charges_decoding_rows_and_layered_does_not() -> None:
    for scheduler, counts in (
        (ChunkedPrefill(16), 13),
        (LayeredPrefill(16, max_num_batched_tokens=16), 16),
    ):
        server = simulated(scheduler)
        for i in range(3):
            server.submit(Request(i, (1,), 9))
        server.step()
        server.submit(Request(3, (1,) * 40, 1))
        plan = scheduler.plan(server.state)
        assert len(plan.decode) == 3
        assert sum(chunk.count for chunk in plan.prefill) == counts


def test_nobody_is_admitted_while_a_cohort_is_in_flight() -> None:
    server = simulated(LayeredPrefill(ref_chunk=10))
    server.submit(Request(0, (1,) * 60, 1))
    server.step()
    server.submit(Request(1, (1,), 1))
    for _ in range(5):
        assert [chunk.id for chunk in server.scheduler.plan(server.state).prefill] == [0]
        server.step()
    assert [chunk.id for chunk in server.scheduler.plan(server.state).prefill] == [1]


def test_groups_advance_together_only_where_nobody_decodes() -> None:
    policy = LayeredPrefill(ref_chunk=10, groups_per_step=3)
    server = simulated(policy)
    server.submit(Request(0, (1,) * 60, 9))
    assert policy.plan(server.state).group == (0, 3)
    server.step()
    server.step()
    server.submit(Request(1, (1,) * 60, 1))
    plan = policy.plan(server.state)
    assert plan.decode
    assert plan.group == (0, 1)


def test_the_last_of_the_list_is_preempted_and_waits_at_the_front() -> None:
    server = simulated(Orca(), num_blocks=4)
    for i in range(2):
        server.submit(Request(i, (1,) * 30, 20))
    server.submit(Request(2, (1,) * 5, 5))
    server.step()
    for _ in range(2):
        server.step()
    plan = server.scheduler.plan(server.state)
    assert plan.preempt == (1,)
    server.step()
    assert [job.id for job in server.state.waiting] == [1, 2]
    assert server.state.waiting[0].done == 0


def test_a_plan_does_not_change_the_state() -> None:
    for scheduler in SCHEDULERS.values():
        server = simulated(scheduler, num_blocks=8)
        for request in some_requests(6, 2):
            server.submit(request)
        for _ in range(6):
            first, second = scheduler.plan(server.state), scheduler.plan(server.state)
            assert first == second
            server.step()


# -- plans that break a rule ----------------------------------------------------------------------


def state_with(*lengths: int) -> State:
    state = State(LAYERS, BlockPool(100))
    for i, length in enumerate(lengths):
        state.submit(Request(i, (1,) * length, 5))
    return state


def test_a_plan_that_mixes_stages_is_refused() -> None:
    state = state_with(10, 10)
    state.begin(Plan(prefill=(Chunk(0, 0, 10),), sizes=(3, 3)))
    state.commit(Plan(prefill=(Chunk(0, 0, 10),), sizes=(3, 3)), {})
    with pytest.raises(InputError, match="mixes stages"):
        state.begin(Plan(prefill=(Chunk(0, 0, 10), Chunk(1, 0, 10)), sizes=(3, 3), stage=1))
    with pytest.raises(InputError, match="forgets the cohort"):
        state.begin(Plan())


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan(prefill=(Chunk(0, 0, 10),), sizes=(3, 2)), "sums to 5"),
        (Plan(prefill=(Chunk(0, 0, 10),), sizes=(3, 3), stage=1), "starts at stage 0"),
        (Plan(prefill=(Chunk(0, 4, 6),), sizes=(6,)), "not in turn"),
        (Plan(prefill=(Chunk(0, 0, 11),), sizes=(6,)), "reads 11 tokens"),
        (Plan(prefill=(Chunk(0, 0, 5), Chunk(0, 5, 5)), sizes=(6,)), "two chunks"),
        (Plan(decode=(0,)), "cannot be decoded"),
        (Plan(preempt=(0,)), "cannot be preempted"),
    ],
)
def test_a_plan_that_breaks_a_rule_is_refused(plan: Plan, message: str) -> None:
    with pytest.raises(InputError, match=message):
        state_with(10).begin(plan)


class Lazy:
    """A scheduler that does nothing."""

    def check(self, layers: int) -> None:
        return

    def plan(self, state: State) -> Plan:
        return Plan()


def test_a_schedule_that_does_nothing_is_an_error_and_not_a_loop() -> None:
    server = simulated(Lazy())
    server.submit(Request(0, (1,), 1))
    with pytest.raises(ModelError, match="planned nothing"):
        server.step()


# -- knobs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"ref_chunk": 0}, "ref_chunk=0"),
        ({"max_num_seqs": 0}, "max_num_seqs=0"),
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens=0"),
        ({"max_groups": 0}, "max_groups=0"),
        ({"groups_per_step": 0}, "groups_per_step=0"),
        ({"rule": "official", "num_stages": 5}, "num_stages=5"),
        ({"rule": "mine"}, "rule='mine'"),
        ({"group_split": "odd"}, "group_split='odd'"),
    ],
)
def test_knobs_out_of_range_are_named(knobs: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LayeredPrefill(**knobs)


def test_knobs_that_do_not_fit_the_model_are_refused_when_the_server_is_made() -> None:
    with pytest.raises(InputError, match="num_stages=16 is more"):
        simulated(LayeredPrefill(rule="official"))
    with pytest.raises(InputError, match=r"group_split=\[2, 2\] sums to 4"):
        simulated(LayeredPrefill(group_split=(2, 2)))
    for cls in (ChunkedPrefill, Orca):
        with pytest.raises(InputError, match="max_num_batched_tokens=0"):
            cls(max_num_batched_tokens=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": ()}, "empty prompt"),
        ({"prompt": (-1,)}, "negative token"),
        ({"max_new": 0}, "max_new=0"),
        ({"arrival": -1.0}, "arrival=-1.0"),
        ({"arrival": float("nan")}, "arrival=nan"),
        ({"timeout": 0.0}, "timeout=0.0"),
        ({"limit": 3}, "limit=3 leaves no room"),
    ],
)
def test_requests_out_of_range_are_named(fields: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Request(**{"id": 7, "prompt": (1, 2, 3), "max_new": 1, **fields})


def test_a_request_that_can_never_run_is_refused_at_submission() -> None:
    server = simulated(Orca(), num_blocks=2)
    with pytest.raises(InputError, match="the whole pool has 32"):
        server.submit(Request(0, (1,) * 30, 5))
    state = State(4, BlockPool(100), context=20, max_jobs=1)
    with pytest.raises(InputError, match="context of 20"):
        state.submit(Request(0, (1,) * 15, 6))
    state.submit(Request(0, (1,) * 15, 5))
    with pytest.raises(InputError, match="in flight"):
        state.submit(Request(1, (1,), 1))
    with pytest.raises(InputError, match="here already"):
        state.submit(Request(0, (1,), 1))


def test_a_virtual_clock_needs_a_cost() -> None:
    server = simulated(Orca())
    with pytest.raises(InputError, match="needs cost"):
        Server(server.executor, Orca(), clock="virtual")
    with pytest.raises(InputError, match="clock='sun'"):
        Server(server.executor, Orca(), clock="sun")  # type: ignore[arg-type]
