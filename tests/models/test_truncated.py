"""Shallower copies: the layers asked for, nothing else changed."""

from __future__ import annotations

import pytest
import torch

from outlay.errors import InputError
from outlay.models.truncated import spread, truncated
from tiny_models import tiny_network

IDS = torch.arange(5, 25)[None]


@pytest.mark.parametrize("kind", ["Llama", "Mixtral", "Gemma2", "GPT2"])
def test_all_layers_kept_give_the_same_logits(kind: str) -> None:
    network = tiny_network(kind)
    layers = network.config.num_hidden_layers
    with torch.no_grad():
        assert torch.equal(truncated(network, range(layers))(IDS).logits, network(IDS).logits)


def test_a_layer_left_out_is_skipped() -> None:
    network = tiny_network("Llama", num_hidden_layers=4)
    smaller = truncated(network, (0, 2, 3))
    body = network.model
    with torch.no_grad():
        hidden = body.embed_tokens(IDS)
        turns = body.rotary_emb(hidden, torch.arange(20)[None])
        for index in (0, 2, 3):
            mask = torch.full((20, 20), -torch.inf).triu(1)[None, None]
            out = body.layers[index](hidden, attention_mask=mask, position_embeddings=turns)
            hidden = out[0] if isinstance(out, tuple) else out
        expected = network.lm_head(body.norm(hidden))
        assert torch.allclose(smaller(IDS).logits, expected, atol=1e-5)
    assert [layer.self_attn.layer_idx for layer in smaller.model.layers] == [0, 1, 2]
    assert network.config.num_hidden_layers == 4


def test_in_half_precision_the_rotary_table_stays_in_full() -> None:
    network = tiny_network("Llama", num_hidden_layers=2).to(torch.bfloat16)
    network.model.rotary_emb.inv_freq = tiny_network().model.rotary_emb.inv_freq
    smaller = truncated(network, (0, 1))
    assert smaller.model.layers[0].self_attn.q_proj.weight.dtype == torch.bfloat16
    assert smaller.model.rotary_emb.inv_freq.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(smaller(IDS).logits, network(IDS).logits)


def test_changing_the_copy_leaves_the_model_alone() -> None:
    network = tiny_network()
    before = network.get_input_embeddings().weight.clone()
    smaller = truncated(network, (0,))
    with torch.no_grad():
        smaller.get_input_embeddings().weight.add_(1)
    assert torch.equal(network.get_input_embeddings().weight, before)


def test_a_spread_keeps_both_ends() -> None:
    assert spread(30, 10) == (0, 3, 6, 10, 13, 16, 19, 23, 26, 29)
    assert spread(4, 4) == (0, 1, 2, 3)
    assert spread(4, 1) == (0,)


@pytest.mark.parametrize("keep", [(), (1, 0), (0, 0), (0, 9), (-1,)])
def test_impossible_layers_are_refused(keep: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="give increasing layer indices between 0 and 1"):
        truncated(tiny_network("Llama", num_hidden_layers=2), keep)
    with pytest.raises(InputError, match="keep=9"):
        spread(4, 9)
