"""The device's disk: the last two checkpoints, whole or not at all."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from iotsplit.errors import RunFailedError, UsageError
from iotsplit.runtime import files
from iotsplit.states import Event
from iotsplit_device.records import Checkpoint
from iotsplit_device.store import DeviceStore


def checkpoint(step: int, session: str = "s") -> Checkpoint:
    return Checkpoint(session=session, step=step, tokens=10 * step, body=f"{session} {step}".encode())


def store(directory: Path, model: str = "m") -> DeviceStore:
    return DeviceStore(directory / "checkpoints", model=model)


def fill(directory: Path, *steps: int, session: str = "s") -> DeviceStore:
    made = store(directory)
    for step in steps:
        made.take(checkpoint(step, session))
    return made


def by_step(found: list[Checkpoint]) -> dict[int, Checkpoint]:
    return {each.step: each for each in found}


def test_nothing_was_saved_before_the_first_start(tmp_path: Path) -> None:
    assert store(tmp_path).load() == []


def test_the_last_three_checkpoints_are_found_after_a_restart(tmp_path: Path) -> None:
    fill(tmp_path, 5, 10, 15, 20)
    assert by_step(store(tmp_path).load()) == {step: checkpoint(step) for step in (10, 15, 20)}


def test_files_of_what_is_forgotten_are_removed(tmp_path: Path) -> None:
    fill(tmp_path, 5, 10, 15, 20, 25)
    assert sorted(file.name for file in (tmp_path / "checkpoints").iterdir()) == [
        "15.json",
        "15.safetensors",
        "20.json",
        "20.safetensors",
        "25.json",
        "25.safetensors",
    ]


def test_a_new_session_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    fill(tmp_path, 5, 10)
    fill(tmp_path, 5, session="t")
    assert store(tmp_path).load() == [checkpoint(5, "t")]


def test_a_session_that_went_back_takes_the_place_of_what_was_ahead(tmp_path: Path) -> None:
    fill(tmp_path, 10, 15, 10)
    assert by_step(store(tmp_path).load()) == {10: checkpoint(10)}


@pytest.mark.parametrize("damage", [b"", b"s 1", b"x 15"], ids=["empty", "torn", "other"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, damage: bytes) -> None:
    made = fill(tmp_path, 10, 15)
    (tmp_path / "checkpoints" / "15.safetensors").write_bytes(damage)
    assert made.load() == [checkpoint(10)]


def test_a_damaged_manifest_is_passed_over(tmp_path: Path) -> None:
    made = fill(tmp_path, 10, 15)
    (tmp_path / "checkpoints" / "15.json").write_bytes(b'{"format":')
    assert made.load() == [checkpoint(10)]


def test_a_power_cut_before_the_manifest_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fill(tmp_path, 5, 10)
    whole = files.replace

    def cut(file: Path, content: bytes) -> None:
        if file.suffix == ".json":
            raise KeyboardInterrupt
        whole(file, content)

    monkeypatch.setattr("iotsplit_device.store.replace", cut)
    with pytest.raises(KeyboardInterrupt):
        made.take(checkpoint(15))
    assert by_step(store(tmp_path).load()) == {5: checkpoint(5), 10: checkpoint(10)}


def test_a_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = fill(tmp_path, 5)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFailedError, match="No space left on device; free space there"):
        made.take(checkpoint(10))
    assert store(tmp_path).load() == [checkpoint(5)]


@pytest.mark.parametrize(("change", "named"), [({"model": "n"}, "another model"), ({}, "another version")])
def test_foreign_checkpoints_are_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], named: str
) -> None:
    fill(tmp_path, 5)
    if not change:
        monkeypatch.setattr("iotsplit_device.store.FORMAT", 2)
    with pytest.raises(UsageError, match=f"{named}.*choose another --state-dir"):
        store(tmp_path, **change).load()


def test_other_things_that_a_role_says_are_not_kept(tmp_path: Path) -> None:
    store(tmp_path).take(Event(kind="x", agent="a"))
    assert not (tmp_path / "checkpoints").exists()
