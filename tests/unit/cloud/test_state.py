"""What a restarted cloud finds on its disk: the last whole state, or a clear refusal."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iotsplit.errors import UsageError
from iotsplit.settings import TrainingSettings
from iotsplit.states import Assignment
from iotsplit_cloud.journal import CarriedSession, RoundCheckpoint, RoundState, SessionRecord
from iotsplit_cloud.records import Milestone
from iotsplit_cloud.report import new_report
from iotsplit_cloud.store import Saved, Store
from iotsplit_cloud.versions import KEPT_VERSIONS, Version

SETTINGS = TrainingSettings(checkpoint_every=5)


OPEN: list[Store] = []


@pytest.fixture(autouse=True)
def closed_in_the_end() -> Iterator[None]:
    """Lets go of all files; what a killed cloud has open, its system closes."""
    yield
    while OPEN:
        store = OPEN.pop()
        for file in store._lines.values():
            file.close()
        store._database.close()


@pytest.fixture(autouse=True)
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """These versions hold no real tensors."""
    monkeypatch.setattr("iotsplit_cloud.store.adapters.export", lambda *_: None)
    monkeypatch.setattr(Version, "tensors", lambda _: {})


def make_store(output: Path, model: str = "m", **settings: Any) -> Store:
    made = TrainingSettings(**({"checkpoint_every": 5} | settings))
    OPEN.append(Store(output, agent="cloud", settings=made, model=model, peft={}))
    return OPEN[-1]


def version(number: int) -> Version:
    sections = {tier: f"{tier} {number}".encode() for tier in ("device", "edge", "cloud")}
    return Version(version=number, round=number, sections=sections)


def milestone(round_: int) -> Milestone:
    report = new_report("plant", {}, SETTINGS)
    return Milestone(report=report, round=round_, version=round_, carried={})


def state(round_: int = 1, *, attempt: int = 0, edge: str = "e1") -> RoundState:
    assignment = Assignment(device="d1", task="train", session="s", epoch=7, edge=edge, settings=SETTINGS)
    return RoundState(
        round=round_,
        attempt=attempt,
        assignments={"d1": assignment},
        dropped={"d2": "d2 is gone"},
        carried={"d3": CarriedSession(assignment=assignment, tokens=30)},
    )


def checkpoint(step: int, *, regular: bool = True) -> RoundCheckpoint:
    records = {"d1": SessionRecord(tokens=10 * step, losses=(1.5,) * step, edge_checkpoint=step - 1)}
    return RoundCheckpoint(step=step, regular=regular, sessions=records, body=f"body {step}".encode())


def begun(output: Path, *checkpoints: RoundCheckpoint) -> Store:
    """A store in its first round, with these checkpoints."""
    made = make_store(output)
    for kept in (version(0), milestone(0), state(), *checkpoints):
        made.take(kept)
    return made


def after_one_round(output: Path) -> None:
    made = make_store(output)
    for number in (0, 1):
        made.take(version(number))
        made.take(milestone(number))


def found(output: Path) -> Saved:
    saved = make_store(output).load()
    assert saved is not None
    return saved


def steps(output: Path) -> list[int]:
    return [each.step for each in found(output).earlier.checkpoints]


def round_files(output: Path) -> list[str]:
    return sorted(file.name for file in (output / "state" / "cloud" / "round").iterdir())


def test_there_is_nothing_before_the_first_milestone(tmp_path: Path) -> None:
    made = make_store(tmp_path)
    made.take(version(0))
    assert make_store(tmp_path).load() is None


# --- between rounds


def test_a_milestone_is_found_with_its_versions(tmp_path: Path) -> None:
    after_one_round(tmp_path)
    saved = found(tmp_path)
    assert (saved.earlier.round, saved.version) == (1, 1)
    assert saved.versions == [version(0), version(1)]
    assert (saved.earlier.interrupted, saved.earlier.checkpoints) == (None, [])


def test_a_directory_of_another_model_is_refused(tmp_path: Path) -> None:
    after_one_round(tmp_path)
    with pytest.raises(UsageError, match="holds a run of another model"):
        make_store(tmp_path, model="other").load()


def test_what_a_version_was_made_from_and_a_pause_are_known(tmp_path: Path) -> None:
    made = make_store(tmp_path)
    for number, parent in ((0, -1), (1, 0), (2, 0)):
        made.take(dataclasses.replace(version(number), parent=parent))
        made.take(dataclasses.replace(milestone(number), paused=number == 2))
    saved = found(tmp_path)
    assert [each.parent for each in saved.versions] == [-1, 0, 0]
    assert saved.earlier.paused
    made.take(state(3))
    assert not found(tmp_path).earlier.paused


def test_only_the_last_few_versions_stay(tmp_path: Path) -> None:
    made = make_store(tmp_path)
    for number in range(KEPT_VERSIONS + 2):
        made.take(version(number))
        made.take(milestone(number))
    kept = list(range(2, KEPT_VERSIONS + 2))
    assert [each.version for each in found(tmp_path).versions] == kept
    cloud = tmp_path / "state" / "cloud"
    assert sorted(int(each.name) for each in (cloud / "versions").iterdir()) == kept


def test_a_version_that_no_milestone_names_is_as_if_it_had_not_been_made(tmp_path: Path) -> None:
    begun(tmp_path).take(version(1))
    saved = found(tmp_path)
    assert (saved.version, [each.version for each in saved.versions]) == (0, [0])


def test_the_newest_round_is_known_and_not_one_that_was_not_over(tmp_path: Path) -> None:
    made = make_store(tmp_path)
    for number in (0, 1):
        made.take(version(number))
        made.take(dataclasses.replace(milestone(number), row={"round": number}))
    made._add_row({"round": 2})  # and then the power goes
    assert found(tmp_path).row == {"round": 1}


def test_what_the_power_kept_from_being_exported_as_the_best_is_when_the_cloud_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_store(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "_export_best", lambda *_: None)
        for number in (0, 1, 2):
            made.take(version(number))
            report = new_report("plant", {}, SETTINGS)
            report.eval["best"] = {"adapter_version": min(number, 1), "round": 1, "loss": 1.0}
            made.take(dataclasses.replace(milestone(number), report=report))
    exported: list[Path] = []
    monkeypatch.setattr("iotsplit_cloud.store.adapters.export", lambda path, *_: exported.append(path))
    monkeypatch.setattr(Version, "tensors", lambda _: {})
    found(tmp_path)
    assert exported == [tmp_path / "adapter-best"]
    (tmp_path / "state" / "cloud" / "versions" / "1" / "edge.safetensors").write_bytes(b"damaged")
    found(tmp_path)  # passed over, as any version that is not the current one
    assert exported == [tmp_path / "adapter-best"]


# --- in a round


def test_decisions_and_checkpoints_of_the_round_at_hand_are_found_as_they_were(tmp_path: Path) -> None:
    begun(tmp_path, checkpoint(5), checkpoint(10))
    saved = found(tmp_path)
    assert saved.earlier.interrupted == state()
    assert saved.earlier.checkpoints == [checkpoint(5), checkpoint(10)]


def test_the_newest_decision_counts_and_keeps_the_checkpoints(tmp_path: Path) -> None:
    begun(tmp_path, checkpoint(5)).take(state(edge="e2"))
    assert found(tmp_path).earlier.interrupted == state(edge="e2")
    assert steps(tmp_path) == [5]


def test_the_last_two_checkpoints_stay_and_their_files_with_them(tmp_path: Path) -> None:
    begun(tmp_path, checkpoint(5), checkpoint(10), checkpoint(15))
    assert steps(tmp_path) == [10, 15]
    assert round_files(tmp_path) == ["000010.safetensors", "000015.safetensors"]


def test_the_loss_of_a_session_takes_the_checkpoints_before_it_along(tmp_path: Path) -> None:
    begun(tmp_path, checkpoint(5), checkpoint(10), checkpoint(12, regular=False))
    assert steps(tmp_path) == [12]
    assert round_files(tmp_path) == ["000012.safetensors"]


def test_who_went_back_and_saves_again_leaves_nothing_that_is_ahead(tmp_path: Path) -> None:
    begun(tmp_path, checkpoint(5), checkpoint(10), checkpoint(5))
    assert steps(tmp_path) == [5]


def test_a_round_done_again_begins_without_checkpoints(tmp_path: Path) -> None:
    made = begun(tmp_path, checkpoint(5))
    made.take(state(attempt=1))
    assert made._database.checkpoints(dict) == []
    saved = found(tmp_path)
    assert (saved.earlier.interrupted, saved.earlier.checkpoints) == (state(attempt=1), [])
    assert round_files(tmp_path) == []


def test_the_end_of_a_round_strikes_out_what_was_written_of_it(tmp_path: Path) -> None:
    made = begun(tmp_path, checkpoint(5))
    made.take(version(1))
    made.take(milestone(1))
    saved = found(tmp_path)
    assert (saved.earlier.interrupted, saved.earlier.checkpoints) == (None, [])
    assert round_files(tmp_path) == []


def test_a_restarted_cloud_goes_on_writing_where_it_was(tmp_path: Path) -> None:
    begun(tmp_path, checkpoint(5))
    again = make_store(tmp_path)
    again.load()
    again.take(state(edge="e2"))
    again.take(checkpoint(10))
    assert steps(tmp_path) == [5, 10]


# --- damaged and foreign


@pytest.mark.parametrize("damage", [b"", b"body", b"Body 10"], ids=["empty", "torn", "other"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, damage: bytes) -> None:
    begun(tmp_path, checkpoint(5), checkpoint(10))
    (tmp_path / "state" / "cloud" / "round" / "000010.safetensors").write_bytes(damage)
    assert steps(tmp_path) == [5]


@pytest.mark.parametrize("file", ["versions/1/cloud.safetensors", "versions/1/edge.safetensors"])
@pytest.mark.parametrize("damage", [b"", b"something else"])
def test_a_damaged_file_of_the_last_milestone_is_refused_by_name(
    tmp_path: Path, file: str, damage: bytes
) -> None:
    after_one_round(tmp_path)
    (tmp_path / "state" / "cloud" / file).write_bytes(damage)
    with pytest.raises(UsageError, match=f"{file} is damaged") as caught:
        found(tmp_path)
    assert "--fresh" in caught.value.fix


def test_an_older_version_that_is_damaged_is_passed_over(tmp_path: Path) -> None:
    after_one_round(tmp_path)
    (tmp_path / "state" / "cloud" / "versions" / "0" / "cloud.safetensors").write_bytes(b"")
    assert [each.version for each in found(tmp_path).versions] == [1]


def test_a_power_cut_before_a_checkpoint_is_entered_leaves_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = begun(tmp_path, checkpoint(5), checkpoint(10))

    def cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(made._database, "add_checkpoint", cut)
    with pytest.raises(KeyboardInterrupt):
        made.take(checkpoint(15))
    assert steps(tmp_path) == [5, 10]


def test_a_power_cut_before_a_milestone_is_entered_leaves_the_round_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = begun(tmp_path, checkpoint(5))
    made.take(version(1))

    def cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(made._database, "write", cut)
    with pytest.raises(KeyboardInterrupt):
        made.take(milestone(1))
    saved = found(tmp_path)
    assert (saved.earlier.round, saved.earlier.interrupted) == (0, state())
    assert steps(tmp_path) == [5]


@pytest.mark.parametrize("change", [{"rank": 4}, {"seed": 1}, {"checkpoint_every": 6}], ids=str)
def test_a_directory_of_other_settings_is_refused_with_their_names_and_the_way_out(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    begun(tmp_path)
    (name,) = change
    with pytest.raises(UsageError, match=f"other settings: {name}; .*--fresh"):
        make_store(tmp_path, **change).load()


def test_a_run_may_be_asked_for_more_rounds(tmp_path: Path) -> None:
    begun(tmp_path)
    assert make_store(tmp_path, rounds=9, evaluate="rounds").load() is not None


def test_a_damaged_database_is_refused_with_the_way_out(tmp_path: Path) -> None:
    begun(tmp_path)._database.close()
    (tmp_path / "state" / "cloud" / "state.db").write_bytes(b"torn" * 4096)
    for rest in (tmp_path / "state" / "cloud").glob("state.db-*"):
        rest.unlink()
    with pytest.raises(UsageError, match=r"state\.db cannot be gone on with.*--fresh"):
        make_store(tmp_path)


@pytest.mark.parametrize("missing", ["versions/0/cloud.safetensors", "versions/0/edge.safetensors"])
def test_a_directory_that_lacks_a_file_is_refused_with_the_way_out(tmp_path: Path, missing: str) -> None:
    begun(tmp_path)
    (tmp_path / "state" / "cloud" / missing).unlink()
    with pytest.raises(UsageError, match="--fresh"):
        make_store(tmp_path).load()
