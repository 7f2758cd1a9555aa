"""The built-in data sets: what they promise to those who train on them."""

from pathlib import Path

import pytest

from iotsplit.datasets import fortunes, plant, reference
from iotsplit.datasets.builtin import SETS, Builtin, devices_of, groups_of
from iotsplit.datasets.records import Pair, Text
from iotsplit.errors import UsageError

MACHINES = list(plant.MACHINES)


def pairs(name: str, machines: int, split: str) -> list[Pair]:
    found = groups_of("plant", devices=machines, seed=0)[name]
    return [record for record in found if isinstance(record, Pair) and record.split == split]


def words(pair: Pair) -> tuple[str, str]:
    """Part and fault of a ticket."""
    part = pair.completion.split("part=")[1].split(" fault=")[0]
    return part, pair.completion.split("fault=")[1].split(" ")[0]


def test_every_data_set_can_be_made() -> None:
    assert set(SETS) == set(Builtin)


def test_devices_of_the_plant_are_named_by_machine() -> None:
    assert devices_of("plant", 10) == [*MACHINES, "press-2", "pump-2"]
    assert len(MACHINES) >= 6


def test_equal_seeds_give_equal_notes_and_other_seeds_others() -> None:
    first = groups_of("plant", devices=3, seed=7)
    assert groups_of("plant", devices=3, seed=7) == first
    assert groups_of("plant", devices=3, seed=8) != first


def test_a_device_keeps_its_notes_when_others_join() -> None:
    few, many = groups_of("plant", devices=2, seed=1), groups_of("plant", devices=9, seed=1)
    assert few["pump"] == many["pump"]
    assert many["press"] != many["press-2"]


@pytest.mark.parametrize("machine", MACHINES)
def test_six_pairs_of_part_and_fault_are_never_seen_in_training(machine: str) -> None:
    trained = {words(pair) for pair in pairs(machine, 8, "train")}
    held_out = [words(pair) for pair in pairs(machine, 8, "eval")]
    assert len(held_out) == len(set(held_out)) == 6
    assert not trained & set(held_out)
    assert len(pairs(machine, 8, "train")) == plant.TRAIN_RECORDS


@pytest.mark.parametrize("machine", MACHINES)
def test_every_part_is_seen_in_training(machine: str) -> None:
    trained = {part for part, _ in map(words, pairs(machine, 8, "train"))}
    assert trained == set(plant.MACHINES[machine])


@pytest.mark.parametrize("machines", [2, 4, 6, 8])
def test_together_the_devices_see_every_fault_that_is_asked_for(machines: int) -> None:
    names = MACHINES[:machines]
    seen = {fault for name in names for _, fault in map(words, pairs(name, 8, "train"))}
    asked = {fault for name in names for _, fault in map(words, pairs(name, 8, "eval"))}
    assert asked <= seen


@pytest.mark.parametrize("machine", MACHINES)
def test_alone_a_device_does_not_see_two_faults_that_it_is_asked_for(machine: str) -> None:
    seen = {fault for _, fault in map(words, pairs(machine, 8, "train"))}
    asked = [fault for _, fault in map(words, pairs(machine, 8, "eval"))]
    assert sum(fault not in seen for fault in asked) == 2


def test_the_fault_decides_the_action() -> None:
    for name in MACHINES:
        for pair in pairs(name, 8, "train"):
            part, fault = words(pair)
            assert pair.completion == plant.ticket(name, part, fault)
            assert pair.completion.endswith(f"action={plant.FAULTS[fault].action}")
            assert name in pair.prompt
            assert part in pair.prompt


def test_no_wording_belongs_to_two_faults() -> None:
    wordings = [text for fault in plant.FAULTS.values() for text in fault.symptoms]
    assert len(wordings) == len(set(wordings))


def test_notes_and_tickets_are_short() -> None:
    # SmolLM2 makes a token of about 3.5 of these characters, and 64 tokens are the aim.
    longest = max(
        len(r.prompt) + len(r.completion)
        for name in MACHINES
        for r in pairs(name, 8, "train") + pairs(name, 8, "eval")
    )
    assert longest <= 160


def test_the_reference_has_a_group_for_each_topic() -> None:
    groups = reference.groups(4, 0)
    assert list(groups) == sorted(groups)
    assert len(groups) > 50
    assert all(isinstance(r, Text) and r.text for group in groups.values() for r in group)
    assert len(devices_of("python-reference", 3)) == 3


def test_fortunes_are_read_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fortunes, "FOLDER", tmp_path)
    (tmp_path / "small").write_text("a\n%\n")
    (tmp_path / "wisdom").write_text("one\ntwo\n%\nthree: 100%\n%\n%\nfour\n")
    (tmp_path / "art").write_text("long enough to be among the two largest\n%\n")
    (tmp_path / "wisdom.dat").write_bytes(b"\xff" * 500)
    (tmp_path / "off").mkdir()
    found = groups_of("fortunes", devices=2, seed=0)
    assert list(found) == ["art", "wisdom"]
    assert found["wisdom"] == [Text("one\ntwo"), Text("three: 100%"), Text("four")]


def test_missing_fortunes_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fortunes, "FOLDER", tmp_path / "gone")
    with pytest.raises(UsageError, match="apt install fortunes"):
        groups_of("fortunes", devices=2, seed=0)


def test_broken_fortunes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fortunes, "FOLDER", tmp_path)
    (tmp_path / "art").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="cannot be read"):
        groups_of("fortunes", devices=1, seed=0)
