"""Weight-only int8 against the fp32 form of the same weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from outlay.models.base import SamplingParams
from outlay.models.local import LocalModel
from outlay.models.quantise import FEW_ROWS, Int8Linear, quantise_linears
from tiny_models import tiny_model, tiny_network, tiny_tokenizer

WORDS = "the cat in the hat"


@settings(max_examples=25)
@given(
    rows=st.integers(1, 6),
    inputs=st.one_of(st.integers(1, 70), st.sampled_from([32, 64, 96, 128])),
    outputs=st.integers(1, 70),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_int8_equals_its_dequantised_form_within_bf16_rounding(
    rows: int, inputs: int, outputs: int, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    layer = Int8Linear(nn.Linear(inputs, outputs, bias=bias))
    x_BI = torch.randn(rows, inputs)
    want_BO = nn.functional.linear(x_BI, layer.weight, layer.bias)
    found_BO = layer(x_BI)
    if rows > FEW_ROWS or inputs % 32:  # the kernel would read past such rows
        assert torch.equal(found_BO, want_BO)
    size_BO = x_BI.abs() @ layer.weight.abs().T  # bf16 keeps 8 bits: 2^-8 of every term
    assert ((found_BO - want_BO).abs() <= 2**-7 * size_BO + 1e-6).all()


@torch.no_grad()
def test_weights_are_rounded_to_a_127th_of_their_row() -> None:
    linear = nn.Linear(40, 30)
    layer = Int8Linear(linear)
    error_OI = (layer.weight - linear.weight).abs()
    assert (error_OI <= linear.weight.abs().amax(1, keepdim=True) / 127 * 0.6).all()
    assert layer.int8_OI.dtype == torch.int8


@torch.no_grad()
def test_a_row_of_zeros_stays_zero_and_shapes_are_kept() -> None:
    linear = nn.Linear(16, 4, bias=False)
    linear.weight[2] = 0
    layer = Int8Linear(linear)
    x_BTI = torch.randn(1, 2, 16)
    assert layer(x_BTI).shape == (1, 2, 4)
    assert (layer(x_BTI)[..., 2] == 0).all()
    assert layer(torch.randn(2, 5, 16)).shape == (2, 5, 4)


@pytest.mark.parametrize("kind", ["Llama", "Qwen2"])
@torch.no_grad()
def test_a_quantised_model_is_close_to_its_own(kind: str) -> None:
    network = tiny_network(kind)
    ids_BT = torch.tensor([tiny_tokenizer().encode(WORDS)])
    want_BTV = network(ids_BT).logits.log_softmax(-1)
    embedding = network.get_input_embeddings().weight.clone()
    count = quantise_linears(network)
    assert count == 2 * 7 + 1
    assert torch.equal(network.get_input_embeddings().weight, embedding)
    found_BTV = network(ids_BT).logits.log_softmax(-1)
    nll = [torch.nn.functional.nll_loss(x[0, :-1], ids_BT[0, 1:]) for x in (want_BTV, found_BTV)]
    assert abs(float(nll[0] - nll[1])) < 0.1
    agree = (want_BTV.argmax(-1) == found_BTV.argmax(-1)).float().mean()
    assert agree > 0.8


def test_a_quantised_model_runs_behind_the_protocol() -> None:
    network = tiny_network()
    quantise_linears(network)
    model = LocalModel(network, tiny_tokenizer(), "int8", mode="fast")
    made = model.generate(WORDS, sampling=SamplingParams(max_tokens=8, logprobs=True))
    assert made.logprobs is not None
    exact = tiny_model()
    root = exact.open(WORDS)
    (want,) = exact.score(root, [list(made.token_ids)])
    assert sum(made.logprobs) / len(want) == pytest.approx(sum(want) / len(want), abs=0.3)
