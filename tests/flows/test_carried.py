"""`carry`: a session that is too late for its round ends where it stands, and counts in the next one."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from iotsplit.messages import Update
from iotsplit.plan import Tier
from iotsplit.settings import Stragglers
from iotsplit_cloud.conductor import Phase
from iotsplit_cloud.role import CloudRole
from iotsplit_cloud.versions import Version
from tests.flows.crashes import CrashFleet
from tests.flows.weather import settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick", "unmeasured")]

STEPS = 6
AWAY_AT = 3


class Carrying(CrashFleet):
    """Three devices; remembers what each version was made from."""

    def __init__(self, model: Path, disks: Path, **more: Any) -> None:
        self.averaged: list[Mapping[str, Mapping[Tier, Update]]] = []
        self.late: dict[Tier, Update] = {}
        self.first: Version
        wanted = settings(rounds=3, local_steps=STEPS, checkpoint_every=2)
        more = {"stragglers": Stragglers.CARRY, "schedule": "every 1h"} | more
        super().__init__(model, wanted, "abc", disks=disks, **more)

    def join(self, role: Any) -> None:
        if isinstance(role, CloudRole):
            library, rebased, add = role._p.library, role._p.library.rebased, role._p.library.add
            self.first = library.current if not self.versions else self.first

            def seeing(tier: Tier, update: Update, *, since: int) -> Update:
                self.late[tier] = update
                return rebased(tier, update, since=since)

            def noting(updates: Mapping[str, Mapping[Tier, Update]], **more: Any) -> Version:
                self.averaged.append(updates)
                return add(updates, **more)

            library.add, library.rebased = noting, seeing  # type: ignore[method-assign]
        super().join(role)

    @property
    def cloud(self) -> CloudRole:
        role = self.agents["cloud"].role
        assert isinstance(role, CloudRole)
        return role

    def happened(self, kind: str, times: int = 1) -> bool:
        return sum(event.kind == kind for event in self.events) >= times

    def lose_in_round_one(self) -> None:
        """Device b dies in the midst of the first round, which ends without it."""
        self.run(until=lambda _: self.happened("evaluated"))
        self.due()
        self.run(until=lambda _: any(row.step == AWAY_AT - 1 and row.agent == "b" for row in self.metrics))
        self.kill("b")
        self.run(until=lambda _: self.happened("round_finished"))

    def bring_back(self) -> None:
        """Device b starts again and brings what it has done."""
        self.start("b")
        carried = self.cloud._conductor._carried.sessions
        self.run(until=lambda _: "b" in carried and not carried["b"].awaited)

    def round(self, number: int) -> None:
        self.due()
        self.run(until=lambda _: self.happened("round_finished", number))

    def settle(self) -> None:
        self.run(until=lambda _: not self.pending)

    def finish(self) -> None:
        """All rounds that are left."""
        while not self.cloud.finished:
            self.round(sum(event.kind == "round_finished" for event in self.events) + 1)
            self.run(until=lambda _: self.cloud.phase is not Phase.EVALUATING)

    def slow_down(self, seconds: float) -> None:
        """Packets take that long from now on."""
        self.fate = lambda _, packet: [(seconds, packet)]

    def rows(self, key: str) -> list[list[str]]:
        return [[each["device"] for each in row[key]] for row in self.report.rounds]


@pytest.fixture
def make(model: Path, tmp_path: Path) -> Iterator[Callable[..., Carrying]]:
    with contextlib.ExitStack() as stack:

        def made(**more: Any) -> Carrying:
            fleet = Carrying(model, Path(tempfile.mkdtemp(dir=tmp_path)), **more)
            stack.callback(fleet.close)
            return fleet

        yield made


@pytest.fixture
def fleet(make: Callable[[], Carrying]) -> Carrying:
    return make()


def sections(version: Version) -> dict[str, torch.Tensor]:
    return version.section(Tier.DEVICE) | version.section(Tier.EDGE)


def brought(updates: Mapping[Tier, Update]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for update in updates.values():
        tensors |= safetensors.torch.load(update.tensors)
    return tensors


def test_its_steps_count_in_the_next_round_and_then_it_takes_part_again(fleet: Carrying) -> None:
    fleet.lose_in_round_one()
    fleet.bring_back()
    fleet.finish()
    assert fleet.rows("sessions") == [["a", "c"], ["a", "c"], ["a", "b", "c"]]
    assert fleet.rows("dropped") == [["b"], [], []]
    assert fleet.rows("late") == [[], ["b"], []]
    steps = 7 * STEPS + AWAY_AT
    assert fleet.report.ledger == {"expected": steps, "applied": steps, "lost": 0, "duplicated": 0}
    assert fleet.happened("session_carried")


def test_the_change_that_it_made_is_averaged_by_its_tokens(fleet: Carrying) -> None:
    fleet.lose_in_round_one()
    fleet.bring_back()
    began, first = (sections(version) for version in (fleet.first, fleet.versions[-1]))
    fleet.round(2)
    updates = fleet.averaged[-1]
    late = fleet.late
    assert set(updates) == {"a", "b", "c"}
    tokens = {device: both[Tier.DEVICE].tokens for device, both in updates.items()}
    assert tokens["b"] == late[Tier.EDGE].tokens < min(tokens["a"], tokens["c"])
    second, change = sections(fleet.versions[-1]), brought(late)
    for name, value in second.items():
        parts = {device: brought(updates[device])[name].double() for device in "ac"}
        parts["b"] = first[name].double() + (change[name].double() - began[name].double())
        mean = sum(tokens[d] * parts[d] for d in "abc") / sum(tokens.values())
        torch.testing.assert_close(value.double(), mean, rtol=0, atol=1e-7)


@pytest.mark.parametrize("agent", ["cloud", "edge-1", "edge-2", "a"])
def test_a_restart_between_the_rounds_changes_nothing(make: Callable[[], Carrying], agent: str) -> None:
    made = []
    for victim in ("", agent):
        fleet = make()
        fleet.lose_in_round_one()
        if victim:
            fleet.kill(victim)
            fleet.start(victim)
            fleet.settle()
        fleet.bring_back()
        fleet.finish()
        assert fleet.rows("late")[1] == ["b"]
        made.append(fleet.versions[-1].sections)
    assert made[0] == made[1]


def test_what_does_not_come_within_the_next_round_is_given_up(fleet: Carrying) -> None:
    fleet.lose_in_round_one()
    fleet.round(2)
    fleet.start("b")
    fleet.finish()
    assert fleet.rows("late") == [[], [], []]
    assert fleet.rows("sessions") == [["a", "c"], ["a", "c"], ["a", "b", "c"]]
    dropped = [event for event in fleet.events if event.kind == "session_dropped"]
    assert [(event.agent, event.detail) for event in dropped] == [("b", "too late")]


def test_what_comes_while_its_own_round_is_under_way_counts_in_it(make: Callable[..., Carrying]) -> None:
    fleet = make(step_timeout=40.0)
    fleet.run(until=lambda _: fleet.happened("evaluated"))
    fleet.due()
    fleet.run(until=lambda _: any(row.step == AWAY_AT - 1 and row.agent == "b" for row in fleet.metrics))
    fleet.kill("b")
    fleet.slow_down(9.0)
    fleet.run(until=lambda _: fleet.happened("session_carried"))
    fleet.start("b")
    fleet.run(until=lambda _: fleet.happened("round_finished"))
    assert set(fleet.averaged[-1]) == {"a", "b", "c"}
    assert fleet.averaged[-1]["b"] == fleet.late


def test_a_session_that_has_done_nothing_is_dropped(fleet: Carrying) -> None:
    fleet.run(until=lambda _: fleet.happened("evaluated"))
    fleet.due()
    fleet.run(until=lambda _: fleet.happened("round_started"))
    fleet.kill("b")
    fleet.run(until=lambda _: fleet.happened("round_finished"))
    assert fleet.happened("session_dropped")
    assert not fleet.happened("session_carried")


def test_a_round_that_everybody_leaves_carries_nobody(fleet: Carrying) -> None:
    fleet.run(until=lambda _: fleet.happened("evaluated"))
    fleet.due()
    fleet.run(until=lambda _: any(row.step == AWAY_AT - 1 and row.agent == "b" for row in fleet.metrics))
    for device in "abc":
        fleet.kill(device)
    fleet.run(until=lambda _: fleet.happened("round_finished"))
    assert fleet.milestones[-1].carried == {}
    assert [version.version for version in fleet.versions] == [0]


def test_who_is_left_alone_with_what_came_too_late_is_free_for_the_next_round(
    make: Callable[..., Carrying],
) -> None:
    fleet = make(step_timeout=30.0)
    fleet.lose_in_round_one()
    fleet.bring_back()
    for name in "ac":
        fleet.kill(name)
    fleet.run(until=lambda _: fleet.happened("device_lost", 3))
    fleet.run(until=lambda _: not fleet.cloud._conductor._carried.sessions)
    assert [event.detail for event in fleet.events if event.kind == "session_dropped"][
        -1
    ] == "nobody else is left"
    fleet.finish()
    assert fleet.rows("sessions")[1:] == [["b"], ["b"]]
