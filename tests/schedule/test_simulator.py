"""The simulator, its fit, clocks and the stopwatch."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from served import LAYERS, SCHEDULERS, simulated, some_requests

from outlay.errors import InputError
from outlay.schedule import ChunkedPrefill, Orca, Request
from outlay.schedule.clock import Clock
from outlay.schedule.counters import expected_experts
from outlay.schedule.energy import rapl_joules
from outlay.schedule.engine import Engine
from outlay.schedule.serving import Server, Shape, Step
from outlay.schedule.simulator import (
    FEATURES,
    Fitted,
    MoEShape,
    Roofline,
    features,
    simulate,
    validate,
)
from outlay.schedule.stopwatch import Timing, goodput, summarise
from tiny_models import tiny_network

MODEL = MoEShape(LAYERS, 16, 2, 100)
KNOWN = (0.01, 0.002, 1e-4, 1e-6, 5e-4, 3e-4, 1e-3)


def known(shape: Shape) -> float:
    return float(np.dot(KNOWN, features(shape, MODEL)))


def test_a_fit_finds_the_costs_that_made_the_steps() -> None:
    steps = []
    for scheduler in SCHEDULERS.values():
        steps += simulate(some_requests(20, 1), scheduler, MODEL, known).steps
    fitted = Fitted.fit(steps, MODEL)
    assert fitted.error < 0.02
    other = simulate(some_requests(20, 2), Orca(), MODEL, known)
    guess = simulate(some_requests(20, 2), Orca(), MODEL, fitted)
    assert all(abs(error) < 0.05 for error in validate(other, guess).values())


def test_too_few_steps_cannot_be_fitted() -> None:
    steps = [Step(0.0, 0.1, Shape(LAYERS, decode_rows=1))] * (len(FEATURES) - 1)
    with pytest.raises(InputError, match="cannot fit"):
        Fitted.fit(steps, MODEL)


def test_simulated_steps_are_the_engines_steps() -> None:
    network = tiny_network("Mixtral", num_hidden_layers=LAYERS)
    engine = Engine(network)
    for scheduler in SCHEDULERS.values():
        requests = some_requests(8, 3)
        engine.reset()
        real = Server(engine, scheduler, 200, clock="virtual", cost=lambda shape: 0.1)
        ours = simulated(scheduler).serve(requests)
        theirs = real.serve(requests)
        assert [step.shape for step in ours.steps] == [step.shape for step in theirs.steps]
        assert ours.summary == theirs.summary
        assert ours.traffic.calls == theirs.traffic.calls
    engine.close()


def test_simulated_traffic_is_the_formula_summed_over_layers() -> None:
    run = simulated(ChunkedPrefill(20)).serve([Request(0, (1,) * 40, 3)])
    per_layer = 2 * expected_experts(16, 2, 20) + 2 * expected_experts(16, 2, 1)
    assert run.traffic.loads == pytest.approx(LAYERS * per_layer)


def test_a_dense_shape_reads_no_experts() -> None:
    dense = MoEShape(4)
    assert dense.loads(Shape(4, 4, 100, 1)) == 0
    with pytest.raises(InputError, match="of 0 experts"):
        MoEShape(4, top_k=2)
    with pytest.raises(InputError, match="top_k=9"):
        MoEShape(4, 8, 9)


def test_a_roofline_takes_memory_time_for_few_rows_and_compute_time_for_many() -> None:
    model = MoEShape(10, 8, 2, 1_000_000)
    cost = Roofline(model, 500_000, 100, bandwidth=1e9, flops=1e12)
    few = cost(Shape(10, decode_rows=1, decode_pairs=10))
    assert few == pytest.approx(10 * (500_000 + 2 * 1_000_000 + 10 * 100) / 1e9)
    many = cost(Shape(10, 10, prompt_rows=100_000, prompts=1, prompt_pairs=0))
    assert many == pytest.approx(10 * 100_000 * 2_500_000 / 1e12)
    with pytest.raises(InputError, match="bandwidth=0"):
        replace(cost, bandwidth=0)


def test_the_virtual_clock_is_deterministic_and_waits_for_arrivals() -> None:
    runs = [simulated(SCHEDULERS["layered"]).serve(some_requests(9, 7)) for _ in range(2)]
    assert runs[0].summary == runs[1].summary
    assert runs[0].to_dict() == runs[1].to_dict()
    late = simulated(Orca()).serve([Request(0, (1,), 2, 100.0)])
    assert late.timings[0].ttft == pytest.approx(0.1)


def test_cpu_and_wall_clocks_measure() -> None:
    wall, cpu = Clock("wall"), Clock("cpu")
    start = time.perf_counter()
    wall.skip_to(0.05)
    assert time.perf_counter() - start >= 0.04
    cpu.skip_to(5.0)
    assert time.perf_counter() - start < 1.0
    assert cpu.now() >= 5.0
    before = cpu.now()
    sum(range(300_000))
    assert cpu.now() > before
    wall.spend(100.0)
    assert wall.now() < 50


def test_the_stopwatch_counts_from_arrival_and_over_all_gaps() -> None:
    timings = [
        Timing(1.0, [3.0, 3.5, 4.5], [1, 2, 3], "length"),
        Timing(2.0, [3.0], [1], "eos"),
        Timing(2.0, [], [], "cancelled"),
    ]
    found = summarise(timings)
    assert found.requests == 2
    assert found.ttft_mean == pytest.approx(1.5)
    assert found.tbt_max == pytest.approx(1.0)
    assert found.tbt_p50 == pytest.approx(0.75)
    assert found.e2e_mean == pytest.approx((3.5 + 1.0) / 2)
    assert found.tokens_per_second == pytest.approx(4 / 3.5)
    assert goodput(timings, ttft=2.0, tbt=1.1) == pytest.approx(2 / 3)
    assert goodput(timings, ttft=1.5, tbt=1.1) == pytest.approx(1 / 3)
    assert goodput(timings, ttft=2.0, tbt=0.9) == pytest.approx(1 / 3)
    assert summarise([]).to_dict()["ttft_mean"] is None


def test_energy_counters_wrap_and_missing_ones_are_not_guessed(tmp_path) -> None:
    assert rapl_joules(tmp_path) is None
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    (package / "max_energy_range_uj").write_text("999999")
    (package / "energy_uj").write_text("900000")
    read = rapl_joules(tmp_path)
    assert read is not None
    (package / "energy_uj").write_text("100000")
    assert read() == pytest.approx(0.2)
