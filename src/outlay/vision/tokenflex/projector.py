"""The projector of TokenFLEX: pool an encoder's patches to any grid, then map them to the decoder.

TokenFLEX (arXiv 2504.03154), section on the adaptive projector. `Y = W_d(SiLU(W_g P) * (W_u P))` on
pooled patches P. Not stated there, and our choice: the width (as many weights as the two-layer MLP
that it replaces), no biases, an RMSNorm before the gate, and the other `order`.

Shapes: P pictures (or tiles of them), K = G x G patches of an encoder, C its width, D the decoder's
width, N tokens of a picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outlay.errors import CapabilityError, InputError
from outlay.vision.tokenflex.grids import Count, Grid, check_counts, grid_of

Kind = Literal["swiglu", "mlp"]
Order = Literal["pool_first", "project_first"]
Pool = Literal["adaptive_avg", "adaptive_max"]
MULTIPLE = 8
MAX_WIDTH = 1 << 17


@dataclass(frozen=True)
class ProjectorConfig:
    """What a checkpoint must know of its projector; kept as `config.tokenflex`.

    Args:
        projector: gated (`swiglu`), or LLaVA's two layers (`mlp`), the ablation.
        hidden: width of the gate; None gives as many weights as LLaVA's projector has.
        order: pool the patches and project what is left, or the other way round.
        pool: average (the paper's) or maximum of a bin.
        norm: RMSNorm on what enters the gate.
        eps: of that norm.
        counts: that the model is trained with.
        n_visual_tokens: used where nobody asks for a count; None is the largest of `counts`.
        tiles: whether images of several tiles (LLaVA-NeXT) are in the training data.
    """

    projector: Kind = "swiglu"
    hidden: int | None = None
    order: Order = "pool_first"
    pool: Pool = "adaptive_avg"
    norm: bool = True
    eps: float = 1e-6
    counts: tuple[Count, ...] = (64, 144, 256)
    n_visual_tokens: Count | None = None
    tiles: bool = True

    def __post_init__(self) -> None:
        for knob, known in (
            ("projector", ("swiglu", "mlp")),
            ("order", ("pool_first", "project_first")),
            ("pool", ("adaptive_avg", "adaptive_max")),
        ):
            if getattr(self, knob) not in known:
                raise InputError(
                    f"{knob}={getattr(self, knob)!r}; must be one of {', '.join(known)}"
                )
        if self.hidden is not None and not 1 <= self.hidden <= MAX_WIDTH:
            raise InputError(f"hidden={self.hidden}; must be 1 to {MAX_WIDTH}, or None")
        if not self.eps > 0:
            raise InputError(f"eps={self.eps}; must be above 0")
        check_counts(self.counts)

    @property
    def native(self) -> Count:
        """Tokens of an image where nobody asks for a count."""
        return self.counts[-1] if self.n_visual_tokens is None else self.n_visual_tokens

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ProjectorConfig:
        """From `to_dict`, also after JSON made lists of its tuples.

        Raises:
            InputError: for names that are no knobs.
        """
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise InputError(f"config.tokenflex has {', '.join(unknown)}, which are no knobs of it")
        values = dict(values)
        counts = values.get("counts", cls.counts)
        values["counts"] = tuple(_count(count) for count in counts)
        if values.get("n_visual_tokens") is not None:
            values["n_visual_tokens"] = _count(values["n_visual_tokens"])
        return cls(**values)


def _count(value: Any) -> Count:
    return tuple(value) if isinstance(value, (list, tuple)) else value


def matched_width(width: int, decoder: int) -> int:
    """Width of a gate with as many weights as the MLP `width -> decoder -> decoder`.

    `2 C h + h D = C D + D D`, rounded to a multiple of 8. From a width of 80 up, rounding moves the
    number of weights by at most 5 %.
    """
    exact = decoder * (width + decoder) / (2 * width + decoder)
    return max(MULTIPLE, MULTIPLE * int(exact / MULTIPLE + 0.5))


@dataclass
class Request:
    """What is asked of a projector while a context is open.

    Args:
        grids: one for all pictures, or one each.
        fill: whether prompts may have a placeholder for every patch.
        full: of every image, tokens at the encoder's full grid, where tiles were packed.
        rows: of every prompt, features of its images, once they are known.
        generating: whether `generate` has filled the prompts already.
    """

    grids: tuple[Grid, ...]
    fill: bool = False
    full: list[int] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)
    generating: bool = False


_REQUESTS: ContextVar[dict[int, Request] | None] = ContextVar("tokenflex", default=None)


class FlexProjector(nn.Module):
    """Pools a picture's patches to a grid and maps them to the decoder's width.

    Args:
        width: of the encoder.
        decoder: width of the decoder.
        grid: of the encoder's patches.
        config: the knobs.
        bias: of the two layers of `projector="mlp"`.

    Raises:
        InputError: for a count that the encoder's grid cannot give.
    """

    def __init__(
        self,
        width: int,
        decoder: int,
        grid: Grid,
        config: ProjectorConfig | None = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.settings = ProjectorConfig() if config is None else config
        self.grid = grid
        check_counts(self.settings.counts, grid)
        self.native = grid_of(self.settings.native, grid, knob="n_visual_tokens")
        self.hidden = self.settings.hidden or matched_width(width, decoder)
        if self.settings.projector == "mlp":
            self.linear_1 = nn.Linear(width, decoder, bias=bias)
            self.linear_2 = nn.Linear(decoder, decoder, bias=bias)
            return
        self.norm = nn.RMSNorm(width, eps=self.settings.eps) if self.settings.norm else None
        self.gate = nn.Linear(width, self.hidden, bias=False)
        self.up = nn.Linear(width, self.hidden, bias=False)
        self.down = nn.Linear(self.hidden, decoder, bias=False)

    @property
    def request(self) -> Request | None:
        """What an open context asks for."""
        return (_REQUESTS.get() or {}).get(id(self))

    def asked(self, pictures: int) -> list[Grid]:
        """The grid of every picture.

        Raises:
            InputError: if grids were given for another number of pictures.
        """
        request = self.request
        grids = (self.native,) if request is None else request.grids
        if len(grids) == 1:
            return [grids[0]] * pictures
        if len(grids) != pictures:
            raise InputError(f"{len(grids)} counts for {pictures} pictures; give one, or one each")
        return list(grids)

    def project(self, tokens: Tensor) -> Tensor:
        """(..., C) -> (..., D), token by token."""
        if self.settings.projector == "mlp":
            return self.linear_2(F.gelu(self.linear_1(tokens)))
        if self.norm is not None:
            tokens = self.norm(tokens)
        return self.down(F.silu(self.gate(tokens)) * self.up(tokens))

    def pooled(self, patches_PKX: Tensor, grid: Grid) -> Tensor:
        """(P, K, X) -> (P, N, X)."""
        if grid == self.grid:
            return patches_PKX
        pictures, _, width = patches_PKX.shape
        maps = patches_PKX.transpose(1, 2).reshape(pictures, width, self.grid.rows, -1)
        size = (grid.rows, grid.columns)
        if self.settings.pool == "adaptive_max":
            maps = F.adaptive_max_pool2d(maps, size)
        else:
            maps = F.adaptive_avg_pool2d(maps, size)
        return maps.flatten(2).transpose(1, 2)

    def at(self, patches_PKC: Tensor, grid: Grid) -> Tensor:
        """(P, K, C) -> (P, N, D), at one grid."""
        if self.settings.order == "project_first":
            return self.pooled(self.project(patches_PKC), grid)
        return self.project(self.pooled(patches_PKC, grid))

    def forward(self, patches_PKC: Tensor) -> Tensor | list[Tensor]:
        """(P, N, D); a list of (N, D) where pictures were asked for at different grids.

        Raises:
            CapabilityError: if the patches do not fill the encoder's grid.
        """
        if patches_PKC.shape[-2] != self.grid.count:
            raise CapabilityError(
                f"the projector got {patches_PKC.shape[-2]} tokens of a picture and the encoder's "
                f"grid is {self.grid.rows} x {self.grid.columns}; a class token must be left out "
                "(vision_feature_select_strategy='default')"
            )
        grids = self.asked(len(patches_PKC))
        kinds = sorted(set(grids), key=lambda grid: grid.count)
        if len(kinds) <= 1:
            return self.at(patches_PKC, kinds[0] if kinds else self.native)
        found: list[Tensor] = [patches_PKC] * len(grids)
        for kind in kinds:
            rows = [i for i, grid in enumerate(grids) if grid == kind]
            index = torch.tensor(rows, device=patches_PKC.device)
            for i, features_ND in zip(rows, self.at(patches_PKC[index], kind), strict=True):
                found[i] = features_ND
        return found


@contextmanager
def asking(projector: FlexProjector, grids: Sequence[Grid]) -> Iterator[Request]:
    """A context in which a projector gives these grids.

    Other projectors, threads and tasks are not touched.

    Args:
        projector: asked.
        grids: one for all pictures, or one each.

    Raises:
        InputError: for no grids.
    """
    if not grids:
        raise InputError("no counts; give one, or one for every picture")
    request = Request(tuple(grids))
    token = _REQUESTS.set({**(_REQUESTS.get() or {}), id(projector): request})
    try:
        yield request
    finally:
        _REQUESTS.reset(token)
