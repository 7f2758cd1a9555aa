"""What the cloud writes while a run goes on, and what a full disk leaves of it."""

import json
from pathlib import Path
from typing import IO, cast

import pytest

from iotsplit.errors import RunFailedError
from iotsplit.settings import TrainingSettings
from iotsplit.states import Event
from iotsplit_cloud.records import Milestone
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
    return Store(output, agent="cloud", settings=TrainingSettings(), peft={})


def fill_the_disk(store: Store) -> None:
    store._lines["events"] = cast("IO[bytes]", Full(store._lines["events"]))


def milestone() -> Milestone:
    report = new_report("plant", {}, TrainingSettings())
    return Milestone(report=report, round=0, version=0, optimizer=b"", carried={}, final=False)


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
