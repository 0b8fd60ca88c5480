"""T2T-ViT as a transformers model: positions, sizes, saving, averaging, groups."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForImageClassification

from outlay.errors import InputError
from outlay.vision.t2t_vit import T2TViT
from outlay.vision.t2t_vit.model import T2TViTConfig, T2TViTForImageClassification, T2TViTModel
from outlay.vision.t2t_vit.positions import resize_positions, sinusoid_table
from outlay.vision.t2t_vit.tokens import SPLITS_SMALL, TokensType
from outlay.vision.t2t_vit.training import averaged, decay_for, parameter_groups, transfer_groups

TYPES: tuple[TokensType, ...] = ("performer", "transformer", "conv", "patch")
TINY = T2TViT(
    splits=SPLITS_SMALL,
    token_dim=8,
    embed_dim=24,
    depth=3,
    heads=3,
    mlp_ratio=2.0,
    img_size=28,
    num_classes=5,
)
PLACE = "vit.embeddings.position_embeddings"


def _tiny(**knobs: Any) -> T2TViTForImageClassification:
    torch.manual_seed(0)
    return replace(TINY, **knobs).build().eval()


# -- positions ------------------------------------------------------------------------------------


def test_the_position_table_is_the_closed_form() -> None:
    table = sinusoid_table(50, 24)
    for position in (0, 1, 7, 49):
        for j in range(24):
            angle = position / 10_000 ** (2 * (j // 2) / 24)
            wanted = math.sin(angle) if j % 2 == 0 else math.cos(angle)
            assert float(table[0, position, j]) == pytest.approx(wanted, abs=1e-6)
    assert torch.equal(_tiny().state_dict()[PLACE], table)


def test_the_fixed_table_is_never_trained_and_a_learned_one_is() -> None:
    for pos in ("sinusoid", "learned"):
        model = _tiny(pos=pos).train()
        before = model.state_dict()[PLACE].clone()
        optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
        model(torch.randn(2, 3, 28, 28), labels=torch.tensor([0, 1])).loss.backward()
        optimiser.step()
        assert torch.equal(model.state_dict()[PLACE], before) == (pos == "sinusoid")


def test_positions_move_to_another_grid_with_cls_in_place() -> None:
    table = torch.randn(1, 1 + 6, 4)
    moved = resize_positions(table, (2, 3), (4, 9))
    assert moved.shape == (1, 37, 4)
    assert torch.equal(moved[:, 0], table[:, 0])
    assert resize_positions(table, (2, 3), (2, 3)) is table
    flat = torch.ones(1, 1 + 6, 4)
    assert torch.allclose(resize_positions(flat, (2, 3), (5, 5)), torch.ones(1, 26, 4))
    # A ramp along the columns stays one, and rows stay equal: height and width are not mixed up.
    ramp = torch.cat([torch.zeros(1), torch.arange(3.0).repeat(2)])[None, :, None]
    grown = resize_positions(ramp, (2, 3), (2, 6))[0, 1:, 0].reshape(2, 6)
    assert torch.equal(grown[0], grown[1])
    assert (grown[0].diff() > 0).all()
    with pytest.raises(InputError, match=r"not for a grid of \(3, 3\)"):
        resize_positions(table, (3, 3), (4, 4))


def test_a_model_is_resized_by_interpolation_or_anew() -> None:
    old = _tiny()
    x = torch.randn(1, 3, 28, 36)
    with pytest.raises(InputError, match="28 x 36 pixels, but the position table is for 28 x 28"):
        old(x)
    wanted = old(x, interpolate_pos_encoding=True).logits
    moved, anew = _tiny(), _tiny()
    moved.resize((28, 36))
    anew.resize((28, 36), "recompute")
    assert torch.allclose(moved(x).logits, wanted, atol=1e-6)
    assert torch.equal(anew.state_dict()[PLACE], sinusoid_table(1 + 7 * 9, 24))
    assert not torch.allclose(anew(x).logits, wanted, atol=1e-4)
    assert anew.method.img_size == (28, 36)
    assert anew.vit.embeddings.patch_embeddings.num_patches == 63
    with pytest.raises(InputError, match="multiples of it"):
        anew.resize(30)
    with pytest.raises(InputError, match="choose interpolate or recompute"):
        anew.resize(28, "nearest")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="learned positions have no formula"):
        _tiny(pos="learned").resize(32, "recompute")


def test_learned_positions_stay_trainable_after_resizing() -> None:
    model = _tiny(pos="learned")
    model.resize(32)
    assert model.get_parameter(PLACE).requires_grad
    assert model.get_parameter(PLACE).shape == (1, 65, 24)


# -- a transformers model -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("pos", ["sinusoid", "learned"])
def test_a_saved_model_is_the_same_when_loaded(kind: TokensType, pos: str, tmp_path: Path) -> None:
    model = _tiny(tokens_type=kind, pos=pos, qk_scale=0.3, img_size=(28, 32), phi="compat")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, T2TViTForImageClassification)
    x = torch.randn(2, 3, 28, 32)
    assert torch.equal(loaded(x).logits, model(x).logits)
    assert loaded.method == model.method
    assert loaded.state_dict().keys() == model.state_dict().keys()
    trainable = {name for name, value in model.named_parameters() if value.requires_grad}
    assert {name for name, value in loaded.named_parameters() if value.requires_grad} == trainable
    backbone = AutoModel.from_pretrained(tmp_path)
    assert isinstance(backbone, T2TViTModel)
    assert torch.equal(backbone(x).last_hidden_state, model.vit(x).last_hidden_state)


def test_a_resized_model_survives_saving(tmp_path: Path) -> None:
    model = _tiny()
    model.resize((32, 28))
    model.save_pretrained(tmp_path)
    loaded = T2TViTForImageClassification.from_pretrained(tmp_path).eval()
    x = torch.randn(1, 3, 32, 28)
    assert torch.equal(loaded.state_dict()[PLACE], model.state_dict()[PLACE])
    assert torch.allclose(loaded(x).logits, model(x).logits, atol=1e-6)


def test_a_backbone_gets_a_fresh_head_with_its_tables_intact(tmp_path: Path) -> None:
    model = _tiny()
    model.vit.save_pretrained(tmp_path)
    loaded = T2TViTForImageClassification.from_pretrained(tmp_path, num_labels=7)
    assert loaded.classifier.out_features == 7
    for name, value in model.vit.state_dict().items():
        assert torch.equal(loaded.vit.state_dict()[name], value)


def test_configurations_say_what_the_knobs_say() -> None:
    method = replace(TINY, mlp_ratio=1.7, drop_path=0.3, channels=1, rows="sqrt_c", token_dim=9)
    config = T2TViTConfig.of(method)
    assert config.method().mlp_width == method.mlp_width == int(24 * 1.7)
    assert replace(config.method(), mlp_ratio=1.7) == method
    assert config.patch_size == 4
    assert T2TViTConfig(**json.loads(config.to_json_string())).method() == config.method()
    with pytest.raises(InputError, match="heads=5 does not divide"):
        T2TViTForImageClassification(T2TViTConfig(num_attention_heads=5))


def test_attentions_and_hidden_states_come_as_from_any_vit() -> None:
    model = _tiny()
    model.set_attn_implementation("eager")
    x = torch.randn(2, 3, 28, 28)
    out = model(x, output_attentions=True, output_hidden_states=True)
    assert len(out.attentions) == 3
    assert out.attentions[0].shape == (2, 3, 50, 50)
    assert len(out.hidden_states) == 4
    assert torch.allclose(out.logits, _tiny()(x).logits, atol=1e-5)


def test_the_scale_of_scores_is_a_knob() -> None:
    assert _tiny().vit.layers[0].attention.scaling == 8**-0.5
    assert _tiny(qk_scale=24**-0.5).vit.layers[2].attention.scaling == 24**-0.5
    released = T2TViT.preset("t2t-vit-19", released=True)
    assert (released.qk_scale, released.phi) == (448**-0.5, "compat")
    assert T2TViT.preset("t2t-vit-14-wide", released=True).qk_scale == 512**-0.5
    assert T2TViT.preset("t2t-vit-19").qk_scale is None


def test_norms_and_activations_are_torch_defaults() -> None:
    model = _tiny()
    epsilons = {m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)}
    assert epsilons == {1e-5}
    x = torch.linspace(-3, 3, 50)
    exact = x * (1 + torch.erf(x / math.sqrt(2))) / 2
    assert torch.allclose(model.vit.layers[0].mlp.activation_fn(x), exact, atol=1e-6)
    attention = model.vit.layers[0].attention
    assert attention.q_proj.bias is None
    assert attention.o_proj.bias is not None


def test_stochastic_depth_rises_to_its_rate_and_is_off_in_evaluation() -> None:
    model = _tiny(drop_path=0.4)
    rates = [getattr(layer.drop_path, "drop_prob", 0.0) for layer in model.vit.layers]
    assert rates == pytest.approx([0.0, 0.2, 0.4])
    x = torch.randn(8, 3, 28, 28)
    assert torch.equal(model(x).logits, model(x).logits)
    model.train()
    assert not torch.equal(model(x).logits, model(x).logits)


def test_initial_weights_are_those_of_the_released_code() -> None:
    model = _tiny(embed_dim=96, heads=3)
    linear = model.vit.layers[0].mlp.fc1
    model.requires_grad_(False)
    assert float(linear.weight.std()) == pytest.approx(0.02, rel=0.1)
    assert not linear.bias.any()
    assert float(model.vit.embeddings.cls_token.std()) == pytest.approx(0.02, rel=0.3)
    assert (model.vit.layernorm.weight == 1).all()
    block = model.vit.embeddings.patch_embeddings.blocks[0]
    assert torch.allclose(block.w @ block.w.T, 4 * torch.eye(4), atol=1e-5)


@pytest.mark.parametrize("kind", ["performer", "transformer"])
def test_tokens_that_start_by_fan_in_are_as_loud_as_positions(kind: TokensType) -> None:
    """The released spread of .02 makes tokens of small windows nearly silent beside positions."""
    x = torch.randn(4, 3, 28, 28)
    loud = {}
    for start in ("released", "fan_in"):
        model = _tiny(tokens_type=kind, start=start)
        tokens = model.vit.embeddings.patch_embeddings(x)
        loud[start] = float(tokens.detach().square().mean().sqrt())
        assert model.method.start == start
    assert loud["released"] < 0.05
    assert 0.7 < loud["fan_in"] < 2
    tower = _tiny(tokens_type=kind, start="fan_in").vit.layers[0].mlp.fc1.weight
    assert float(tower.detach().std()) == pytest.approx(0.02, rel=0.1)  # the backbone is untouched


@pytest.mark.parametrize("kind", TYPES)
def test_a_few_steps_learn_a_few_pictures(kind: TokensType) -> None:
    model = _tiny(tokens_type=kind, drop_path=0.0, token_dropout=0.0).train()
    x = torch.randn(10, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(10) % 5
    optimiser = torch.optim.AdamW(parameter_groups(model), lr=5e-3)
    losses = []
    for _ in range(40):
        loss = model(x, labels=labels).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2


def test_models_refuse_pixels_of_the_wrong_kind_before_casting_them() -> None:
    model = _tiny()
    with pytest.raises(InputError, match="scale them to floats"):
        model(torch.zeros(1, 3, 28, 28, dtype=torch.uint8))
    with pytest.raises(InputError, match="give a tensor"):
        model(torch.zeros(3, 28, 28))
    with pytest.raises(InputError, match="mask the pixels instead"):
        model.vit(torch.zeros(1, 3, 28, 28), bool_masked_pos=torch.zeros(1, 49))


def test_bfloat16_weights_work() -> None:
    x = torch.randn(2, 3, 28, 28)
    exact, rounded = _tiny()(x).logits, _tiny().to(torch.bfloat16)(x.bfloat16()).logits
    assert rounded.dtype == torch.bfloat16
    assert torch.allclose(rounded.float(), exact, atol=0.05)


# -- training -------------------------------------------------------------------------------------


def test_the_average_remembers_a_tenth_of_a_short_run() -> None:
    assert decay_for(1000) == pytest.approx(0.99)
    assert decay_for(10) == decay_for(1) == 0.0
    assert decay_for(10**9) == 0.99996
    for bad in (0, -3, 1.5):
        with pytest.raises(InputError, match="steps="):
            decay_for(bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"ema_decay=1\.0"):
        decay_for(10, 1.0)


def test_averaged_weights_follow_the_recursion() -> None:
    model = _tiny()
    mean = averaged(model, 40)
    weight = model.classifier.weight
    wanted = None
    for _ in range(5):
        with torch.no_grad():
            weight.add_(torch.randn(weight.shape))
        mean.update_parameters(model)
        wanted = weight.clone() if wanted is None else 0.75 * wanted + 0.25 * weight
    assert wanted is not None
    assert torch.allclose(mean.module.classifier.weight, wanted, atol=1e-6)
    assert torch.equal(mean.module.state_dict()[PLACE], model.state_dict()[PLACE])


def test_biases_norms_and_cls_do_not_decay() -> None:
    model = _tiny()
    decayed, others = parameter_groups(model, 0.05)
    names = {id(value): name for name, value in model.named_parameters()}
    free = {names[id(value)] for value in others["params"]}
    assert others["weight_decay"] == 0
    assert decayed["weight_decay"] == 0.05
    assert "vit.embeddings.cls_token" in free
    assert all(name.endswith(("bias", "cls_token")) or "norm" in name for name in free)
    assert len(decayed["params"]) + len(free) == len(names)
    with pytest.raises(InputError, match="weight_decay=-1"):
        parameter_groups(model, -1)


def test_transfer_trains_the_head_faster_and_leaves_cls_and_the_final_norm() -> None:
    model = _tiny()
    body, head = transfer_groups(model, lr=0.01)
    assert (body["lr"], head["lr"]) == (pytest.approx(1e-4), 0.01)
    names = {id(value): name for name, value in model.named_parameters()}
    trained = {names[id(value)] for group in (body, head) for value in group["params"]}
    left = set(names.values()) - trained
    assert left == {"vit.embeddings.cls_token", "vit.layernorm.weight", "vit.layernorm.bias"}
    with pytest.raises(InputError, match="lr=0"):
        transfer_groups(model, lr=0)
