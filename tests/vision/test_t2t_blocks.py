"""T2T-ViT's blocks: exact against slow references, their estimates, their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from outlay.vision.t2t_vit.blocks import (
    TokenPerformer,
    TokenTransformer,
    linear_attention,
    log_features,
    random_rows,
)
from outlay.vision.t2t_vit.tokens import Phi, Tokens

PHIS: tuple[Phi, ...] = ("stable", "compat")


def _slow(q: Tensor, k: Tensor, v: Tensor, w: Tensor, epsilon: float) -> Tensor:
    """The performer's attention, token by token, all weights written out."""
    count = len(w)

    def phi(u: Tensor) -> Tensor:
        parts = [math.exp(float(w[i] @ u - u @ u / 2)) / math.sqrt(count) for i in range(count)]
        return torch.tensor(parts, dtype=torch.float64)

    out = torch.zeros_like(v)
    for image in range(len(q)):
        for t in range(q.shape[1]):
            weights = [float(phi(q[image, t]) @ phi(k[image, s])) for s in range(k.shape[1])]
            for s, weight in enumerate(weights):
                out[image, t] += weight * v[image, s] / (sum(weights) + epsilon)
    return out


def _qkv(seed: int, count: int = 5, dim: int = 6, scale: float = 0.7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        scale * torch.randn(2, count, dim, generator=generator, dtype=torch.float64)
        for _ in range(3)
    ]


# -- the performer's attention --------------------------------------------------------------------


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from([0.1, 0.7, 2.0]))
def test_both_forms_equal_the_slow_reference(seed: int, scale: float) -> None:
    q, k, v = _qkv(seed, scale=scale)
    w = random_rows(3, 6).double()
    assert torch.allclose(linear_attention(q, k, v, w, "stable"), _slow(q, k, v, w, 0.0))
    assert torch.allclose(linear_attention(q, k, v, w, "compat"), _slow(q, k, v, w, 1e-8))


@pytest.mark.parametrize("phi", PHIS)
def test_attention_rows_sum_to_one(phi: Phi) -> None:
    q, k, v = _qkv(3)
    ones = torch.ones_like(v)
    made = linear_attention(q, k, ones, random_rows(16, 6).double(), phi)
    assert torch.allclose(made, ones, atol=1e-6 if phi == "compat" else 1e-12)


@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0])
def test_the_stable_form_stays_an_average_where_the_released_one_fades(scale: float) -> None:
    q, k, v = (part.float() for part in _qkv(5, scale=scale))
    w, ones = random_rows(16, 6), torch.ones(2, 5, 6)
    assert torch.allclose(linear_attention(q, k, ones, w, "stable"), ones, atol=1e-5)
    made = linear_attention(q, k, v, w, "stable")
    assert (made <= v.amax(1, keepdim=True) * 1.0001 + 1e-5).all()
    assert (made >= v.amin(1, keepdim=True) * 1.0001 - 1e-5).all()
    faded = linear_attention(q, k, ones, w, "compat")
    assert faded.isfinite().all()
    if scale > 1:
        assert (faded < 0.5).all()


def test_no_exponent_passes_half_the_squared_row_length() -> None:
    """Why released features never overflow in float32: w u - |u|^2 / 2 is at most |w|^2 / 2."""
    w = random_rows(32, 64).double()
    u = 4 * torch.randn(1, 500, 64, dtype=torch.float64)
    at_best = w[None]  # u = w
    assert log_features(u, w).max() <= 16 + 1e-9
    assert torch.diagonal(log_features(at_best, w)[0]).max() == pytest.approx(16)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("phi", PHIS)
def test_half_precision_is_computed_in_float32(kind: torch.dtype, phi: Phi) -> None:
    q, k, v = (part.to(kind) for part in _qkv(7, scale=40.0))
    w = random_rows(16, 6)
    made = linear_attention(q, k, v, w, phi)
    wanted = linear_attention(q.float(), k.float(), v.float(), w, phi)
    assert made.dtype == kind
    assert torch.equal(made, wanted.to(kind))
    assert made.isfinite().all()


def test_autocast_does_not_reach_the_features() -> None:
    q, k, v = (part.float() for part in _qkv(8, scale=3.0))
    w = random_rows(16, 6)
    with torch.autocast("cpu", torch.bfloat16):
        made = linear_attention(q, k, v, w)
    assert torch.equal(made, linear_attention(q, k, v, w))


# -- random features ------------------------------------------------------------------------------


def test_features_of_gaussian_rows_estimate_the_softmax_kernel() -> None:
    """E[phi(x) phi(y)] = exp(x y); 64 estimates of 4096 features each."""
    torch.manual_seed(0)
    x, y = _short()
    estimates = []
    for _ in range(64):
        w = torch.randn(4096, 8, dtype=torch.float64)
        estimates.append(float((log_features(x, w) + log_features(y, w)).exp().mean()))
    mean = sum(estimates) / 64
    error = torch.tensor(estimates).std() / 8
    assert abs(mean - math.exp(float((x * y).sum()))) < 4 * error
    assert mean == pytest.approx(math.exp(float((x * y).sum())), rel=0.02)


def _short() -> tuple[Tensor, Tensor]:
    """Two vectors of length 0.6, at an acute angle: long ones need too many features."""
    x, y = torch.randn(2, 1, 1, 8, dtype=torch.float64)
    x, y = 0.6 * x / x.norm(), 0.6 * y / y.norm()
    return x, y * torch.sign((x * y).sum())


def _bias(rows: str) -> float:
    """Relative error of the mean estimate of exp(x y) by many draws of orthogonal rows."""
    torch.manual_seed(1)
    x, y = _short()
    w = torch.cat([random_rows(4, 8, rows).double() for _ in range(4000)])  # type: ignore[arg-type]
    estimate = (log_features(x, w) + log_features(y, w)).exp().mean()
    return float(estimate / math.exp(float((x * y).sum())) - 1)


def test_only_rows_of_length_sqrt_c_estimate_it_well() -> None:
    """Released rows, of length sqrt(m), are too short when m < c."""
    assert abs(_bias("sqrt_c")) < 0.04
    assert _bias("sqrt_m") < -0.1


@given(st.integers(1, 20), st.integers(1, 9), st.sampled_from(["sqrt_m", "sqrt_c"]))
def test_rows_are_orthogonal_in_blocks_and_equally_long(m: int, c: int, rows: str) -> None:
    w = random_rows(m, c, rows).double()  # type: ignore[arg-type]
    assert w.shape == (m, c)
    length = m if rows == "sqrt_m" else c
    for start in range(0, m, c):
        block = w[start : start + c]
        assert torch.allclose(block @ block.T, length * torch.eye(len(block)).double(), atol=1e-4)


def test_random_rows_are_kept_in_the_state_and_never_trained() -> None:
    block = TokenPerformer(9, Tokens(token_dim=8))
    assert "w" in block.state_dict()
    assert "w" not in dict(block.named_parameters())
    before = block.w.clone()
    optimiser = torch.optim.SGD(block.parameters(), lr=0.1)
    block(torch.randn(2, 5, 9)).square().mean().backward()
    optimiser.step()
    assert block.w.grad is None
    assert torch.equal(block.w, before)


# -- whole blocks ---------------------------------------------------------------------------------


def test_the_transformer_block_scales_by_the_width_of_its_input() -> None:
    block = TokenTransformer(9, 4).double().eval()
    x = torch.randn(2, 7, 9, dtype=torch.float64)
    q, k, v = (block.norm1(x) @ block.qkv.weight.T).chunk(3, -1)
    y = torch.zeros(2, 7, 4, dtype=torch.float64)
    for image in range(2):
        for t in range(7):
            scores = torch.stack([(q[image, t] / 3) @ k[image, s] for s in range(7)])
            y[image, t] = sum(a * v[image, s] for s, a in enumerate(scores.softmax(0)))
    y = v + y @ block.proj.weight.T + block.proj.bias
    z = block.norm2(y)
    hidden = z @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
    gelu = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    wanted = y + gelu @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
    assert torch.allclose(block(x), wanted)
    assert block.qkv.bias is None


def test_the_performer_block_takes_keys_first_and_its_residual_from_the_values() -> None:
    block = TokenPerformer(9, Tokens(token_dim=4, phi="compat")).double().eval()
    block.requires_grad_(False)
    x = torch.randn(2, 7, 9, dtype=torch.float64)
    k, q, v = (block.norm1(x) @ block.kqv.weight.T + block.kqv.bias).chunk(3, -1)
    y = v + F.linear(_slow(q, k, v, block.w, 1e-8), block.proj.weight, block.proj.bias)
    assert torch.allclose(block(x), y + block.mlp(block.norm2(y)))
    assert block.norm1.eps == 1e-5


def test_the_performer_drops_in_training_only() -> None:
    block = TokenPerformer(9, Tokens(token_dim=8, dropout=0.5))
    x = torch.randn(1, 6, 9)
    assert not torch.equal(block.train()(x), block(x))
    assert torch.equal(block.eval()(x), block(x))


@pytest.mark.parametrize("phi", PHIS)
def test_gradients_of_the_performer_are_exact(phi: Phi) -> None:
    torch.manual_seed(0)
    block = TokenPerformer(5, Tokens(token_dim=4, phi=phi, dropout=0.0)).double()
    x = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    parameters = tuple(block.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: block(x), (x, *parameters))


def test_gradients_of_the_transformer_are_exact() -> None:
    torch.manual_seed(0)
    block = TokenTransformer(5, 4).double()
    x = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: block(x), (x, *block.parameters()))


def test_both_forms_have_the_same_gradients_where_nothing_fades() -> None:
    grads = []
    for phi in PHIS:
        q, k, v = (part.requires_grad_() for part in _qkv(11, scale=0.3))
        w = torch.linspace(-1, 1, 18, dtype=torch.float64).reshape(3, 6)
        linear_attention(q, k, v, w, phi).square().sum().backward()
        grads.append(torch.stack([q.grad, k.grad, v.grad]))  # type: ignore[arg-type, list-item]
    assert torch.allclose(*grads, atol=1e-6)
