"""What the cloud writes while a run goes on, and what a full disk leaves of it."""

import dataclasses
import json
from pathlib import Path
from typing import IO, cast

import msgspec
import pytest

from iotsplit.errors import RunFailedError
from iotsplit.plan import Tier
from iotsplit.settings import TrainingSettings
from iotsplit.states import Event, Metrics
from iotsplit_cloud.journal import RoundState
from iotsplit_cloud.records import Heard, Milestone
from iotsplit_cloud.report import new_report
from iotsplit_cloud.store import Store

EVENT = Event(kind="agent_joined", agent="press", detail="")


class Full:
    """A file on a disk that has room for half of what is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, content: bytes) -> int:
        return self._file.write(content[: len(content) // 2])

    def close(self) -> None:
        self._file.close()


def make_store(output: Path) -> Store:
    return Store(output, agent="cloud", settings=TrainingSettings(), model="m", peft={})


def fill_the_disk(store: Store) -> None:
    store._lines["events"] = cast("IO[bytes]", Full(store._lines["events"]))


def milestone() -> Milestone:
    report = new_report("plant", {}, TrainingSettings())
    return Milestone(report=report, round=0, version=0, carried={}, final=False)


def test_a_line_that_a_full_disk_cuts_short_ends_the_run_with_the_reason(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    fill_the_disk(store)
    with pytest.raises(RunFailedError, match=r"events\.jsonl: No space left on device; free space"):
        store.take(EVENT)
    store.close("failed")


@pytest.mark.slow  # draws
def test_a_run_goes_on_behind_a_line_that_was_cut_short(tmp_path: Path) -> None:
    first = make_store(tmp_path)
    fill_the_disk(first)
    with pytest.raises(RunFailedError):
        first.take(EVENT)
    first.close("failed")
    second = make_store(tmp_path)
    second.take(EVENT)
    second.take(milestone())
    second.close("done")
    report = json.loads((tmp_path / "report.json").read_bytes())
    assert [event["agent"] for event in report["events"]] == ["press"]


def test_an_output_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFailedError, match="cannot write"):
        make_store(tmp_path / "file")


def test_signs_of_life_between_rounds_are_not_written(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    beat = Metrics(agent="press", role=Tier.DEVICE, time=1.0)
    step = Metrics(agent="press", role=Tier.DEVICE, time=2.0, session="s", step=0)
    began = RoundState(round=1, attempt=0, assignments={}, dropped={}, carried={})
    for kept in (
        beat,
        Heard(metrics=beat),
        step,
        milestone(),
        beat,
        began,
        beat,
        Heard(metrics=beat),
        ended(1),
        beat,
    ):
        store.take(kept)
    store.close("done")
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["time"] for line in lines] == [2.0, 1.0, 1.0]


# --- rounds of the report


def ended(number: int, *, row: int | None = None, **more: object) -> Milestone:
    """What is kept at the end of a round."""
    told = {"round": number if row is None else row, "wall_s": 1.5} | more
    return dataclasses.replace(milestone(), round=number, row=told)


def rounds_told(output: Path) -> list[dict[str, object]]:
    told: list[dict[str, object]] = json.loads((output / "report.json").read_bytes())["rounds"]
    return told


def rounds_file(output: Path) -> list[bytes]:
    return (output / "rounds.jsonl").read_bytes().splitlines()


def test_the_report_has_all_rounds_and_the_database_none(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    size_bytes = set()
    for number in range(1, 21):
        store.take(ended(number))
        size_bytes.add(len(store._database.fact("state", msgspec.Raw) or b""))
    store.close("done")
    assert [row["round"] for row in rounds_told(tmp_path)] == list(range(1, 21))
    assert max(size_bytes) - min(size_bytes) < 50


def test_a_round_that_is_said_again_with_its_evaluation_counts_once(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.take(ended(1))
    store.take(ended(1, eval={"loss": 2.0}))
    store.take(ended(1, eval={"loss": 2.0}))
    store.close("done")
    assert [row.get("eval") for row in rounds_told(tmp_path)] == [{"loss": 2.0}]
    assert len(rounds_file(tmp_path)) == 2


def test_what_takes_long_to_write_is_written_more_rarely_but_at_the_end(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.take(ended(1))
    store._report_due = float("inf")
    store.take(ended(2))
    assert [row["round"] for row in rounds_told(tmp_path)] == [1]
    store.close("stopped")
    assert [row["round"] for row in rounds_told(tmp_path)] == [1, 2]
