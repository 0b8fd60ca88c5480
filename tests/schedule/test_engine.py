"""The engine: token streams, hidden states, counts, and the models that it refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from served import LAYERS, SCHEDULERS, by_hand, some_requests

from outlay.errors import CapabilityError
from outlay.schedule import Chunk, LayeredPrefill, Orca, Plan, Request
from outlay.schedule.counters import expected_experts
from outlay.schedule.engine import Engine
from outlay.schedule.serving import Run, Server
from tiny_models import tiny_network

KINDS = ("Mixtral", "Llama", "Qwen2")


@pytest.fixture(scope="module", params=KINDS)
def network(request):
    return tiny_network(request.param, num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def mixture():
    return tiny_network("Mixtral", num_hidden_layers=LAYERS)


def serve(network, scheduler, requests, *, blocks: int = 200) -> Run:
    engine = Engine(network)
    server = Server(engine, scheduler, blocks, clock="virtual", cost=lambda shape: 0.1)
    run = server.serve(requests)
    engine.close()
    assert not engine.caches
    assert not engine.saved
    return run


def test_every_schedule_gives_the_tokens_of_generation_alone(network) -> None:
    requests = some_requests(8)
    alone = {request.id: by_hand(network, request) for request in requests}
    for name, scheduler in SCHEDULERS.items():
        assert serve(network, scheduler, requests).tokens() == alone, name


@pytest.mark.parametrize("name", SCHEDULERS)
def test_preempted_requests_give_the_same_tokens(mixture, name: str) -> None:
    requests = [Request(i, tuple(range(10 + i, 38 + i)), 12) for i in range(4)]
    roomy = serve(mixture, SCHEDULERS[name], requests)
    tight = serve(mixture, SCHEDULERS[name], requests, blocks=6)
    assert roomy.preemptions == 0 < tight.preemptions
    assert tight.tokens() == roomy.tokens()


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), ref=st.integers(1, 40), cut=st.integers(5, 80))
def test_any_grouping_gives_the_same_tokens(mixture, seed: int, ref: int, cut: int) -> None:
    requests = some_requests(5, seed)
    layered = LayeredPrefill(ref_chunk=ref, max_num_batched_tokens=cut)
    assert serve(mixture, layered, requests).tokens() == serve(mixture, Orca(), requests).tokens()


def test_the_hidden_state_behind_the_last_group_is_that_of_a_plain_pass(network) -> None:
    """Prompt rows cross the groups beside decoding rows and come out unchanged."""
    prompt = tuple(range(20, 60))
    engine = Engine(network)
    server = Server(engine, LayeredPrefill(group_split=(1, 2, 2, 1)), 100)
    server.submit(Request(0, (7, 8, 9), 20))
    for _ in range(4):
        server.step()
    server.submit(Request(1, prompt, 2))
    for _ in range(3):
        server.step()
    with torch.inference_mode():
        states = network(
            torch.tensor([list(prompt)]), use_cache=False, output_hidden_states=True
        ).hidden_states
    torch.testing.assert_close(engine.saved[1], states[5], rtol=1e-5, atol=1e-5)
    assert engine.caches[1].lengths == [40] * 5 + [0]
    server.step()
    assert engine.caches[1].lengths == [40] * 6
    assert len(server.timings[1].tokens) == 1
    engine.close()


def test_prompt_rows_run_and_write_in_the_active_group_only(mixture) -> None:
    engine = Engine(mixture)
    server = Server(engine, LayeredPrefill(ref_chunk=10), 100)
    server.submit(Request(0, tuple(range(5, 65)), 3))
    seen: list[list[int]] = []
    for _ in range(6):
        server.step()
        if 0 in engine.caches:
            seen.append(list(engine.caches[0].lengths))
    assert seen == [[60] * (i + 1) + [0] * (5 - i) for i in range(6)]
    assert engine.traffic.crossings == [60] * 6
    engine.close()


def routed(network, run_of) -> list[torch.Tensor]:
    """Every router's choices in a run, recorded by a hook of the test's own."""
    found: list[torch.Tensor] = []
    hooks = [
        module.register_forward_hook(lambda m, i, output: found.append(output[2].clone()))
        for name, module in network.named_modules()
        if name.endswith("mlp.gate")
    ]
    run_of()
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("name", ["layered", "chunked", "orca"])
def test_the_counter_equals_brute_force_over_the_routers_choices(mixture, name: str) -> None:
    runs: list[Run] = []
    requests = some_requests(6, 2)
    engine = Engine(mixture)
    server = Server(engine, SCHEDULERS[name], 200, clock="virtual", cost=lambda shape: 0.1)
    chosen = routed(mixture, lambda: runs.append(server.serve(requests)))
    engine.close()
    assert runs[0].traffic.loads == sum(len(set(part.flatten().tolist())) for part in chosen)
    weights = mixture.model.layers[0].mlp.experts
    one = (weights.gate_up_proj[0].numel() + weights.down_proj[0].numel()) * 4
    assert runs[0].traffic.expert_bytes == one
    assert sum(runs[0].traffic.calls.values()) == len(chosen)


def test_the_order_of_a_cohort_does_not_change_its_traffic(mixture) -> None:
    requests = [Request(i, tuple(range(5 + 7 * i, 30 + 9 * i)), 1) for i in range(5)]
    turned = [Request(i, each.prompt, 1) for i, each in enumerate(reversed(requests))]
    loads = [
        serve(mixture, LayeredPrefill(ref_chunk=32), each).traffic.loads
        for each in (requests, turned)
    ]
    assert loads[0] == loads[1]


def test_layered_prefill_reads_fewer_experts_than_chunks_do(mixture) -> None:
    requests = [Request(i, tuple(range(5, 65)), 4, 1.0 * i) for i in range(4)]
    layered = serve(mixture, SCHEDULERS["layered"], requests).traffic
    chunked = serve(mixture, SCHEDULERS["chunked"], requests).traffic
    assert layered.loads < 0.8 * chunked.loads
    assert max(layered.prompt_calls) == 4
    assert layered.saved_bytes == 60 * 32 * 4


@given(st.integers(1, 64), st.integers(1, 8), st.integers(0, 40))
def test_expected_experts_lie_between_one_choice_and_all(experts: int, k: int, n: int) -> None:
    k = min(k, experts)
    found = expected_experts(experts, k, n)
    assert (k if n else 0) - 1e-9 <= found <= experts + 1e-9
    assert expected_experts(experts, k, 1) == pytest.approx(k)


def test_uniform_routing_hits_what_the_formula_expects() -> None:
    generator = torch.Generator().manual_seed(0)
    hits = [
        len(set(torch.rand(12, 16, generator=generator).topk(2).indices.flatten().tolist()))
        for _ in range(400)
    ]
    assert sum(hits) / len(hits) == pytest.approx(expected_experts(16, 2, 12), rel=0.03)


def test_the_engine_puts_the_models_own_attention_back(mixture) -> None:
    before = mixture.config._attn_implementation
    serve(mixture, Orca(), some_requests(2))
    assert mixture.config._attn_implementation == before
    engine = Engine(mixture)
    with pytest.raises(KeyError):
        engine.run(Plan(prefill=(Chunk(0, 0, 1),), sizes=(LAYERS,)), {})
    assert mixture.config._attn_implementation == before
    engine.close()


@pytest.mark.parametrize("kind", ["Mistral", "Gemma2", "GPT2", "Mamba", "Bloom", "Granite"])
def test_models_that_it_cannot_run_are_refused_by_name(kind: str) -> None:
    with pytest.raises(CapabilityError, match=kind):
        Engine(tiny_network(kind))
