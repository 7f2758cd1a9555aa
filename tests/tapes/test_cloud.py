"""A cloud that is held against a tape needs its past: from the tape, from its disk, or it says so."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from iotsplit.errors import UsageError
from iotsplit.settings import FleetSettings
from iotsplit.tape import files
from iotsplit.tape.cutting import Cutter
from iotsplit.tape.files import TapeWriter
from iotsplit.tape.selection import Moment, Selection
from iotsplit.testing import MemoryFleet, expect_same, replay_tape
from tests.tapes import make

pytestmark = pytest.mark.slow

TWO_ROUNDS = dataclasses.replace(make.TRAINING, rounds=2, local_steps=4)


def new_fleet(model: Path, place: Path, *, waits: bool = False) -> MemoryFleet:
    """One device, two rounds; they wait until somebody says that they are due, or do not."""
    data = {"a": make.write_data(place)["a"]}
    fleet = FleetSettings(devices=1, edges=1, once=True, schedule="every 1h" if waits else "now")
    return make.new_fleet(
        model, data, place / "disk", training=TWO_ROUNDS, fleet=fleet, edges=("edge-1",), name="memory"
    )


def written(fleet: MemoryFleet, place: Path) -> Path:
    fleet.close()
    fleet.write(place / "whole.tape")
    return place / "whole.tape"


def later(tape: Path, start: Moment) -> Path:
    """What somebody records who comes later."""
    part = tape.with_name("later.tape")
    cutter = Cutter(files.header(tape), Selection(), start, None)
    with TapeWriter(part, files.header(tape)) as writer:
        for record in cutter.cut(files.records(tape)):
            writer.add(record)
    return part


def trained(step: int, round_: int = 1) -> Callable[[MemoryFleet], bool]:
    return lambda fleet: any(
        (each.agent, each.step, each.round) == ("a", step, round_) for each in fleet.metrics
    )


def test_a_cloud_that_starts_again_plays_both_its_lives(model: Path, tmp_path: Path) -> None:
    fleet = new_fleet(model, tmp_path)
    fleet.run(trained(2))
    fleet.lose("cloud")
    fleet.start("cloud")
    fleet.run()
    outcome = replay_tape(written(fleet, tmp_path), "cloud", model=model)
    expect_same(outcome)
    assert (outcome.incarnations, outcome.largest) == (2, 0.0)


@pytest.mark.parametrize("in_a_round", [True, False])
def test_a_cloud_goes_on_from_what_it_had_kept(in_a_round: bool, model: Path, tmp_path: Path) -> None:
    fleet = new_fleet(model, tmp_path, waits=True)
    fleet.run(lambda each: each.happened("evaluated") == 1)
    fleet.due()
    fleet.run(trained(3) if in_a_round else lambda each: each.happened("round_finished") == 1)
    fleet.lose("cloud")
    shutil.copytree(tmp_path / "disk" / "cloud" / "out", tmp_path / "kept")
    began = fleet.now + 1.0
    fleet.now = began + 1.0  # nobody says anything for a while
    fleet.start("cloud")
    if in_a_round:
        fleet.run(lambda each: each.happened("round_finished") == 1)
    fleet.due()
    fleet.run()
    tape = later(written(fleet, tmp_path), Moment(began))
    outcome = replay_tape(tape, "cloud", model=model, kept=tmp_path / "kept")
    expect_same(outcome)
    assert outcome.compared > 10
    assert outcome.skipped == []
    with pytest.raises(UsageError, match=r"before .*later\.tape began, cloud went on .* optimizer") as refused:
        replay_tape(tape, "cloud", model=model)
    assert "--kept" in refused.value.fix


@pytest.mark.parametrize("start", [Moment(round=2), Moment(0.05)])
def test_a_cloud_that_was_at_work_is_refused(start: Moment, model: Path, tmp_path: Path) -> None:
    fleet = new_fleet(model, tmp_path)
    fleet.run()
    shutil.copytree(tmp_path / "disk" / "cloud" / "out", tmp_path / "kept")
    tape = later(written(fleet, tmp_path), start)
    with pytest.raises(UsageError, match=r"before .*later\.tape began, cloud (was|had made) ") as refused:
        replay_tape(tape, "cloud", model=model)
    assert "record from its first start" in refused.value.fix
    with pytest.raises(UsageError, match=r"when cloud was at work, later than what it kept"):
        replay_tape(tape, "cloud", model=model, kept=tmp_path / "kept")


def test_a_cloud_that_had_only_waited_is_held_against_the_rest(model: Path, tmp_path: Path) -> None:
    fleet = new_fleet(model, tmp_path)
    fleet.run()
    tape = later(written(fleet, tmp_path), Moment(1e-5))
    assert next(files.records(tape)).retain
    expect_same(replay_tape(tape, "cloud", model=model))


def test_only_a_copy_of_a_clouds_output_is_taken(model: Path, tmp_path: Path) -> None:
    tape = make.HERE / "quiet.tape"
    with pytest.raises(UsageError, match=r"is no copy of a cloud's output directory"):
        replay_tape(tape, "cloud", model=model, kept=tmp_path)
    with pytest.raises(UsageError, match=r"--kept is of a cloud, not of the edge"):
        replay_tape(tape, "edge", agent="edge-1", model=model, kept=tmp_path)
