"""RSD as `custom_generate` of transformers: same arguments, same greedy text, exact laws."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from outlay.decode.rsd import NGram, Stats, rsd_generate
from outlay.errors import CapabilityError, InputError
from outlay.proofs.rsd_runs import chi_square
from tiny_models import tiny_network, tiny_tokenizer

MODES = ("rsd_s", "rsd_c", "chain", "iid_tree", "greedy_tree")
TEXTS = ("the abc", "on in the abc the", "a")


@pytest.fixture(scope="module")
def network():
    return tiny_network()


@pytest.fixture(scope="module")
def near():
    """A draft that agrees with the target often but not always."""
    network = tiny_network()
    torch.manual_seed(1)
    for parameter in network.parameters():
        parameter.add_(0.12 * parameter.std() * torch.randn_like(parameter))
    return network


@pytest.fixture(scope="module")
def inputs():
    tokenizer = tiny_tokenizer()
    return tokenizer(list(TEXTS), return_tensors="pt", padding=True, padding_side="left")


@pytest.mark.parametrize("mode", MODES)
def test_greedy_text_is_generates_own(network, near, inputs, mode: str) -> None:
    kept: list[list[Stats]] = []
    ours = network.generate(
        **inputs,
        custom_generate=rsd_generate,
        draft=near,
        mode=mode,
        on_stats=kept.append,
        max_new_tokens=20,
        do_sample=False,
        pad_token_id=0,
    )
    plain = network.generate(**inputs, max_new_tokens=20, do_sample=False, pad_token_id=0)
    assert torch.equal(ours, plain)
    assert [len(stats) for stats in kept] == [len(TEXTS)]
    assert max(n for stats in kept[0] for n in stats.emitted) > 1


def test_processors_that_know_the_history_see_every_path(network, near, inputs) -> None:
    knobs = {
        "max_new_tokens": 24,
        "do_sample": False,
        "repetition_penalty": 1.4,
        "no_repeat_ngram_size": 2,
        "pad_token_id": 0,
    }
    plain = network.generate(**inputs, **knobs)
    for draft in (near, NGram()):
        ours = network.generate(**inputs, custom_generate=rsd_generate, draft=draft, **knobs)
        assert torch.equal(ours, plain)


def test_sampling_follows_the_law_of_a_processor_with_a_memory(network, near) -> None:
    class Alternating(LogitsProcessor):
        """Only tokens of the other parity than the last one's, by the lowest twelve ids."""

        def __call__(self, input_ids, scores):
            ids_V = torch.arange(scores.shape[1])
            allowed = (ids_V[None] % 2 != input_ids[:, -1:] % 2) & (ids_V[None] < 12) & (ids_V != 2)
            return scores.masked_fill(~allowed, -torch.inf)

    prompt = torch.tensor([[40, 7]])
    processors = LogitsProcessorList([Alternating()])
    torch.manual_seed(0)
    made = [
        network.generate(
            prompt,
            custom_generate=rsd_generate,
            draft=near,
            mode="rsd_s",
            beam=3,
            depth=1,
            logits_processor=processors,
            do_sample=True,
            top_k=0,
            max_new_tokens=2,
            num_return_sequences=30,
            pad_token_id=0,
        )
        for _ in range(50)
    ]
    out = torch.cat(made)
    exact: dict[tuple[int, int], float] = {}
    with torch.inference_mode():
        first_V = processors(prompt, network(prompt).logits[:, -1])[0].double().softmax(-1)
        for a in first_V.nonzero()[:, 0].tolist():
            ids = torch.tensor([[40, 7, a]])
            second_V = processors(ids, network(ids).logits[:, -1])[0].double().softmax(-1)
            for b in second_V.nonzero()[:, 0].tolist():
                exact[a, b] = float(first_V[a] * second_V[b])
    seen = Counter(tuple(row) for row in out[:, 2:].tolist())
    assert set(seen) <= set(exact)
    counts = np.array([float(seen[word]) for word in exact])
    assert chi_square(counts, np.array(list(exact.values()))) > 1e-3


def test_seeds_and_returned_sequences(network, near) -> None:
    prompt = torch.tensor([[40, 7, 9]])
    knobs = {
        "custom_generate": rsd_generate,
        "draft": near,
        "do_sample": True,
        "max_new_tokens": 12,
        "num_return_sequences": 3,
        "pad_token_id": 0,
    }
    first = network.generate(prompt, seed=4, **knobs)
    assert torch.equal(first, network.generate(prompt, seed=4, **knobs))
    assert len({tuple(row) for row in first.tolist()}) == 3
    torch.manual_seed(5)
    again = network.generate(prompt, **knobs)
    torch.manual_seed(5)
    assert torch.equal(again, network.generate(prompt, **knobs))
    shown = network.generate(prompt, seed=4, return_dict_in_generate=True, **knobs)
    assert torch.equal(shown.sequences, first)


def test_what_cannot_work_is_refused_by_name(network, near) -> None:
    prompt = torch.tensor([[40, 7, 9]])
    knobs = {"custom_generate": rsd_generate, "max_new_tokens": 4, "pad_token_id": 0}
    with pytest.raises(InputError, match="draft=None"):
        network.generate(prompt, do_sample=False, **knobs)
    with pytest.raises(InputError, match="num_beams"):
        network.generate(prompt, draft=near, num_beams=2, **knobs)
    mask = torch.tensor([[1, 1, 0]])
    with pytest.raises(InputError, match="padded on the left"):
        network.generate(prompt, attention_mask=mask, draft=near, **knobs)
    with pytest.raises(CapabilityError, match="SlidingWindow"):
        tiny_network("Mistral").generate(prompt, draft=near, do_sample=False, **knobs)
