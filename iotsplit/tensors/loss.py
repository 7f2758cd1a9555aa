"""The loss by the last hidden state, a piece of the positions at a time: logits never exist as a whole."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

IGNORED = -100

_LOGITS_AT_ONCE = 1 << 22  # values: 16 MiB of float32, about three times over in the backward pass

Head = Callable[[torch.Tensor], torch.Tensor]
"""Hidden states (positions, width) before the final norm to logits (positions, vocabulary)."""


class _LossSum(torch.autograd.Function):
    """Sum of the cross entropies; the backward pass is done in the forward pass, piece by piece.

    Only the gradient by the hidden states is kept: norm and head are frozen.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, labels: torch.Tensor, head: Head, rows: int) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), rows):
            piece = hidden[start : start + rows].detach()
            with torch.set_grad_enabled(gradient is not None):
                piece.requires_grad_(gradient is not None)
                losses = F.cross_entropy(head(piece), labels[start : start + rows], reduction="none")
            total += losses.detach().sum(dtype=torch.float64)
            if gradient is not None:
                ones = torch.ones_like(losses)
                (gradient[start : start + rows],) = torch.autograd.grad(losses, piece, ones)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outputs[0].to(gradient.dtype), None, None, None


def loss_sum(
    hidden: torch.Tensor, labels: torch.Tensor, head: Head, vocabulary: int
) -> tuple[torch.Tensor, int]:
    """Cross entropy summed over the labelled positions, and their number.

    Args:
        hidden: (batch, time, width), before the final norm.
        labels: (batch, time), the id of the token that follows; -100 where there is no loss.
        head: final norm and projection.
        vocabulary: number of ids.

    Returns:
        A float64 scalar, differentiable by `hidden`, and the number of positions that count.
    """
    counted = labels != IGNORED
    rows = _rows(vocabulary)
    total: torch.Tensor = _LossSum.apply(hidden[counted], labels[counted], head, rows)  # type: ignore[no-untyped-call]  # torch's own
    return total, int(counted.sum())


def score(
    hidden: torch.Tensor, labels: torch.Tensor, head: Head, vocabulary: int
) -> tuple[float, int, int, int]:
    """What held-out text scores: sums, so that micro-batches add up.

    Args:
        hidden: (batch, time, width), before the final norm.
        labels: (batch, time) as for `loss_sum`.
        head: final norm and projection.
        vocabulary: number of ids.

    Returns:
        Summed loss, its tokens, sequences of which every labelled token is the most probable one,
        and sequences with at least one label.
    """
    counted = labels != IGNORED
    kept, wanted = hidden.detach()[counted], labels[counted]  # (positions, width), (positions,)
    right = torch.empty_like(wanted, dtype=torch.bool)
    total, rows = 0.0, _rows(vocabulary)
    with torch.no_grad():
        for start in range(0, len(kept), rows):
            logits = head(kept[start : start + rows])  # (positions, vocabulary)
            targets = wanted[start : start + rows]
            losses = F.cross_entropy(logits, targets, reduction="none")
            total += float(losses.sum(dtype=torch.float64))
            right[start : start + rows] = logits.argmax(dim=-1) == targets
    wrong = torch.zeros_like(counted)
    wrong[counted] = ~right
    present = counted.any(dim=1)  # (batch,)
    exact = present & ~wrong.any(dim=1)
    return total, int(counted.sum()), int(exact.sum()), int(present.sum())


def _rows(vocabulary: int) -> int:
    return max(16, min(1024, _LOGITS_AT_ONCE // vocabulary))
