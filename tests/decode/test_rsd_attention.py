"""Tree attention: a node sees its path alone, and accepted rows stay right when they move."""

from __future__ import annotations

import pytest
import torch
from transformers.cache_utils import DynamicCache

from outlay.decode.rsd.attention import TreeCache, TreeLayer, check_network
from outlay.errors import CapabilityError
from tiny_models import tiny_network

KINDS = ("Llama", "Mixtral", "Qwen2", "Cohere", "Granite", "GPT2", "Falcon", "DeepseekV3")
PROMPTS = ([5, 9, 12, 30, 7], [8, 3], [40])
TOKENS = (21, 22, 23, 24, 25, 26)
PARENTS = (-1, 0, 0, 1, 1, 2)  # a root with two children, of which one has two


@torch.inference_mode()
def plain(network, ids: list[int]) -> torch.Tensor:
    """Logits after the last token, without any cache."""
    return network(torch.tensor([ids]), use_cache=False).logits[0, -1]


def path(node: int) -> list[int]:
    """Tokens from the root of the tree to a node."""
    return ([] if PARENTS[node] < 0 else path(PARENTS[node])) + [TOKENS[node]]


def fed(network, prompts=PROMPTS) -> tuple[TreeCache, torch.Tensor]:
    with torch.inference_mode():
        cache = TreeCache(network, len(prompts))
        cache.read(prompts)
        logits = cache.feed(torch.tensor([TOKENS] * len(prompts)), [list(PARENTS)] * len(prompts))
    return cache, logits


@pytest.mark.parametrize("kind", KINDS)
def test_a_nodes_logits_are_those_of_its_path(kind: str) -> None:
    network = tiny_network(kind)
    _, logits_BRV = fed(network)
    for b, prompt in enumerate(PROMPTS):
        for node in range(len(TOKENS)):
            expected = plain(network, [*prompt, *path(node)])
            torch.testing.assert_close(logits_BRV[b, node], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "DeepseekV3"])
def test_after_a_commit_the_cache_is_as_if_the_path_had_been_read(kind: str) -> None:
    network = tiny_network(kind)
    cache, _ = fed(network)
    paths = [[0, 2, 5], [0], [0, 1, 4]]
    with torch.inference_mode():
        cache.commit(paths)
        assert cache.lengths == [5 + 3, 2 + 1, 1 + 3]
        assert cache.cache.get_seq_length() == 8
        logits_BRV = cache.feed(torch.tensor([[50, 51]] * 3), [[-1, 0]] * 3)
        for b, prompt in enumerate(PROMPTS):
            said = [*prompt, *(TOKENS[node] for node in paths[b]), 50, 51]
            torch.testing.assert_close(logits_BRV[b, 1], plain(network, said), atol=1e-4, rtol=1e-4)
        cache.commit([[0], [0, 1], []])
        cache.keep([1, 2])
        logits_BRV = cache.feed(torch.tensor([[60], [60]]), [[-1], [-1]])
        for row, b in enumerate((1, 2)):
            tail = [50, 51] if b == 1 else []
            said = [*PROMPTS[b], *(TOKENS[node] for node in paths[b]), *tail, 60]
            torch.testing.assert_close(
                logits_BRV[row, 0], plain(network, said), atol=1e-4, rtol=1e-4
            )


def test_trees_may_be_fed_level_by_level() -> None:
    network = tiny_network()
    with torch.inference_mode():
        cache = TreeCache(network, 1)
        cache.read([PROMPTS[0]])
        cache.feed(torch.tensor([[21]]), [[-1]])
        cache.feed(torch.tensor([[22, 23]]), [[0, 0]])
        logits_BRV = cache.feed(torch.tensor([[24, 25, 26]]), [[1, 1, 2]])
    for row, node in enumerate((3, 4, 5)):
        expected = plain(network, [*PROMPTS[0], *path(node)])
        torch.testing.assert_close(logits_BRV[0, row], expected, atol=1e-4, rtol=1e-4)


def test_the_prefix_is_neither_moved_nor_copied() -> None:
    network = tiny_network()
    cache, _ = fed(network)
    before = [layer.keys.data_ptr() for layer in cache.cache.layers]
    prefix = [layer.keys[0, :, :5].clone() for layer in cache.cache.layers]
    with torch.inference_mode():
        cache.commit([[0, 2, 5], [0], []])
    assert [layer.keys.data_ptr() for layer in cache.cache.layers] == before
    for layer, rows in zip(cache.cache.layers, prefix, strict=True):
        assert torch.equal(layer.keys[0, :, :5], rows)


def test_buffers_grow_and_keep_what_they_hold() -> None:
    layer = TreeLayer()
    parts = [torch.randn(2, 1, n, 4) for n in (3, 50, 1, 90)]
    for part in parts:
        keys, values = layer.update(part, part + 1)
    assert torch.equal(keys, torch.cat(parts, 2))
    assert torch.equal(values, torch.cat(parts, 2) + 1)
    layer.crop(-94)
    assert layer.get_seq_length() == 50
    assert torch.equal(layer.keys, torch.cat(parts, 2)[:, :, :50])


def test_another_methods_cache_is_taken_over() -> None:
    network = tiny_network()
    with torch.inference_mode():
        own = DynamicCache(config=network.config)
        network(torch.tensor([PROMPTS[0]]), cache=own, use_cache=True)
        cache = TreeCache(network, 1, own)
        assert cache.lengths == [5]
        cache.feed(torch.tensor([TOKENS]), [list(PARENTS)])
        cache.commit([[0, 1, 4]])
        assert own.get_seq_length() == 8
        logits_BRV = cache.feed(torch.tensor([[50]]), [[-1]])
    expected = plain(network, [*PROMPTS[0], *path(4), 50])
    torch.testing.assert_close(logits_BRV[0, 0], expected, atol=1e-4, rtol=1e-4)


def test_a_cache_with_unequal_layers_is_refused() -> None:
    network = tiny_network()
    with torch.inference_mode():
        own = DynamicCache(config=network.config)
        network(torch.tensor([PROMPTS[0]]), cache=own, use_cache=True)
        own.layers[1].crop(-2)
    with pytest.raises(CapabilityError, match="same number in every layer"):
        TreeCache(network, 1, own)


@pytest.mark.parametrize(
    ("kind", "layer"),
    [
        ("Mistral", "DynamicSlidingWindowLayer"),
        ("Gemma2", "DynamicSlidingWindowLayer"),
        ("Mamba", "LinearAttentionLayer"),
        ("Bloom", "position_ids"),
    ],
)
def test_networks_without_a_tree_mask_are_refused_by_name(kind: str, layer: str) -> None:
    with pytest.raises(CapabilityError, match=layer):
        check_network(tiny_network(kind), kind)


def test_an_encoder_decoder_is_refused() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=32,
        d_model=8,
        d_kv=4,
        d_ff=8,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    with pytest.raises(CapabilityError, match="encoder-decoder"):
        check_network(T5ForConditionalGeneration(config), "t5")
