"""T2T tokens inside CLIP towers, alone and in LLaVA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from outlay.errors import CapabilityError, InputError
from outlay.vision.t2t_vit import Tokens
from outlay.vision.t2t_vit.clip import T2TCLIPVisionConfig, T2TCLIPVisionModel, retokenised
from outlay.vision.t2t_vit.positions import sinusoid_table
from outlay.vision.t2t_vit.tokens import SPLITS_MEDIUM, TokensType

TYPES: tuple[TokensType, ...] = ("performer", "transformer", "conv", "patch")
SIZES = {
    "image_size": 64,
    "patch_size": 8,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def _tower(kind: TokensType = "performer", positions: str = "learned") -> T2TCLIPVisionModel:
    tokens = Tokens(SPLITS_MEDIUM, kind, token_dim=8)
    config = T2TCLIPVisionConfig.of(tokens, CLIPVisionConfig(**SIZES), positions)
    torch.manual_seed(0)
    return T2TCLIPVisionModel(config).eval()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("positions", ["learned", "sinusoid"])
def test_a_tower_on_t2t_tokens_is_the_same_when_loaded(
    kind: TokensType, positions: str, tmp_path: Path
) -> None:
    tower, x = _tower(kind, positions), torch.randn(2, 3, 64, 64)
    out = tower(x, output_hidden_states=True)
    assert out.last_hidden_state.shape == (2, 65, 32)
    assert len(out.hidden_states) == 3
    tower.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, T2TCLIPVisionModel)
    assert torch.equal(loaded(x).last_hidden_state, out.last_hidden_state)
    assert dict(loaded.named_parameters()).keys() == dict(tower.named_parameters()).keys()


def test_a_start_by_fan_in_reaches_towers() -> None:
    made = {}
    for start in ("released", "fan_in"):
        tokens = Tokens(SPLITS_MEDIUM, "transformer", token_dim=8, start=start)  # type: ignore[arg-type]
        tower = retokenised(CLIPVisionModel(CLIPVisionConfig(**SIZES)), tokens)
        projection = tower.embeddings.patch_embedding.projection
        made[start] = float(projection.weight.detach().std())
        assert not projection.bias.any()
    assert made["released"] == pytest.approx(0.02, rel=0.1)
    assert made["fan_in"] == pytest.approx(72**-0.5, rel=0.1)


def test_sinusoid_positions_are_fixed_in_a_tower() -> None:
    tower = _tower(positions="sinusoid")
    table = tower.embeddings.position_embedding.weight
    assert torch.equal(table, sinusoid_table(65, 32)[0])
    assert not any("position" in name for name, _ in tower.named_parameters())


def test_patches_by_the_tokeniser_are_clips_own() -> None:
    """With tokens_type="patch" and CLIP's weights, nothing changes; CLIP's patches have no bias."""
    torch.manual_seed(0)
    clip = CLIPVisionModel(CLIPVisionConfig(**SIZES)).eval()
    made = retokenised(clip, Tokens(SPLITS_MEDIUM, "patch"))
    projection = made.embeddings.patch_embedding.projection
    projection.weight.data.copy_(clip.embeddings.patch_embedding.weight)
    projection.bias.data.zero_()
    x = torch.randn(2, 3, 64, 64)
    assert torch.allclose(made(x).last_hidden_state, clip(x).last_hidden_state, atol=1e-6)
    assert not made.training
    larger = torch.randn(1, 3, 96, 96)
    assert torch.allclose(
        made(larger, interpolate_pos_encoding=True).last_hidden_state,
        clip(larger, interpolate_pos_encoding=True).last_hidden_state,
        atol=1e-6,
    )


def test_retokenising_keeps_every_other_weight() -> None:
    clip = CLIPVisionModel(CLIPVisionConfig(**{**SIZES, "patch_size": 16}))
    made = retokenised(clip, Tokens(SPLITS_MEDIUM, token_dim=8))
    kept = {n: v for n, v in clip.state_dict().items() if not n.startswith("embeddings.")}
    assert all(torch.equal(made.state_dict()[name], value) for name, value in kept.items())
    assert torch.equal(made.embeddings.class_embedding, clip.embeddings.class_embedding)
    assert made.embeddings.position_embedding.weight.shape == (65, 32)  # 17 before: fresh
    fixed = retokenised(clip, Tokens(SPLITS_MEDIUM, token_dim=8), "sinusoid")
    assert torch.equal(fixed.embeddings.position_embedding.weight, sinusoid_table(65, 32)[0])


def test_llava_reads_t2t_tokens_and_survives_saving(tmp_path: Path) -> None:
    config = LlavaConfig(
        vision_config=_tower().config,
        text_config=LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            pad_token_id=0,
        ),
        image_token_index=2,
        image_seq_length=64,
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config).eval()
    assert isinstance(model.model.vision_tower, T2TCLIPVisionModel)
    ids, x = torch.tensor([[1, *[2] * 64, 5, 6]]), torch.randn(1, 3, 64, 64)
    logits = model(input_ids=ids, pixel_values=x).logits
    model.save_pretrained(tmp_path)
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(input_ids=ids, pixel_values=x).logits, logits)
    made = loaded.generate(input_ids=ids, pixel_values=x, max_new_tokens=3, min_new_tokens=3)
    assert made.shape == (1, 70)
    loss = loaded.train()(input_ids=ids, pixel_values=x, labels=ids).loss
    loss.backward()
    tokeniser = loaded.model.vision_tower.embeddings.patch_embedding
    assert all(value.grad is not None for value in tokeniser.parameters())


def test_what_a_tower_cannot_take() -> None:
    tower = _tower()
    with pytest.raises(InputError, match="64 x 72 pixels, but the tower is for 64 x 64"):
        tower(torch.zeros(1, 3, 64, 72))
    with pytest.raises(InputError, match="scale them to floats"):
        tower(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(InputError, match="60 x 60 pixels cannot be cut"):
        tower(torch.zeros(1, 3, 60, 60), interpolate_pos_encoding=True)
    with pytest.raises(InputError, match="choose learned or sinusoid"):
        _tower(positions="rotary")
    square = CLIPVisionConfig(**{**SIZES, "image_size": (64, 96)})
    with pytest.raises(InputError, match="CLIP towers are square"):
        T2TCLIPVisionModel(T2TCLIPVisionConfig.of(Tokens(SPLITS_MEDIUM), square))
    with pytest.raises(InputError, match="cannot be cut with a total stride of 16"):
        retokenised(CLIPVisionModel(CLIPVisionConfig(**{**SIZES, "image_size": 40})), Tokens())
    other = ViTModel(ViTConfig(hidden_size=12, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(CapabilityError, match="ViTModel is no CLIPVisionModel"):
        retokenised(other, Tokens())  # type: ignore[arg-type]
