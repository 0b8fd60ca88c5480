"""T2T tokenisers beside plain patch embedding: time and multiply-adds for the same tokens.

At 224 pixels with the widths of T2T-ViT-14, tokeniser alone and whole model; and how the time of
both kinds of attention grows with four times the tokens. Peers: transformers' `ViTPatchEmbeddings`
and `ViTModel` with the same backbone. CPU time of one thread, in turns.

    python benchmarks/vision_tokenisers.py
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata

import torch
from transformers import ViTConfig, ViTModel
from transformers.models.vit.modeling_vit import ViTPatchEmbeddings

from common import Row, faster, turns, warn_if_busy, write
from outlay.vision.t2t_vit import T2TViT
from outlay.vision.t2t_vit.tokeniser import Tokeniser
from outlay.vision.t2t_vit.tokens import TokensType

BASE = T2TViT.preset("t2t-vit-14")
KINDS: tuple[TokensType, ...] = ("performer", "transformer", "conv", "patch")
REPEATS = 5


def main() -> None:
    warn_if_busy()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=BASE.embed_dim,
        num_hidden_layers=BASE.depth,
        num_attention_heads=BASE.heads,
        intermediate_size=BASE.mlp_width,
        qkv_bias=False,
    )
    peer = f"patches of 16, transformers {metadata.version('transformers')}"
    image = torch.randn(1, 3, 224, 224)
    models = {kind: replace(BASE, tokens_type=kind) for kind in KINDS}
    patches = ViTPatchEmbeddings(config).eval()
    alone: dict[str, Callable[[], object]] = {"peer": _call(patches, image)}
    whole: dict[str, Callable[[], object]] = {
        "peer": _call(ViTModel(config, add_pooling_layer=False).eval(), image)
    }
    for kind, method in models.items():
        tokeniser = Tokeniser(method.tokens, 3, BASE.embed_dim).eval()
        alone[kind] = _call(tokeniser, image)
        whole[kind] = _call(method.build().vit.eval(), image)
    rows: list[Row] = []
    for title, sides in (("tokeniser", alone), ("whole model", whole)):
        seconds = turns(sides, REPEATS, clock="cpu")
        for kind, method in models.items():
            macs = method.tokeniser_macs if sides is alone else method.macs
            base = models["patch"].tokeniser_macs if sides is alone else models["patch"].macs
            note = (
                f"196 tokens of 224 x 224 pixels; {macs / 1e6:.0f} million multiply-adds against "
                f"{base / 1e6:.0f}; no target"
            )
            rows.append(faster(f"{title}, {kind}", seconds[kind], seconds["peer"], peer, note))
    rows += [_growth(kind) for kind in ("performer", "transformer")]
    write("vision_tokenisers", rows)


def _call(module: torch.nn.Module, image: torch.Tensor) -> Callable[[], object]:
    @torch.inference_mode()
    def work() -> object:
        return module(image)

    return work


def _growth(kind: TokensType) -> Row:
    """Time of four times the tokens over the time of one."""
    tokeniser = Tokeniser(replace(BASE, tokens_type=kind).tokens, 3, BASE.embed_dim).eval()
    small, large = (torch.randn(1, 3, side, side) for side in (224, 448))
    seconds = turns(
        {"small": _call(tokeniser, small), "large": _call(tokeniser, large)}, REPEATS, clock="cpu"
    )
    ratios = [b / a for a, b in zip(seconds["small"], seconds["large"], strict=True)]
    return Row(
        f"{kind}: time of four times the tokens",
        "ratio",
        statistics.median(ratios),
        note=f"448 against 224 pixels; {_range(ratios)}; linear would be 4",
    )


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


if __name__ == "__main__":
    main()
