"""What a version is made from."""

from typing import Any

import pytest
import torch

from iotsplit.plan import Tier
from iotsplit.settings import TrainingSettings
from iotsplit.tensors import adapters
from iotsplit_cloud.versions import Library, Version


def sections(value: float) -> dict[str, bytes]:
    return {str(tier): adapters.to_bytes({"a": torch.tensor([value])}) for tier in Tier}


def value(version: Version) -> float:
    return round(float(version.section(Tier.DEVICE)["a"]), 4)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    """Of which each version is on average 1 more than the one that it was made from."""

    def average(_: Any, *, start: Version, **__: Any) -> dict[str, bytes]:
        return sections(value(start) + 1.0)

    monkeypatch.setattr("iotsplit_cloud.versions.average", average)
    first = Version(version=0, round=0, sections=sections(0.0))
    settings = TrainingSettings(server_momentum=0.5)
    shapes: Any = {}
    return Library(model="m", peft={}, chunk_bytes=100, shapes=shapes, settings=settings, held=[first])


def add(library: Library) -> float:
    return value(library.add({}, cloud=sections(0.0)["cloud"], round_=library.newest + 1))


def test_momentum_goes_on_from_what_a_version_was_made_from(library: Library) -> None:
    assert [add(library) for _ in range(3)] == [1.0, 2.5, 4.25]


def test_after_a_rollback_what_was_given_up_has_no_momentum(library: Library) -> None:
    for _ in range(3):
        add(library)
    assert library.roll_back(1) == ""
    assert [add(library), add(library)] == [2.5, 4.25]  # as if versions 2 and 3 had never been
    assert (library.current.version, library.current.parent) == (5, 4)
