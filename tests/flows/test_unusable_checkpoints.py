"""A device's checkpoints that are whole on its disk but do not fit its part are passed over, and said so."""

import contextlib
import dataclasses
import shutil
from pathlib import Path

import pytest
import safetensors.torch
from structlog.testing import capture_logs

from iotsplit.packet import Packet
from iotsplit_device.records import Checkpoint
from tests.flows.crashes import CrashFleet
from tests.flows.test_crashes import in_calm
from tests.flows.weather import settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick")]


def of_another_rank(checkpoint: Checkpoint) -> Checkpoint:
    tensors = safetensors.torch.load(checkpoint.body)
    wider = {name: value.repeat(2, *[1] * (value.dim() - 1)) for name, value in tensors.items() if value.dim()}
    return dataclasses.replace(checkpoint, body=safetensors.torch.save(tensors | wider))


@pytest.mark.parametrize("spoiled", [(4,), (2, 4)], ids=["newest", "both"])
def test_a_device_passes_over_what_does_not_fit(model: Path, tmp_path: Path, spoiled: tuple[int, ...]) -> None:
    wanted = settings(rounds=1, local_steps=6, checkpoint_every=2)
    fleet = CrashFleet(model, wanted, disks=tmp_path)
    with contextlib.closing(fleet):
        fleet.run(until=lambda _: any((row.agent, row.step) == ("a", 4) for row in fleet.metrics))
        fleet.kill("a")
        store = fleet.device_store("a")
        saved = store.load()
        assert [checkpoint.step for checkpoint in saved] == [2, 4]
        for checkpoint in saved:
            store.take(of_another_rank(checkpoint) if checkpoint.step in spoiled else checkpoint)
        fleet.start("a")
        with capture_logs() as logs:
            fleet.run()
    told = [row["step"] for row in logs if row["event"] == "a checkpoint does not fit and is passed over"]
    assert told == sorted(spoiled, reverse=True)
    # Without both the device stands at the start, and the others have let go what it would need.
    assert [event.kind for event in fleet.events].count("round_again") == (len(spoiled) == 2)
    assert fleet.report.ledger == {"expected": 12, "applied": 12, "lost": 0, "duplicated": 0}
    assert fleet.versions[-1].sections == in_calm(model, wanted)


@pytest.mark.parametrize(("step", "again"), [(2, 0), (4, 1)])
def test_a_device_whose_disk_is_gone_begins_anew_and_the_round_too_if_it_must(
    model: Path, tmp_path: Path, step: int, again: int
) -> None:
    wanted = settings(rounds=1, local_steps=6, checkpoint_every=2)
    fleet = CrashFleet(model, wanted, disks=tmp_path)
    with contextlib.closing(fleet):
        fleet.run(until=lambda _: any((row.agent, row.step) == ("a", step) for row in fleet.metrics))
        fleet.kill("a")
        shutil.rmtree(tmp_path / "a")
        fleet.start("a")
        fleet.run()
    assert [event.kind for event in fleet.events].count("round_again") == again
    assert fleet.report.ledger == {"expected": 12, "applied": 12, "lost": 0, "duplicated": 0}
    assert fleet.versions[-1].sections == in_calm(model, wanted)


def test_a_device_whose_disk_is_gone_need_not_be_heard_saying_so(model: Path, tmp_path: Path) -> None:
    wanted = settings(rounds=1, local_steps=6, checkpoint_every=2)
    fleet = CrashFleet(model, wanted, disks=tmp_path)
    lost = []

    def without_resume(name: str, packet: Packet) -> list[Packet]:
        if name != "edge-1" or b"resume" not in packet.payload:
            return [packet]
        lost.append(packet)
        return []

    with contextlib.closing(fleet):
        fleet.run(until=lambda _: any((row.agent, row.step) == ("a", 4) for row in fleet.metrics))
        fleet.kill("a")
        shutil.rmtree(tmp_path / "a")
        fleet.tamper = without_resume
        fleet.start("a")
        fleet.run(limit=20_000)
    assert lost
    assert [event.kind for event in fleet.events].count("round_again") == 1
    assert fleet.report.ledger == {"expected": 12, "applied": 12, "lost": 0, "duplicated": 0}
    assert fleet.versions[-1].sections == in_calm(model, wanted)


def test_a_disk_that_is_gone_while_the_cloud_restarts_sends_nobody_back_for_ever(
    model: Path, tmp_path: Path
) -> None:
    wanted = settings(rounds=1, local_steps=6, checkpoint_every=1)
    fleet = CrashFleet(model, wanted, disks=tmp_path)
    with contextlib.closing(fleet):
        fleet.run(until=lambda _: any((row.agent, row.step) == ("a", 3) for row in fleet.metrics))
        for name in ("a", "cloud"):
            fleet.kill(name)
        shutil.rmtree(tmp_path / "a")
        for name in ("cloud", "a"):
            fleet.start(name)
        fleet.run(limit=20_000)
    assert [event.kind for event in fleet.events].count("round_again") == 1
    assert fleet.report.ledger == {"expected": 12, "applied": 12, "lost": 0, "duplicated": 0}
    assert fleet.versions[-1].sections == in_calm(model, wanted)
