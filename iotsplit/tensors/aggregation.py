"""How the adapters of a round become one: each rule takes adapters and weights and gives an adapter.

Weights are relative (loss tokens trained); sums are in float64 and results in float32, so neither
the order of large and small sessions nor their number costs precision.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F

from iotsplit.errors import UsageError
from iotsplit.settings import Aggregation

Adapter = Mapping[str, torch.Tensor]
Aggregator = Callable[[Sequence[Adapter], Sequence[float]], dict[str, torch.Tensor]]

_A, _B = ".lora_A.", ".lora_B."
# Rows of a fresh A are uniform within 1/sqrt(inputs): their expected norm.
_ROW_NORM = 1 / math.sqrt(3)


def fedavg(adapters: Sequence[Adapter], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    """The weighted mean of each matrix.

    Averages A and B apart, which is not the mean of their products, but keeps what optimizers know of
    them; with one local step of a linear optimizer it is exact.
    """
    shares = _shares(adapters, weights)
    return {
        name: _weighted_sum([adapter[name] for adapter in adapters], shares).to(torch.float32)
        for name in sorted(adapters[0])
    }


def flexlora(adapters: Sequence[Adapter], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    """The best approximation, at the adapter's rank, of the weighted mean of the products B·A.

    The mean product has a rank of at most sessions x rank, so its singular vectors are found from the
    stacked small factors; the large matrix is never formed. The rows of the new A are orthogonal and as
    long as those of a fresh adapter; singular values go into B. (With the root of a singular value in
    both, directions that are not used yet would have A = B = 0, and no gradient ever after.)
    """
    shares = _shares(adapters, weights)
    merged: dict[str, torch.Tensor] = {}
    for name in sorted(adapters[0]):
        if _A not in name:
            continue
        pair = name.replace(_A, _B)
        lower = [adapter[name].to(torch.float64) for adapter in adapters]  # each (rank, inputs)
        upper = [  # each (outputs, rank)
            adapter[pair].to(torch.float64) * share for adapter, share in zip(adapters, shares, strict=True)
        ]
        merged[name], merged[pair] = _cut_back(torch.cat(lower), torch.cat(upper, dim=1), len(lower[0]))
    return dict(sorted(merged.items()))


AGGREGATORS: dict[Aggregation, Aggregator] = {
    Aggregation.FEDAVG: fedavg,
    Aggregation.FLEXLORA: flexlora,
}


def _cut_back(lower: torch.Tensor, upper: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A (rank, inputs) and B (outputs, rank) nearest to upper (outputs, n) x lower (n, inputs)."""
    left, left_core = torch.linalg.qr(upper)  # (outputs, n), (n, n)
    right, right_core = torch.linalg.qr(lower.T)  # (inputs, n), (n, n)
    u, values, vt = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    a = vt[:rank] @ right.T  # (rank, inputs), orthonormal rows
    b = (left @ u[:, :rank]) * values[:rank]  # (outputs, rank)
    # A singular vector is known up to its sign: make the largest entry of each row of A positive.
    largest = a.gather(1, a.abs().argmax(dim=1, keepdim=True))  # (rank, 1)
    sign = torch.where(largest < 0, -1.0, 1.0).to(a.dtype)
    a, b = a * sign * _ROW_NORM, b * sign.T / _ROW_NORM
    missing = rank - len(a)  # a layer narrower than the rank
    a, b = F.pad(a, (0, 0, 0, missing)), F.pad(b, (0, missing))
    return a.to(torch.float32), b.to(torch.float32)


def _shares(adapters: Sequence[Adapter], weights: Sequence[float]) -> list[float]:
    total = math.fsum(weights)
    fits = len(adapters) == len(weights) and all(weight >= 0 for weight in weights)
    if not fits or not 0 < total < math.inf:
        raise UsageError(
            f"{len(adapters)} adapters cannot be averaged with weights {list(weights)}",
            fix="give each a weight, not negative and not all 0",
        )
    return [weight / total for weight in weights]


def _weighted_sum(tensors: Sequence[torch.Tensor], shares: Sequence[float]) -> torch.Tensor:
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor, share in zip(tensors, shares, strict=True):
        total.add_(tensor, alpha=share)
    return total
