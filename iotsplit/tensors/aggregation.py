"""How the adapters of a round become one: each rule takes adapters and weights and gives an adapter.

Weights are relative (loss tokens trained); sums are in float64 and results in float32, so neither
the order of large and small sessions nor their number costs precision.

A and B are known only up to an invertible r x r matrix between them, so adapters that were trained apart cannot
be compared value by value. Those of a round can: all its sessions begin with the same version, and leave it
by no more than their steps. Rules that look at single values rely on that.

The cloud's own section is not averaged, but trained by all sessions together: there the same rule joins their
gradients in each step. Else one device could spoil what all share without sending any update.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F

from iotsplit.errors import UsageError
from iotsplit.settings import Aggregation, TrainingSettings
from iotsplit.tensors.bounds import norm_of

Adapter = Mapping[str, torch.Tensor]
Aggregator = Callable[[Sequence[Adapter], Sequence[float], float], dict[str, torch.Tensor]]
"""From adapters, their weights, and the share that is trimmed at each end."""

_A, _B = ".lora_A.", ".lora_B."
# Rows of a fresh A are uniform within 1/sqrt(inputs): their expected norm.
_ROW_NORM = 1 / math.sqrt(3)

# The geometric median is found when no share moves by more; no point is nearer to it than this part.
_STILL = 1e-10
_NEAREST = 1e-7
_MOST_ITERATIONS = 500
_BLOCK = 32
"""Sessions whose products are compared with all others at once: memory that does not grow with their square."""


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


def trained_in(round_: int, names: Iterable[str], settings: TrainingSettings) -> list[str]:
    """Which LoRA matrices devices and edges train in a round, and bring to the cloud.

    With `rolora` (Chen et al. 2025, arXiv 2502.01755) B in odd rounds and A in even ones: the other is the same
    for all, so that the mean of what they have trained is that of the products, and half as much is sent. B is
    first, because A has no gradient as long as B is zero. The cloud's own section is not averaged, but always
    trained whole.
    """
    if settings.aggregation is not Aggregation.ROLORA:
        return sorted(names)
    matrix = _B if round_ % 2 else _A
    return sorted(name for name in names if matrix in name)


def trimmed(adapters: Sequence[Adapter], weights: Sequence[float], share: float) -> dict[str, torch.Tensor]:
    """The mean of each single value without its largest and smallest ones.

    The coordinate-wise trimmed mean of Yin et al. (2018, arXiv 1803.01498). As long as no more sessions are
    bad than are trimmed at one end, each value lies between those of good ones. Of two sessions nothing
    can be trimmed.

    Weights do not count: they are what a device says of itself, and a session that outweighs the others would
    decide what is left.

    Args:
        adapters: of the sessions.
        weights: only checked.
        share: of the sessions, trimmed at each end, rounded up.
    """
    _shares(adapters, weights)
    cut = trimmed_at_each_end(len(adapters), share)
    merged = {}
    for name in sorted(adapters[0]):
        values = torch.stack([adapter[name] for adapter in adapters]).to(torch.float64)
        ordered = values.sort(dim=0).values  # (sessions, ...)
        merged[name] = ordered[cut : len(adapters) - cut].mean(dim=0).to(torch.float32)
    return merged


def median(adapters: Sequence[Adapter], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    """The adapter of which the product B·A is nearest to all the others' products.

    The geometric median (Pillutla et al. 2019, RFA, arXiv 1912.13445) over all layers at once, cut back to the
    adapters' rank as by `flexlora`. Products do not depend on the r x r matrix between A and B, which single
    values of A and B do. As long as fewer than half of the sessions are bad, it stays near the good ones.

    Weights do not count, as with `trimmed`.

    Args:
        adapters: of the sessions.
        weights: only checked.
    """
    _shares(adapters, weights)
    return flexlora(adapters, median_shares(_products(adapters)))


def median_of_gradients(gradients: Sequence[Adapter], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    """The geometric median of gradients by parameters that all sessions share; weights are only checked."""
    _shares(gradients, weights)
    rows = torch.stack(
        [torch.cat([each[name].flatten() for name in sorted(each)] or [torch.zeros(1)]) for each in gradients]
    ).to(torch.float64)  # (sessions, values)
    return fedavg(gradients, median_shares(rows @ rows.T))


def median_shares(inner: torch.Tensor) -> list[float]:
    """What each of some points counts in their geometric median, by Weiszfeld's iteration.

    Args:
        inner: (points, points) inner products, float64; nothing else of the points matters.
    """
    count = len(inner)
    shares = torch.full((count,), 1 / count, dtype=torch.float64)
    squares = inner.diagonal()
    least = max(float(squares.max().sqrt()), 1.0) * _NEAREST
    for _ in range(_MOST_ITERATIONS):
        toward = inner @ shares
        distances = (squares - 2 * toward + shares @ toward).clamp(min=0.0).sqrt().clamp(min=least)
        before, shares = shares, (1 / distances) / (1 / distances).sum()
        if float((shares - before).abs().max()) < _STILL:
            break
    found: list[float] = shares.tolist()
    return found


def _products(adapters: Sequence[Adapter]) -> torch.Tensor:
    """(sessions, sessions) inner products of the products B·A, summed over layers; no product is formed."""
    count = len(adapters)
    inner = torch.zeros((count, count), dtype=torch.float64)
    for name in sorted(adapters[0]):
        if _A not in name:
            continue
        rank = len(adapters[0][name])
        lower = torch.cat([each[name] for each in adapters]).to(torch.float64)  # (sessions x rank, inputs)
        upper = torch.cat([each[name.replace(_A, _B)].T for each in adapters]).to(torch.float64)
        for first in range(0, count, _BLOCK):
            rows = slice(first * rank, (first + _BLOCK) * rank)
            # <B A, B' A'> = sum of (B^T B') * (A A'^T): cores of rank x rank for each two sessions
            cores = (upper[rows] @ upper.T) * (lower[rows] @ lower.T)
            inner[first : first + _BLOCK] += cores.reshape(-1, rank, count, rank).sum(dim=(1, 3))
    return inner


def trimmed_at_each_end(sessions: int, share: float) -> int:
    """How many of so many sessions are left out at each end: at least one is left in the middle."""
    # 0.1 of 30 is 3, whatever floats make of it.
    return min(math.ceil(round(share * sessions, 9)), (sessions - 1) // 2)


def clip(updates: Sequence[Adapter], start: Adapter) -> list[Adapter]:
    """Shorten each update's way from `start` to the median length of all, where it is longer.

    A bound on the norm keeps an update from outweighing the others (Sun et al. 2019, arXiv 1911.07963), and
    the median of the norms is one that needs no tuning (Andrew et al. 2019, arXiv 1905.03871). Of an even
    number it is the lower one, so that half of the sessions cannot raise it. What is shorter stays to the bit.
    """
    lengths = [norm_of({name: update[name] - start[name] for name in start}) for update in updates]
    bound = sorted(lengths)[(len(lengths) - 1) // 2] if lengths else 0.0
    return [
        update
        if length <= bound
        else {name: start[name] + (update[name] - start[name]) * (bound / length) for name in start}
        for update, length in zip(updates, lengths, strict=True)
    ]


AGGREGATORS: dict[Aggregation, Aggregator] = {
    Aggregation.FEDAVG: lambda adapters, weights, _: fedavg(adapters, weights),
    Aggregation.FLEXLORA: lambda adapters, weights, _: flexlora(adapters, weights),
    Aggregation.MEDIAN: lambda adapters, weights, _: median(adapters, weights),
    Aggregation.ROLORA: lambda adapters, weights, _: fedavg(adapters, weights),
    Aggregation.TRIMMED: trimmed,
}

OF_GRADIENTS: dict[Aggregation, Aggregator] = AGGREGATORS | {
    Aggregation.FLEXLORA: AGGREGATORS[Aggregation.FEDAVG],
    Aggregation.MEDIAN: lambda gradients, weights, _: median_of_gradients(gradients, weights),
}
"""Gradients of A and B have no product to average."""


def next_version(
    updates: Sequence[Adapter], weights: Sequence[float], *, start: Adapter, settings: TrainingSettings
) -> dict[str, torch.Tensor]:
    """A section of the next adapter version.

    Args:
        updates: the section as each session has trained it.
        weights: of the sessions.
        start: the section of the version that they all began with.
        settings: the fleet's.
    """
    kept = clip(updates, start) if settings.clip_updates else updates
    return AGGREGATORS[settings.aggregation](kept, weights, settings.trim)


def with_momentum(
    section: Adapter, *, start: Adapter, before: Adapter, momentum: float
) -> dict[str, torch.Tensor]:
    """A section of the next version that goes on some of the way on which the last one came.

    Averaging with server momentum (Hsu et al. 2019, FedAvgM, arXiv 1909.06335): v' = m v + (average - start),
    next = start + v'. As each version is the one before plus v, v needs no keeping.

    Args:
        section: as averaged.
        start: of the version that the round began with.
        before: of the version before that one.
        momentum: m.
    """
    return {name: section[name] + momentum * (start[name] - before[name]) for name in sorted(section)}


def step_gradient(
    gradients: Sequence[Adapter], weights: Sequence[float], *, settings: TrainingSettings
) -> dict[str, torch.Tensor]:
    """The gradient of a step that sessions take together.

    Args:
        gradients: of each session's own loss, by the parameters that they share.
        weights: of the sessions.
        settings: the fleet's.
    """
    if settings.clip_updates:
        gradients = clip(gradients, {name: torch.zeros(()) for name in gradients[0]})
    return OF_GRADIENTS[settings.aggregation](gradients, weights, settings.trim)


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
