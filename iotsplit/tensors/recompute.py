"""Gradient checkpointing: layers that keep only what they were given, and compute again for the backward pass.

torch's own (`torch.utils.checkpoint`) does the same, but loads 70 MB of compiler, more than it would save here.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from iotsplit.tensors.boundary import run_backward


def recompute(layers: nn.ModuleList) -> None:
    """Have each layer keep no more than its input until the backward pass; results stay the same to the bit.

    The backward pass needs the same parameters in the layers as the forward pass had.
    """
    for layer in layers:
        untyped: Any = layer  # an attribute of the instance hides the method of its class
        untyped.forward = partial(_forward, layer.forward)


def _forward(run: Callable[..., Any], hidden: torch.Tensor, *more: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return run(hidden, *more, **named)
    in_a_tuple = False

    def again(inputs: torch.Tensor) -> torch.Tensor:
        nonlocal in_a_tuple
        outputs = run(inputs, *more, **named)
        in_a_tuple = isinstance(outputs, tuple)
        hidden: torch.Tensor = outputs[0] if in_a_tuple else outputs
        return hidden

    # Embeddings are frozen, but without any input that wants a gradient there would be no backward pass.
    leaf = hidden if hidden.requires_grad else hidden.detach().requires_grad_()
    outputs: torch.Tensor = _Recomputed.apply(leaf, again)  # type: ignore[no-untyped-call]  # torch's own
    return (outputs,) if in_a_tuple else outputs


class _Recomputed(torch.autograd.Function):
    """A layer without graph, whose backward pass makes the graph, uses it, and lets it go."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, run: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        ctx.save_for_backward(hidden)
        ctx.run = run
        return run(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        (saved,) = ctx.saved_tensors
        hidden = saved.detach().requires_grad_()
        with torch.enable_grad():
            outputs = ctx.run(hidden)
        run_backward(outputs, gradients[0])
        return hidden.grad, None
