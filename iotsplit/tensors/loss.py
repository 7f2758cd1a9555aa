"""The loss by the last hidden state, a piece of the positions at a time: logits never exist as a whole."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

IGNORED = -100

MOST_POSITIONS = 1024
"""Positions that are taken at once, whatever the vocabulary."""

_LOGITS_AT_ONCE = 1 << 23  # values: 32 MiB of float32, about three times over in the backward pass

Head = Callable[[torch.Tensor], torch.Tensor]
"""Hidden states (positions, width) before the final norm to logits (positions, vocabulary)."""


class _LossSum(torch.autograd.Function):
    """Sum of the cross entropies; the backward pass is done in the forward pass, piece by piece.

    Only the gradient by the hidden states is kept: norm and head are frozen.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, labels: torch.Tensor, head: Head, pieces: list[slice]
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for rows in pieces:
            piece = hidden[rows].detach()
            with torch.set_grad_enabled(gradient is not None):
                piece.requires_grad_(gradient is not None)
                losses = F.cross_entropy(head(piece), labels[rows], reduction="none")
                number = losses.sum()  # the gradient by anything else makes torch load 30 MB of symbolic shapes
            total += losses.detach().sum(dtype=torch.float64)
            if gradient is not None:
                (gradient[rows],) = torch.autograd.grad(number, piece)
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
    kept = hidden[counted]  # (positions, width)
    pieces = _pieces(len(kept), vocabulary)
    total: torch.Tensor = _LossSum.apply(kept, labels[counted], head, pieces)  # type: ignore[no-untyped-call]  # torch's own
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
    total = 0.0
    with torch.no_grad():
        for rows in _pieces(len(kept), vocabulary):
            logits = head(kept[rows])  # (positions, vocabulary)
            targets = wanted[rows]
            losses = F.cross_entropy(logits, targets, reduction="none")
            total += float(losses.sum(dtype=torch.float64))
            right[rows] = logits.argmax(dim=-1) == targets
    wrong = torch.zeros_like(counted)
    wrong[counted] = ~right
    present = counted.any(dim=1)  # (batch,)
    exact = present & ~wrong.any(dim=1)
    return total, int(counted.sum()), int(exact.sum()), int(present.sum())


def _pieces(positions: int, vocabulary: int) -> list[slice]:
    """Pieces of about one size: the head is read once for each, however small it is."""
    most = max(1, min(MOST_POSITIONS, _LOGITS_AT_ONCE // vocabulary))
    count = -(-positions // most)
    ends = [positions * (piece + 1) // count for piece in range(count)]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
