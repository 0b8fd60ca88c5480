"""Slicing a dense Llama into a Mixtral whose experts are pieces of its MLPs.

Expert e of E is the slice e of the MLP's hidden neurons: rows of the gate and up projections,
columns of the down projection, the latter times `top_k`, because Mixtral's routing weights sum to
one. With `top_k` = E and a zero router the model is the dense one (serving-foundation sheet,
section 4). Attention, norms and embeddings are the dense model's.

Shapes: L layers, E experts, C hidden size, F neurons of the MLP, W neurons of an expert.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch

from outlay.errors import CapabilityError, InputError
from outlay.testbeds.moe.store import read_router, router_path

if TYPE_CHECKING:
    from outlay.models.local import LocalModel

Router = Literal["trained", "random", "zero"]
TOP_K = 4
RANDOM_STD = 0.02


def sliced(dense: Any, experts: int, top_k: int, router_LEC: torch.Tensor | None = None) -> Any:
    """A MixtralForCausalLM made of a LlamaForCausalLM's weights, in eval mode.

    Args:
        dense: a Llama without biases.
        experts: slices of every MLP; must divide its neurons.
        top_k: slices that a token uses.
        router_LEC: routers of all layers; None for zeros.

    Raises:
        CapabilityError: for a model that is no Llama without biases.
        InputError: for numbers that do not fit.
    """
    from transformers import MixtralConfig, MixtralForCausalLM

    old = dense.config
    if old.model_type != "llama" or old.attention_bias or old.mlp_bias:
        raise CapabilityError(
            f"{type(dense).__name__} cannot be sliced; give a Llama without biases"
        )
    neurons, layers, size = old.intermediate_size, old.num_hidden_layers, old.hidden_size
    if experts < 1 or neurons % experts:
        raise InputError(f"experts={experts}; must divide the MLP's {neurons} neurons")
    if not 1 <= top_k <= experts:
        raise InputError(f"top_k={top_k}; must be between 1 and experts={experts}")
    if router_LEC is None:
        router_LEC = torch.zeros(layers, experts, size)
    if tuple(router_LEC.shape) != (layers, experts, size):
        raise InputError(
            f"a router of shape {tuple(router_LEC.shape)}; need ({layers}, {experts}, {size})"
        )
    config = MixtralConfig(
        vocab_size=old.vocab_size,
        hidden_size=size,
        intermediate_size=neurons // experts,
        num_hidden_layers=layers,
        num_attention_heads=old.num_attention_heads,
        num_key_value_heads=old.num_key_value_heads,
        head_dim=old.head_dim,
        hidden_act=old.hidden_act,
        max_position_embeddings=old.max_position_embeddings,
        rms_norm_eps=old.rms_norm_eps,
        rope_parameters=dict(old.rope_parameters),
        tie_word_embeddings=old.tie_word_embeddings,
        sliding_window=None,
        num_local_experts=experts,
        num_experts_per_tok=top_k,
        bos_token_id=old.bos_token_id,
        eos_token_id=old.eos_token_id,
        pad_token_id=old.pad_token_id,
    )
    state = {name: tensor for name, tensor in dense.state_dict().items() if ".mlp." not in name}
    for index, layer in enumerate(dense.model.layers):
        mlp, prefix = layer.mlp, f"model.layers.{index}.mlp"
        gate_EWC = mlp.gate_proj.weight.unflatten(0, (experts, -1))
        up_EWC = mlp.up_proj.weight.unflatten(0, (experts, -1))
        down_CEW = mlp.down_proj.weight.unflatten(1, (experts, -1)) * top_k
        state[f"{prefix}.experts.gate_up_proj"] = torch.cat([gate_EWC, up_EWC], dim=1)
        state[f"{prefix}.experts.down_proj"] = down_CEW.transpose(0, 1).contiguous()
        state[f"{prefix}.gate.weight"] = router_LEC[index]
    network = MixtralForCausalLM(config).to(dense.dtype)
    network.load_state_dict(state)
    network.generation_config = dense.generation_config
    return network.to(dense.device).eval().requires_grad_(False)


def build(
    dense: Any, *, experts: int = 48, top_k: int = TOP_K, router: Router = "trained", seed: int = 0
) -> Any:
    """`sliced` with a router by name.

    Args:
        dense: the embedded model's network.
        experts: 16 or 48 with a trained router; any divisor of the MLP's neurons otherwise.
        top_k: experts of a token.
        router: "trained" (the shipped one), "random" (normal, deviation 0.02: real routing of
            meaningless output) or "zero".
        seed: of a random router.

    Raises:
        ModelError: where no trained router ships.
    """
    config = dense.config
    shape = (config.num_hidden_layers, experts, config.hidden_size)
    if router == "trained":
        if top_k != TOP_K:
            raise InputError(f"top_k={top_k}; the shipped routers were trained with {TOP_K}")
        weights_LEC = read_router(
            router_path(experts), layers=shape[0], experts=experts, width=shape[2]
        )
    elif router == "random":
        generator = torch.Generator().manual_seed(seed)
        weights_LEC = torch.randn(shape, generator=generator) * RANDOM_STD
    elif router == "zero":
        weights_LEC = torch.zeros(shape)
    else:
        raise InputError(f"router={router!r}; choose trained, random or zero")
    return sliced(dense, experts, top_k, weights_LEC)


def load(
    experts: int = 48,
    *,
    top_k: int = TOP_K,
    router: Router = "trained",
    device: str | None = None,
    seed: int = 0,
) -> LocalModel:
    """The sliced embedded model with its tokenizer, in fp32.

    Args:
        experts, top_k, router, seed: see `build`.
        device: "cpu", "cuda", "mps"; None chooses.
    """
    from outlay.models import embedded
    from outlay.models.local import LocalModel

    dense = embedded.load(device=device)
    network = build(dense.model, experts=experts, top_k=top_k, router=router, seed=seed)
    network.set_experts_implementation("grouped_mm")
    return LocalModel(network, dense.tokenizer, f"smollm2-moe-{experts}x{top_k}")
