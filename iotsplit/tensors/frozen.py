"""Frozen matrices of a part in fewer bits: kept in the fleet's base type, multiplied in float32.

What is computed is what a model with those rounded weights computes in float32, forward and backward, so one
machine can compute the same. Norms, embedding and head stay as they are: small, or in their file.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from iotsplit.settings import BaseDtype

_LARGEST_INT8 = 127


def shrink(layers: nn.Module, dtype: BaseDtype) -> None:
    """Keep all frozen linear modules of the layers in a base type; float32 leaves them as they are."""
    if dtype is BaseDtype.FP32:
        return
    for parent in list(layers.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.Linear | Conv1D) and not module.weight.requires_grad:
                setattr(parent, name, FrozenLinear(module, dtype))


class FrozenLinear(nn.Module):
    """A linear module that nobody trains.

    Args:
        linear: an `nn.Linear` or GPT-2's `Conv1D`, of float32.
        dtype: what its matrix is kept in.
    """

    scale: torch.Tensor | None
    bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear | Conv1D, dtype: BaseDtype) -> None:
        super().__init__()
        matrix = linear.weight.detach()
        if isinstance(linear, Conv1D):
            matrix = matrix.T.contiguous()
        kept, scale = _pack(matrix, dtype)  # (outputs, inputs), (outputs, 1)
        self.weight = nn.Parameter(kept, requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def matrix(self) -> torch.Tensor:
        """The matrix (outputs, inputs) as float32, new at each call."""
        matrix = self.weight.to(torch.float32)
        return matrix if self.scale is None else matrix.mul_(self.scale)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Multiply (..., inputs) to (..., outputs)."""
        outputs: torch.Tensor = _Product.apply(inputs, self)  # type: ignore[no-untyped-call]  # torch's own
        return outputs


class _Product(torch.autograd.Function):
    """Makes the float32 matrix again for the backward pass, instead of keeping one for each module."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, linear: FrozenLinear) -> torch.Tensor:
        ctx.linear = linear
        return F.linear(inputs, linear.matrix(), linear.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0] @ ctx.linear.matrix(), None


def _pack(matrix: torch.Tensor, dtype: BaseDtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    if dtype is BaseDtype.BF16:
        return matrix.to(torch.bfloat16), None
    scale = matrix.abs().amax(dim=1, keepdim=True) / _LARGEST_INT8  # (outputs, 1)
    scale[scale == 0] = 1  # a row of zeros
    return (matrix / scale).round().to(torch.int8), scale
