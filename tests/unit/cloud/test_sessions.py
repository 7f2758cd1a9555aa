"""Whose frames a session of the cloud takes."""

from typing import Any

import pytest

from iotsplit.messages import TailHidden, Update
from iotsplit.plan import Tier
from iotsplit.session import Backup
from iotsplit.states import Assignment
from iotsplit_cloud.sessions import CloudSession
from tests.unit.core.samples import TENSOR, frame

ASSIGNMENT = Assignment(device="d1", task="train", session="s", epoch=5, edge="e1", cloud="c")
OWN = {"session": "s", "epoch": 5, "sender": "e1", "tier": Tier.EDGE, "device": "d1"}


def takes(content: Any, **changes: Any) -> bool:
    session = CloudSession(backup=Backup(ASSIGNMENT, Tier.CLOUD, every=2), progress_at=0.0)
    return session.belongs(frame(content, **(OWN | changes)))


def test_a_frame_of_its_edge_is_taken() -> None:
    assert takes(TailHidden(hidden=TENSOR))


@pytest.mark.parametrize(
    "changes",
    [{"epoch": 4}, {"epoch": 6}, {"session": "t"}, {"device": "d2"}, {"sender": "e2"}, {"tier": Tier.DEVICE}],
    ids=str,
)
def test_a_fenced_edge_and_strangers_are_not_heard(changes: dict[str, Any]) -> None:
    assert not takes(TailHidden(hidden=TENSOR), **changes)


@pytest.mark.parametrize("tier", [Tier.DEVICE, Tier.EDGE])
def test_an_update_of_either_tier_comes_in_the_name_of_the_device(tier: Tier) -> None:
    update = Update(tier=tier, tokens=1, tensors=b"")
    assert takes(update, tier=tier, sender="d1")
    assert not takes(update, tier=tier, sender="d1", epoch=4)
    assert not takes(update, tier=tier, sender="d2")
