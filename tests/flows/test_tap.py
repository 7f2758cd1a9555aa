"""A device learns from the bus: what a round learns from stays as it is, whatever comes and whoever dies."""

import contextlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from iotsplit.datasets.records import read
from iotsplit.packet import Packet
from iotsplit.plan import Tier
from iotsplit.runtime.link import Deliver
from iotsplit.settings import TrainingSettings
from iotsplit.tensors.models import describe
from iotsplit_device.command import Corpus, Tokenizers, make_loader
from iotsplit_device.role import DeviceRole
from iotsplit_device.tap import Tap
from iotsplit_device.tap_options import TapOptions
from iotsplit_device.tokens import Tokens
from tests.flows.crashes import CrashFleet
from tests.flows.weather import settings
from tests.support import letters_model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick")]

LEAST = 8
NOTES = [
    f"the {part} is {state}"
    for part in ("press", "pump", "belt", "fan")
    for state in ("hot and loud", "dry again", "worn out", "new and quiet", "oiled today")
]


class Silence:
    """A link on which nothing comes: tests give the tap what it hears."""

    def open(self, deliver: Deliver, *, last_will: Packet | None) -> None: ...

    def subscribe(self, filters: frozenset[str]) -> None: ...

    def publish(self, packet: Packet) -> None: ...

    def close(self) -> None: ...


class TappedFleet(CrashFleet):
    """Device a has no data of its own."""

    tap: Tap

    def make_device(self, name: str, train: list[Tokens]) -> DeviceRole:
        if name != "a":
            return super().make_device(name, train)
        options = TapOptions(tap=("factory/+/log",), tap_min=LEAST)
        self.tap = options.make(Silence(), self._disks / name, self._topics, eval_limit=2, waits=True)
        corpus = Corpus(records=[], tokenizers=Tokenizers(self._model), eval_limit=2, tap=self.tap)
        return DeviceRole(
            birth=self._birth(name, Tier.DEVICE),
            load=make_loader(self._model, self._info, corpus, device=name),
            saved=self.device_store(name).load(),
            gathering=self.tap,
        )

    def hear(self, notes: Sequence[str]) -> None:
        self.tap.take([Packet(topic="factory/a/log", payload=note.encode()) for note in notes])

    def fingerprint(self) -> str:
        data = self.agents["a"].role.birth.data
        return data.fingerprint if data is not None else ""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return letters_model(tmp_path_factory.mktemp("letters"))


@pytest.fixture(scope="module")
def wanted() -> TrainingSettings:
    return settings(local_steps=5, checkpoint_every=2)


Happening = Callable[[TappedFleet], None]


def nothing(fleet: TappedFleet) -> None:
    del fleet


def ran(model: Path, wanted: TrainingSettings, disks: Path, happening: Happening) -> dict[str, Any]:
    """What comes of a fleet that hears more in the midst of its first round, and what befalls it then."""
    fleet = TappedFleet(model, wanted, disks=disks)
    with contextlib.closing(fleet):
        fleet.hear(NOTES[:10])
        fleet.run(until=lambda _: any(row.round == 1 and row.step == 3 for row in fleet.metrics))
        first = fleet.fingerprint()
        fleet.hear(NOTES[10:])
        happening(fleet)
        fleet.run()
    fleet.tap.close()
    assert fleet.report.ledger == {"expected": 20, "applied": 20, "lost": 0, "duplicated": 0}
    assert [event for event in fleet.events if event.kind == "round_again"] == []
    return {"first": first, "second": fleet.fingerprint(), "adapter": fleet.versions[-1].sections}


def restart(fleet: TappedFleet) -> None:
    fleet.kill("a")
    fleet.start("a")


def restart_with_another_disk(fleet: TappedFleet) -> None:
    """All it has heard is gone; what it hears again before it joins is the same."""
    fleet.kill("a")
    shutil.rmtree(fleet._disks / "a" / "tap")
    fleet.start("a")
    fleet.run(until=lambda _: fleet.now > 100)
    assert not fleet.agents["a"].role.birth.online
    fleet.hear(NOTES[:10])
    fleet.run(until=lambda _: fleet.fingerprint() != "")
    fleet.hear(NOTES[10:])


@pytest.fixture(scope="module")
def undisturbed(
    model: Path, wanted: TrainingSettings, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    return ran(model, wanted, tmp_path_factory.mktemp("calm"), nothing)


@pytest.mark.parametrize("happening", [restart, restart_with_another_disk])
def test_a_restart_in_the_midst_of_a_round_makes_the_same_adapter(
    model: Path, wanted: TrainingSettings, tmp_path: Path, undisturbed: dict[str, Any], happening: Happening
) -> None:
    assert ran(model, wanted, tmp_path, happening) == undisturbed
    assert (
        undisturbed["first"] != undisturbed["second"]
    )  # the second round has learnt from what came in the first


def test_a_device_with_too_little_says_so_and_joins_when_it_has_enough(
    model: Path, wanted: TrainingSettings, tmp_path: Path
) -> None:
    fleet = TappedFleet(model, wanted, disks=tmp_path)
    with contextlib.closing(fleet):
        fleet.hear(NOTES[: LEAST - 1])
        fleet.run(until=lambda _: fleet.now > 60)
        birth = fleet.agents["a"].role.birth
        assert (birth.online, birth.problem) == (False, "waits for texts: 7 of 8 from factory/+/log")
        assert fleet.agents["cloud"].role.birth.online
        assert fleet.metrics
        assert not any(row.round for row in fleet.metrics)
        fleet.hear(NOTES[LEAST - 1 :])
        fleet.run()
    fleet.tap.close()
    assert fleet.report.ledger["applied"] == 20
    assert fleet.agents["a"].role.birth.problem == ""
    # Whoever replays the device gives it the snapshot as a file.
    records = read(tmp_path / "a" / "tap" / "snapshot.jsonl")
    corpus = Corpus(records=records, tokenizers=Tokenizers(model), eval_limit=2)
    work = make_loader(model, describe(model), corpus, device="a")(wanted)
    assert work.batches.fingerprint() == fleet.fingerprint()
