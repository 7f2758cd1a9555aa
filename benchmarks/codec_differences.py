"""Ways to send what has changed of a sample since the other side last had it.

Each is called with a tensor and its micro-batch, gives what arrives, and counts bits, values, how much has
changed, and what it leaves of that.
"""

import re

import torch

from benchmarks.codec_loss import bits, way
from iotsplit.tensors import changes
from iotsplit.tensors.remembered import STORED
from iotsplit.tensors.rotated import BLOCK
from iotsplit_device.batches import MicroBatch

DIFFERENCES = re.compile(r"d([48])([ks])([0-9]+)")
CACHED = re.compile(r"cached([0-9]*)(?:m([0-9]+))?(?:@([0-9]+))?")
ALL = 100
FADES, RIDGE = 0.8, 0.01
SCALE_BITS = 16
FACTOR_BITS = 8
COEFFICIENT_BITS = 4
BASIS_STEPS = 4


class Differences:
    """Sends what has changed of a sample since it was sent last.

    Args:
        name: of the table.
        seed: of the first codec, if it needs one.
    """

    def __init__(self, name: str, seed: int) -> None:
        found = DIFFERENCES.fullmatch(name)
        assert found is not None
        self._first = f"int{found[1]}"
        rank = int(found[3])
        self._later: OfEach | Shared = OfEach(rank) if found[2] == "k" else Shared(rank)
        self._around = way(self._first, seed)
        self._held: dict[bytes, torch.Tensor] = {}
        self.sent_bits = 0.0
        self.values = 0
        self.ratios: list[float] = []  # norm of a difference, relative to the tensor's
        self.left: list[float] = []  # what of it the approximation leaves

    def __call__(self, tensor: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        out = torch.zeros_like(tensor)
        lengths = [int(length) for length in batch.mask.sum(dim=1)]
        samples = [batch.ids[row, :length].numpy().tobytes() for row, length in enumerate(lengths)]
        values = [tensor[row, :length].detach() for row, length in enumerate(lengths)]
        known = [row for row, sample in enumerate(samples) if sample in self._held]
        changes = {row: _scaled(values[row], self._held[samples[row]]) for row in known}
        steps, cost = self._later(changes)
        self.sent_bits += cost
        for row, (sample, value) in enumerate(zip(samples, values, strict=True)):
            read = self._read(value, self._held.get(sample), steps.get(row))
            out[row, : lengths[row]] = self._held[sample] = read
            self.values += value.numel()
        return out

    def _read(self, value: torch.Tensor, held: torch.Tensor | None, step: torch.Tensor | None) -> torch.Tensor:
        if held is None or step is None:
            self.sent_bits += bits(self._first) * value.numel()
            return self._around(value.unsqueeze(0)).squeeze(0)
        read = held + step * _norms(held)
        change = float((value - held).norm())
        self.ratios.append(change / max(1e-12, float(value.norm())))
        self.left.append(float((value - read).norm()) / max(1e-12, change))
        return read


def _norms(held: torch.Tensor) -> torch.Tensor:
    """Of each token: some are a thousand times longer than others, and would be all that counts."""
    norms: torch.Tensor = torch.linalg.vector_norm(held, dim=1, keepdim=True)
    return norms.clamp(min=1e-12)


def _scaled(value: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
    return (value - held) / _norms(held)


class OfEach:
    """The best approximation of each difference of a rank."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def __call__(self, changes: dict[int, torch.Tensor]) -> tuple[dict[int, torch.Tensor], float]:
        """What arrives of the differences, and its bits."""
        steps, cost = {}, 0.0
        for row, change in changes.items():
            rank = min(self._rank, *change.shape)
            u, s, vt = torch.linalg.svd(change, full_matrices=False)
            left, right = u[:, :rank] * s[:rank].sqrt(), vt[:rank] * s[:rank].sqrt().unsqueeze(1)
            steps[row] = _rounded(left.T, FACTOR_BITS).T @ _rounded(right, FACTOR_BITS)
            cost += rank * (sum(change.shape) * FACTOR_BITS + 2 * SCALE_BITS)
        return steps, cost


class Shared:
    """Coefficients in a basis of all differences of late."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._recent: list[torch.Tensor] = []
        self._basis = torch.zeros(0, 0)
        self._steps = 0

    def __call__(self, changes: dict[int, torch.Tensor]) -> tuple[dict[int, torch.Tensor], float]:
        """What arrives of the differences, and its bits."""
        if not changes:
            return {}, 0.0
        cost = 0.0
        self._recent = [*self._recent[1 - BASIS_STEPS :], torch.cat(list(changes.values()))]
        if self._steps % BASIS_STEPS == 0:
            directions = torch.linalg.svd(torch.cat(self._recent), full_matrices=False)[2][: self._rank]
            self._basis = _rounded(directions, FACTOR_BITS)  # (rank, width)
            cost += self._basis.numel() * FACTOR_BITS + len(self._basis) * SCALE_BITS
        self._steps += 1
        steps = {}
        for row, change in changes.items():
            coefficients = change @ self._basis.T  # (time, rank)
            steps[row] = _rounded(coefficients.T, COEFFICIENT_BITS).T @ self._basis
            cost += coefficients.numel() * COEFFICIENT_BITS + len(self._basis) * SCALE_BITS
        return steps, cost


def _rounded(rows: torch.Tensor, depth: int) -> torch.Tensor:
    largest = 2 ** (depth - 1) - 1
    scales: torch.Tensor = (rows.abs().amax(dim=1, keepdim=True) / largest).clamp(min=1e-30)
    return torch.round(rows / scales) * scales


class Mapped:
    """A linear map, the same for all samples, of what is held to its change: of late, by ridge regression.

    Args:
        rank: of the map; its factors have 8 bits, and are sent with every fourth step.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._products = self._targets = torch.zeros(())
        self._factors: tuple[torch.Tensor, torch.Tensor] | None = None
        self._steps = 0

    def fit(self, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
        """Learn from (held, value) pairs; gives the bits of what is sent of the map."""
        held = torch.cat([each / _norms(each) for each, _ in pairs])
        changed = torch.cat([_scaled(value, each) for each, value in pairs])
        self._products = FADES * self._products + held.T @ held
        self._targets = FADES * self._targets + held.T @ changed
        self._steps += 1
        if (self._steps - 1) % BASIS_STEPS:
            return 0.0
        ridge = RIDGE * self._products.diagonal().mean() * torch.eye(len(self._products))
        solved = torch.linalg.solve(self._products + ridge, self._targets)
        root = torch.linalg.cholesky(self._products + ridge)
        right = torch.linalg.svd(root.T @ solved, full_matrices=False)[2][: self._rank]
        left = solved @ right.T
        self._factors = _rounded(left.T, FACTOR_BITS).T, _rounded(right, FACTOR_BITS)
        return sum(each.numel() * FACTOR_BITS + self._rank * SCALE_BITS for each in self._factors)

    def __call__(self, held: torch.Tensor) -> torch.Tensor:
        """What a sample is expected to have become."""
        assert self._factors is not None
        left, right = self._factors
        return held + held @ left @ right


class Cached:
    """What the fleet sends of samples that both ends remember, and less than that.

    Args:
        percent: of blocks whose signs are sent, those that have changed most; the fleet sends all.
        rank: of a map that is applied first; 0 for none, as in the fleet.
        room: share of the samples that are remembered.
    """

    def __init__(self, percent: int = 100, rank: int = 0, room: float = 1.0) -> None:
        self._around = way("int4", 0)
        self._percent, self._room = percent, room
        self._map = Mapped(rank) if rank else None
        self._held: dict[bytes, bytes] = {}
        self._seen: set[bytes] = set()
        self.sent_bits, self.values = 0.0, 0
        self.ratios: list[float] = []
        self.left: list[float] = []

    def __call__(self, tensor: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        out = torch.zeros_like(tensor)
        lengths = [int(each) for each in batch.mask.sum(dim=1)]
        samples = [batch.ids[row, :length].numpy().tobytes() for row, length in enumerate(lengths)]
        values = [tensor[row, :length].detach().contiguous() for row, length in enumerate(lengths)]
        held = [
            torch.from_numpy(STORED.unpack(self._held[sample], *value.shape)) if sample in self._held else None
            for sample, value in zip(samples, values, strict=True)
        ]
        pairs = [(each, value) for each, value in zip(held, values, strict=True) if each is not None]
        if self._map and pairs:
            self.sent_bits += self._map.fit(pairs)
        for row, (sample, value, each) in enumerate(zip(samples, values, held, strict=True)):
            out[row, : lengths[row]] = read = self._read(value, each)
            self.values += value.numel()
            self._seen.add(sample)
            if sample in self._held or len(self._held) < self._room * len(self._seen):
                self._held[sample] = STORED.pack(read.contiguous())
        return out

    def _read(self, value: torch.Tensor, held: torch.Tensor | None) -> torch.Tensor:
        if held is None:
            self.sent_bits += bits("int4") * value.numel()
            return self._around(value)
        read = self._changed(value, self._map(held).contiguous() if self._map else held)
        change = float((value - held).norm())
        self.ratios.append(change / max(1e-12, float(value.norm())))
        self.left.append(float((value - read).norm()) / max(1e-12, change))
        return read

    def _changed(self, value: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
        data = changes.pack(value, held)
        whole = changes.unpack(data, held)
        if self._percent == ALL:
            self.sent_bits += 8 * len(data)
            return whole
        energy = _scaled(value, held).reshape(len(value), -1, BLOCK).square().sum(dim=2)
        count = energy.numel() * self._percent // ALL
        chosen = torch.zeros(energy.numel(), dtype=torch.bool)
        chosen[energy.flatten().topk(count).indices] = True
        self.sent_bits += 8 * len(data) * self._percent / ALL + energy.numel()  # and a bit to name each
        return torch.where(chosen.reshape(energy.shape).repeat_interleave(BLOCK, dim=1), whole, held)


def sender(name: str, seed: int) -> Differences | Cached | None:
    """What sends by that name, if it sends changes."""
    if DIFFERENCES.fullmatch(name):
        return Differences(name, seed)
    found = CACHED.fullmatch(name)
    if found is None:
        return None
    percent, rank, room = (int(each) if each else None for each in found.groups())
    return Cached(ALL if percent is None else percent, rank or 0, 1.0 if room is None else room / ALL)
