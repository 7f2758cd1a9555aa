"""Which runs a comparison is made of, and where each leaves its result. Pure but for the names of its files."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from iotsplit.bench.schemes import Scheme

ALL = 0
"""Instead of a number of samples: all that there are."""
NO_LIMIT = 0.0
"""Instead of a rate: that of this machine."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What the schemes are compared on.

    Args:
        partition: how data is dealt, such as `files` or `dirichlet:0.3`.
        samples: training records of each device; `ALL` for all.
        devices: how many.
        mbits: rate of each device's link, up and down; `NO_LIMIT` without one.
        seed: of everything random.
    """

    partition: str
    samples: int
    devices: int
    mbits: float = NO_LIMIT
    seed: int

    @property
    def setting(self) -> "Case":
        """The same, whatever the seed."""
        return msgspec.structs.replace(self, seed=-1)

    @property
    def name(self) -> str:
        """A word for files and tables."""
        amount = "all" if self.samples == ALL else str(self.samples)
        seed = f"-seed{self.seed}" if self.seed >= 0 else ""
        link = f"-{self.mbits:g}mbit" if self.mbits else ""
        return f"{self.partition.replace(':', '')}-{amount}-{self.devices}dev{link}{seed}"

    def __str__(self) -> str:
        amount = "all samples" if self.samples == ALL else f"{self.samples} samples"
        link = f" on links of {self.mbits:g} Mbit/s" if self.mbits else ""
        return f"{self.partition}, {amount} a device, {self.devices} devices{link}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run: a scheme in a case."""

    scheme: Scheme
    case: Case

    @property
    def name(self) -> str:
        """A word for files."""
        return f"{self.case.name}-{self.scheme}"

    def directory(self, output: Path) -> Path:
        """Where it runs."""
        return output / "cells" / self.name


def grid(
    schemes: Sequence[Scheme],
    *,
    partitions: Sequence[str],
    samples: Sequence[int],
    devices: Sequence[int],
    links: Sequence[float],
    seeds: Sequence[int],
) -> list[Cell]:
    """All cells: case by case, so that a comparison is whole as early as possible."""
    cases = [
        Case(partition=partition, samples=amount, devices=count, mbits=mbits, seed=seed)
        for partition, amount, count, mbits, seed in itertools.product(
            partitions, samples, devices, links, seeds
        )
    ]
    return [Cell(scheme=scheme, case=case) for case in cases for scheme in schemes]
