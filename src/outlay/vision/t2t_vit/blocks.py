"""Attention over tokens between two splits: the transformer's block and the performer's.

Both take tokens of any width and give tokens of c channels (section 3.1): one head, pre-norm, an
MLP of ratio 1. The first residual is taken from the values: the input has another width.

Shapes: B images, T tokens, W width of a token, C channels c, M random features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outlay.vision.t2t_vit.tokens import Phi, Rows, Tokens

EPSILON = 1e-8
"""Added to the performer's denominator by the released code."""


class TokenMLP(nn.Module):
    """The MLP of a transformer block: one hidden layer as wide as its input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, dim)
        self.fc2 = nn.Linear(dim, dim)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Two layers with an exact GELU between them."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x_BTC)))
        return out


class TokenTransformer(nn.Module):
    """Softmax attention over all tokens. Scores are scaled by the *input's* width, as released.

    Args:
        width: of a token.
        dim: channels c of the result.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.dim, self.scale = dim, width**-0.5
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = TokenMLP(dim)

    def forward(self, x_BTW: Tensor) -> Tensor:
        """(B, T, W) -> (B, T, C)."""
        q_BTC, k_BTC, v_BTC = self.qkv(self.norm1(x_BTW)).split(self.dim, dim=-1)
        y_BTC = F.scaled_dot_product_attention(q_BTC, k_BTC, v_BTC, scale=self.scale)
        y_BTC = v_BTC + self.proj(y_BTC)
        out: Tensor = y_BTC + self.mlp(self.norm2(y_BTC))
        return out


class TokenPerformer(nn.Module):
    """Attention in time linear in T, by positive random features (arXiv 2009.14794).

    The random rows `w` are drawn once and stored; they are not trained.

    Args:
        width: of a token.
        tokens: the tokeniser's knobs.
    """

    def __init__(self, width: int, tokens: Tokens) -> None:
        super().__init__()
        dim = tokens.token_dim
        self.dim, self.phi, self.rows = dim, tokens.phi, tokens.rows
        self.norm1 = nn.LayerNorm(width)
        self.kqv = nn.Linear(width, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(tokens.dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = TokenMLP(dim)
        self.w: Tensor
        # A buffer: transformers' loader does not keep parameters frozen.
        self.register_buffer("w", random_rows(tokens.features, dim, tokens.rows))

    def fresh_rows(self) -> Tensor:
        """New random rows, (M, C)."""
        return random_rows(self.w.shape[0], self.w.shape[1], self.rows).to(self.w)

    def forward(self, x_BTW: Tensor) -> Tensor:
        """(B, T, W) -> (B, T, C)."""
        k_BTC, q_BTC, v_BTC = self.kqv(self.norm1(x_BTW)).split(self.dim, dim=-1)
        y_BTC = linear_attention(q_BTC, k_BTC, v_BTC, self.w, self.phi)
        y_BTC = v_BTC + self.dropout(self.proj(y_BTC))
        out: Tensor = y_BTC + self.dropout(self.mlp(self.norm2(y_BTC)))
        return out


def random_rows(features: int, dim: int, rows: Rows = "sqrt_m") -> Tensor:
    """Random rows (M, C), orthogonal in blocks of C; all of length sqrt(M), or of sqrt(C).

    The features estimate exp(q k) without bias for Gaussian rows, whose squared length is C on
    average. Rows of length sqrt(C) come close to that, the closer the larger C is; those of length
    sqrt(M) do not.
    """
    blocks = []
    for start in range(0, features, dim):
        block = torch.empty(min(dim, features - start), dim)
        blocks.append(nn.init.orthogonal_(block))
    length = math.sqrt(features if rows == "sqrt_m" else dim)
    return torch.cat(blocks) * length


def log_features(u_BTC: Tensor, w_MC: Tensor) -> Tensor:
    """Logarithms of the positive random features of u, without their common factor 1 / sqrt(M).

    `E[exp(log_features(x) + log_features(y))] = exp(x y)` for Gaussian rows.
    """
    return u_BTC @ w_MC.T - u_BTC.square().sum(-1, keepdim=True) / 2


def linear_attention(
    q_BTC: Tensor, k_BTC: Tensor, v_BTC: Tensor, w_MC: Tensor, phi: Phi = "stable"
) -> Tensor:
    """Attention whose weight of token t on token s is `phi(q_t) phi(k_s)`, normalised over s.

    In float32 at least, outside autocast.

    "compat" adds 1e-8 to the denominator, as released: where all features of a query are small the
    whole result fades. "stable" divides the features of keys by their largest over tokens, gives
    those factors to the queries' features, and divides these by their largest over features. Both
    cancel, and the denominator is then at least 1.
    """
    kind = torch.promote_types(v_BTC.dtype, torch.float32)
    with torch.autocast(v_BTC.device.type, enabled=False):
        q_BTC, k_BTC, values_BTC, w_MC = (x.to(kind) for x in (q_BTC, k_BTC, v_BTC, w_MC))
        q_BTM, k_BTM = log_features(q_BTC, w_MC), log_features(k_BTC, w_MC)
        if phi == "stable":
            most_B1M = k_BTM.detach().amax(1, keepdim=True)
            k_BTM, q_BTM = k_BTM - most_B1M, q_BTM + most_B1M
            q_BTM = q_BTM - q_BTM.detach().amax(-1, keepdim=True)
            q_BTM, k_BTM, epsilon = q_BTM.exp(), k_BTM.exp(), 0.0
        else:
            norm = math.sqrt(len(w_MC))
            q_BTM, k_BTM, epsilon = q_BTM.exp() / norm, k_BTM.exp() / norm, EPSILON
        den_BT1 = q_BTM @ k_BTM.sum(1).unsqueeze(-1)
        out_BTC = q_BTM @ (k_BTM.transpose(1, 2) @ values_BTC) / (den_BT1 + epsilon)
    return out_BTC.to(v_BTC.dtype)
