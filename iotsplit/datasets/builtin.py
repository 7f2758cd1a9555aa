"""Data sets that need no download, by name."""

from collections.abc import Callable
from enum import StrEnum

from iotsplit.datasets import fortunes, plant, reference
from iotsplit.datasets.names import device_ids
from iotsplit.datasets.records import Record


class Builtin(StrEnum):
    """The built-in data sets."""

    PLANT = "plant"
    PYTHON_REFERENCE = "python-reference"
    FORTUNES = "fortunes"


Groups = Callable[[int, int], dict[str, list[Record]]]

SETS: dict[Builtin, Groups] = {
    Builtin.PLANT: plant.groups,
    Builtin.PYTHON_REFERENCE: reference.groups,
    Builtin.FORTUNES: fortunes.groups,
}


def groups_of(name: str, *, devices: int, seed: int) -> dict[str, list[Record]]:
    """The natural groups of a data set: machines, topics or categories, at least one a device.

    Raises:
        UsageError: the data set is not on this machine.
    """
    return SETS[Builtin(name)](devices, seed)


def devices_of(name: str, devices: int) -> list[str]:
    """The ids that so many devices get when the data set is dealt by its groups."""
    return device_ids(list(groups_of(name, devices=devices, seed=0))[:devices])
