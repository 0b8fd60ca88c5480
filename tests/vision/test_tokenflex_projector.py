"""TokenFLEX's projector: pooling, gate, width, and what is asked of it."""

from __future__ import annotations

import math
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from outlay.errors import CapabilityError, InputError
from outlay.vision.tokenflex import (
    FlexProjector,
    Grid,
    ProjectorConfig,
    bins,
    grid_of,
    matched_width,
)
from outlay.vision.tokenflex.grids import check_counts
from outlay.vision.tokenflex.projector import asking


def projector(side: int = 6, width: int = 16, decoder: int = 24, **knobs: object) -> FlexProjector:
    torch.manual_seed(0)
    known = {"counts": (1, 4, 9), **knobs}
    made = FlexProjector(width, decoder, Grid(side, side), ProjectorConfig(**known))  # type: ignore[arg-type]
    return made.double().eval()


def patches(side: int = 6, width: int = 16, pictures: int = 2, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(pictures, side * side, width, generator=generator, dtype=torch.float64)


def slowly(made: FlexProjector, features_C: torch.Tensor) -> torch.Tensor:
    """One token, from the formula."""
    scale = torch.ones_like(features_C) if made.norm is None else made.norm.weight
    if made.norm is not None:
        features_C = features_C / (features_C.pow(2).mean() + made.settings.eps).sqrt() * scale
    gate, up = made.gate.weight @ features_C, made.up.weight @ features_C
    return made.down.weight @ (gate / (1 + (-gate).exp()) * up)


@given(before=st.integers(1, 40), share=st.floats(0, 1))
def test_bins_are_those_of_adaptive_pooling(before: int, share: float) -> None:
    after = 1 + round(share * (before - 1))
    values = torch.randn(before, generator=torch.Generator().manual_seed(before)).double()
    pooled = F.adaptive_avg_pool1d(values[None, None], after)[0, 0]
    slow = torch.stack([values[start:end].mean() for start, end in bins(before, after)])
    assert torch.allclose(pooled, slow, atol=1e-12)


@pytest.mark.parametrize("after", [8, 12, 16])
def test_bins_of_the_papers_grid_overlap(after: int) -> None:
    """27 patches a side, and no count of the paper divides it."""
    cut = bins(27, after)
    assert cut[0][0] == 0
    assert cut[-1][1] == 27
    assert sum(end - start for start, end in cut) > 27


@pytest.mark.parametrize("pool", ["adaptive_avg", "adaptive_max"])
@pytest.mark.parametrize("grid", [Grid(1, 1), Grid(4, 4), Grid(5, 3), Grid(6, 6)])
def test_every_pooled_token_is_that_of_its_bin(grid: Grid, pool: str) -> None:
    made, x_PKC = projector(pool=pool), patches()
    maps = x_PKC.view(2, 6, 6, 16)
    slow = []
    for top, bottom in bins(6, grid.rows):
        for left, right in bins(6, grid.columns):
            part = maps[:, top:bottom, left:right].flatten(1, 2)
            slow.append(part.mean(1) if pool == "adaptive_avg" else part.amax(1))
    assert torch.allclose(made.pooled(x_PKC, grid), torch.stack(slow, 1), atol=1e-12)


def test_the_full_grid_is_the_gate_of_every_patch_exactly() -> None:
    made, x_PKC = projector(), patches()
    with asking(made, [Grid(6, 6)]):
        full = made(x_PKC)
    assert torch.equal(full, made.project(x_PKC))
    assert torch.allclose(full[1, 7], slowly(made, x_PKC[1, 7]), atol=1e-12)


def test_torch_pools_the_full_grid_to_itself() -> None:
    """Leaving it out at the full grid changes nothing."""
    maps = patches().transpose(1, 2).reshape(2, 16, 6, 6)
    assert torch.equal(F.adaptive_avg_pool2d(maps, (6, 6)), maps)


def test_one_token_is_the_gate_of_the_mean() -> None:
    made, x_PKC = projector(), patches()
    with asking(made, [Grid(1, 1)]):
        one = made(x_PKC)
    assert one.shape == (2, 1, 24)
    assert torch.allclose(one[0, 0], slowly(made, x_PKC[0].mean(0)), atol=1e-12)


def test_without_a_norm_the_gate_sees_what_was_pooled() -> None:
    made, x_PKC = projector(norm=False), patches()
    with asking(made, [Grid(2, 2)]):
        found = made(x_PKC)
    corner = x_PKC.view(2, 6, 6, 16)[0, :3, :3].flatten(0, 1).mean(0)
    assert torch.allclose(found[0, 0], slowly(made, corner), atol=1e-12)


def test_projecting_first_pools_projected_patches() -> None:
    made, x_PKC = projector(order="project_first"), patches()
    with asking(made, [Grid(2, 2)]):
        late = made(x_PKC)
    assert torch.allclose(late, made.pooled(made.project(x_PKC), Grid(2, 2)), atol=1e-12)
    early = projector()
    early.load_state_dict(made.state_dict())
    with asking(early, [Grid(2, 2)]):
        assert not torch.allclose(late, early(x_PKC))


def test_the_mlp_is_llavas() -> None:
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    class Config:
        vision_feature_layer, projector_hidden_act, multimodal_projector_bias = -1, "gelu", True
        vision_config = type("Vision", (), {"hidden_size": 16})
        text_config = type("Text", (), {"hidden_size": 24})

    made, x_PKC = projector(projector="mlp"), patches()
    theirs = LlavaMultiModalProjector(Config()).double()
    theirs.load_state_dict(made.state_dict())
    with asking(made, [Grid(6, 6)]):
        assert torch.equal(made(x_PKC), theirs(x_PKC))


@pytest.mark.parametrize("kind", ["swiglu", "mlp"])
@pytest.mark.parametrize("order", ["pool_first", "project_first"])
def test_gradients_are_right(kind: str, order: str) -> None:
    made = projector(side=4, width=3, decoder=4, hidden=5, projector=kind, order=order)
    x_PKC = patches(4, 3).requires_grad_()
    names = [name for name, _ in made.named_parameters()]

    def run(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        with asking(made, [Grid(3, 3)]):
            return torch.func.functional_call(made, dict(zip(names, weights, strict=True)), (x,))

    weights = [parameter.detach().clone().requires_grad_() for parameter in made.parameters()]
    assert torch.autograd.gradcheck(run, (x_PKC, *weights), eps=1e-6, atol=1e-7)


def weights_of(made: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in made.parameters())


@given(width=st.integers(128, 2048), decoder=st.integers(160, 4096))
def test_the_default_width_has_as_many_weights_as_the_mlp(width: int, decoder: int) -> None:
    hidden = matched_width(width, decoder)
    gated = hidden * (2 * width + decoder) + width
    assert hidden % 8 == 0
    assert abs(gated / (width * decoder + decoder**2 + 2 * decoder) - 1) <= 0.05


def test_a_module_has_as_many_weights_as_the_width_says() -> None:
    small, plain = projector(width=96, decoder=96), projector(width=96, decoder=96, projector="mlp")
    assert small.hidden == matched_width(96, 96) == 64
    assert abs(weights_of(small) / weights_of(plain) - 1) <= 0.05
    assert matched_width(1152, 3584) == 2880  # SigLIP-400M and Qwen2.5-7B
    assert projector(hidden=40).gate.out_features == 40


def test_the_same_count_twice_gives_the_same_features() -> None:
    made, x_PKC = projector(), patches()
    with asking(made, [Grid(2, 2)]):
        alone = made(x_PKC)
    for grid in (Grid(1, 1), Grid(6, 6), Grid(3, 3)):
        with asking(made, [grid]):
            made(x_PKC)
    with asking(made, [Grid(2, 2)]):
        again = made(x_PKC)
    assert torch.equal(alone, again)


def test_pictures_may_have_different_grids() -> None:
    made, x_PKC = projector(), patches(pictures=3)
    with asking(made, [Grid(2, 2), Grid(3, 3), Grid(2, 2)]):
        found = made(x_PKC)
    assert [len(one) for one in found] == [4, 9, 4]
    for i, side in enumerate((2, 3, 2)):
        with asking(made, [Grid(side, side)]):
            assert torch.allclose(found[i], made(x_PKC)[i], atol=1e-12)


def test_a_request_ends_with_its_context_and_touches_no_other_projector() -> None:
    made, other, x_PKC = projector(), projector(), patches()
    assert made(x_PKC).shape[1] == 9  # the largest of its counts
    with asking(made, [Grid(1, 1)]):
        with asking(made, [Grid(2, 2)]):
            assert made(x_PKC).shape[1] == 4
            assert other(x_PKC).shape[1] == 9
        assert made(x_PKC).shape[1] == 1
    assert made(x_PKC).shape[1] == 9


def test_threads_ask_for_themselves() -> None:
    made, x_PKC, seen = projector(), patches(), []
    with asking(made, [Grid(2, 2)]):
        thread = threading.Thread(target=lambda: seen.append(made(x_PKC).shape[1]))
        thread.start()
        thread.join()
    assert seen == [9]


def test_patches_that_are_no_grid_are_refused() -> None:
    with pytest.raises(CapabilityError, match=r"got 37 tokens .* 6 x 6.*class token"):
        projector()(torch.zeros(2, 37, 16).double())


def test_counts_for_another_number_of_pictures_are_refused() -> None:
    made = projector()
    with (
        asking(made, [Grid(1, 1), Grid(2, 2), Grid(2, 2)]),
        pytest.raises(InputError, match="3 counts for 2 pictures"),
    ):
        made(patches())
    with pytest.raises(InputError, match="no counts"), asking(made, []):
        pass


@pytest.mark.parametrize(
    ("count", "says"),
    [
        (50, r"n=50 is not a square number; the nearest is 49"),
        (60, r"the nearest is 64"),
        (143, r"the nearest is 144"),
        (0, "must be an int of at least 1"),
        (-4, "must be an int of at least 1"),
        (True, "must be an int of at least 1"),
        (36.0, "must be an int of at least 1"),
        ("36", "must be an int of at least 1"),
        (169, "12 x 12 = 144 tokens, so choose 1 to 144"),
        ((13, 2), "asks for 13 x 2 tokens; the encoder gives 12 x 12"),
        ((0, 2), "both at least 1"),
        ((2, 2, 2), r"a grid is \(rows, columns\)"),
    ],
)
def test_a_count_that_cannot_be_is_refused(count: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        grid_of(count, Grid(12, 12))  # type: ignore[arg-type]


@given(side=st.integers(1, 30))
def test_squares_and_pairs_are_grids(side: int) -> None:
    assert grid_of(side * side) == Grid(side, side)
    assert grid_of((side, 2), Grid(30, 30)).count == 2 * side


@given(count=st.integers(1, 900))
def test_the_suggested_square_is_the_nearest(count: int) -> None:
    if math.isqrt(count) ** 2 == count:
        return
    with pytest.raises(InputError) as caught:
        grid_of(count, Grid(30, 30))
    nearest = min((side * side for side in range(1, 31)), key=lambda square: abs(square - count))
    assert f"the nearest is {nearest}," in str(caught.value)


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ((), "counts is empty"),
        ((4, 4), "give every count once"),
        ((9, 4), "from few to many"),
        ((4, 10), "counts=10 is not a square"),
        ((4, 49), "6 x 6 = 36"),
    ],
)
def test_counts_that_cannot_be_are_refused(counts: tuple[int, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_counts(counts, Grid(6, 6))


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"projector": "linear"}, "projector='linear'; must be one of swiglu, mlp"),
        ({"order": "never"}, "must be one of pool_first, project_first"),
        ({"pool": "sum"}, "must be one of adaptive_avg"),
        ({"hidden": 0}, "hidden=0"),
        ({"hidden": 1 << 20}, "hidden=1048576"),
        ({"eps": 0.0}, "eps=0.0"),
        ({"eps": float("nan")}, "eps=nan"),
        ({"counts": (9, 4)}, "from few to many"),
        ({"counts": (1, 49)}, "6 x 6 = 36"),
        ({"n_visual_tokens": 7}, "n_visual_tokens=7 is not a square"),
    ],
)
def test_bad_knobs_are_refused(knobs: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        projector(**knobs)


def test_knobs_survive_json() -> None:
    import json

    for knobs in (ProjectorConfig(), ProjectorConfig(counts=((2, 3), 9), n_visual_tokens=(2, 3))):
        assert ProjectorConfig.from_dict(json.loads(json.dumps(knobs.to_dict()))) == knobs
    with pytest.raises(InputError, match="widht, which are no knobs"):
        ProjectorConfig.from_dict({"widht": 3})
