"""Weight-only int8 for decoding on CPUs: the "fast" mode there.

Decoding one sequence reads every weight once a token, so its speed is that of memory. Here each
linear layer holds int8 weights with one scale per output row, used by torch's packed kernel for up
to `FEW_ROWS` rows, and the same quantised values in fp32 for everything wider (prefill, scoring,
large batches), where arithmetic is the limit and int8 would lose. Both are one model: they differ
by the rounding of activations to bf16 alone.

Measured by `benchmarks/models.py`. On CPUs without bf16 instructions bf16 weights are slower than
fp32.

Shapes: B rows, I inputs, O outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

FEW_ROWS = 3
_BLOCK = 32  # the packed kernel reads whole blocks of inputs, past the end of rows that are shorter


class Int8Linear(nn.Module):
    """A linear layer with int8 weights and one scale per output row.

    Args:
        linear: the layer to replace; its weights are rounded in place.
    """

    int8_OI: torch.Tensor
    scale_O: torch.Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight_OI = linear.weight.data.float()
        # The kernel takes scales in bf16: round them first, so that both forms are one model.
        scale_O = (weight_OI.abs().amax(1) / 127).clamp(min=1e-12).bfloat16()
        int8_OI = (weight_OI / scale_O.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        self.weight = nn.Parameter(int8_OI.float() * scale_O.float()[:, None], requires_grad=False)
        self.bias = linear.bias
        self.register_buffer("int8_OI", int8_OI, persistent=False)
        self.register_buffer("scale_O", scale_O, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., I) to (..., O)."""
        rows = x.numel() // x.shape[-1]
        if rows > FEW_ROWS or x.shape[-1] % _BLOCK:
            return F.linear(x, self.weight, self.bias)
        few_BI = x.reshape(rows, x.shape[-1]).bfloat16()
        out_BO = torch._weight_int8pack_mm(few_BI, self.int8_OI, self.scale_O).to(x.dtype)
        if self.bias is not None:
            out_BO = out_BO + self.bias
        return out_BO.reshape(*x.shape[:-1], -1)


def quantise_linears(model: nn.Module) -> int:
    """Replace every linear layer of `model` by `Int8Linear`; returns how many.

    A vocabulary projection tied to the embedding gets its own int8 copy; the embedding keeps its
    fp32 values (a lookup reads one row and gains nothing).
    """
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
    ]
    for parent, name, child in found:
        setattr(parent, name, Int8Linear(child))
    return len(found)
