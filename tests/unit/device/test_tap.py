"""A tap: what arrives is stored, what a round learns from stays as it is until the next."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from iotsplit.datasets.records import Record, read
from iotsplit.errors import RunFailedError, UsageError
from iotsplit.packet import Packet
from iotsplit.runtime import clock, files
from iotsplit.runtime.link import Deliver, LinkChange
from iotsplit.states import Assignment
from iotsplit.topics import Topics
from iotsplit_device import tap as module
from iotsplit_device.tap import Tap
from iotsplit_device.tap_options import TapOptions

Open = Callable[..., Tap]


class Deaf:
    """A link that keeps what is asked of it, and says itself what arrives."""

    def __init__(self) -> None:
        self.filters: frozenset[str] = frozenset()
        self.deliver: Deliver | None = None

    def open(self, deliver: Deliver, *, last_will: Packet | None) -> None:
        assert last_will is None
        self.deliver = deliver

    def subscribe(self, filters: frozenset[str]) -> None:
        self.filters = filters

    def publish(self, packet: Packet) -> None:
        raise AssertionError("a tap says nothing")

    def close(self) -> None:
        self.deliver = None


@pytest.fixture
def open_tap(tmp_path: Path) -> Iterator[Open]:
    """Makes taps on one disk, as one restart after the other would."""
    made: list[Tap] = []

    def opened(*, waits: bool = True, **options: Any) -> Tap:
        if made:
            made.pop().close()
        given: dict[str, Any] = {"tap": ("factory/+/log",), "tap_field": "text", "tap_min": 3} | options
        made.append(TapOptions(**given).make(Deaf(), tmp_path, Topics("default"), eval_limit=2, waits=waits))
        return made[-1]

    yield opened
    made.pop().close()


def note(number: int) -> str:
    return f"press {number} was oiled and runs again"


def said(*numbers: int) -> list[Packet]:
    return [
        Packet(topic="factory/a/log", payload=json.dumps({"text": note(number)}).encode()) for number in numbers
    ]


def session(round_: int, task: str = "train", adapter: str = "") -> Assignment:
    return Assignment(device="press", task=task, round=round_, adapter=adapter or f"version {round_ - 1}")


def texts(records: list[Record]) -> set[str]:
    return {each.text for each in records if hasattr(each, "text")}


def notes(*numbers: int) -> set[str]:
    return {note(number) for number in numbers}


def test_a_device_waits_until_there_is_enough(open_tap: Open) -> None:
    tap = open_tap()
    tap.take(said(1, 1, 2))
    assert tap.hindrance() == "waits for texts: 2 of 3 from factory/+/log"
    tap.take(said(3))
    assert tap.hindrance() == ""


def test_a_round_learns_from_what_was_there_when_it_began(open_tap: Open) -> None:
    tap = open_tap()
    tap.take(said(1, 2, 3))
    tap.settle(session(1))
    digest = tap.digest
    tap.take(said(4))
    tap.settle(session(1))
    assert texts(tap.records()) == notes(1, 2, 3)
    tap.settle(session(1, "evaluate"))
    assert tap.digest == digest
    tap.settle(session(2))
    assert texts(tap.records()) == notes(1, 2, 3, 4)
    assert tap.digest != digest


def test_a_restart_in_the_midst_of_a_round_learns_from_the_same(open_tap: Open) -> None:
    tap = open_tap()
    tap.take(said(1, 2, 3))
    tap.settle(session(1))
    kept = tap.digest, tap.records()
    tap.take(said(4, 5))
    tap = open_tap()
    assert tap.hindrance() == ""
    tap.settle(session(1))
    assert (tap.digest, tap.records()) == kept


def test_the_same_round_of_another_version_is_another_round(open_tap: Open) -> None:
    tap = open_tap()
    tap.take(said(1, 2, 3))
    tap.settle(session(1, adapter="x"))
    tap.take(said(4))
    tap.settle(session(1, adapter="y"))
    assert texts(tap.records()) == notes(1, 2, 3, 4)


def test_a_round_does_not_learn_from_what_has_become_too_old(
    open_tap: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    tap = open_tap(tap_keep="1d")
    tap.take(said(1, 2, 3, 4))
    later = clock.wall() + 2 * 86400
    monkeypatch.setattr(clock, "wall", lambda: later)
    tap.settle(session(1))
    assert texts(tap.records()) == notes(2, 3, 4)


def test_a_snapshot_can_be_read_as_a_file_of_data(open_tap: Open, tmp_path: Path) -> None:
    tap = open_tap()
    tap.take(said(1, 2, 3))
    tap.settle(session(1, "evaluate"))
    assert read(tmp_path / "tap" / "snapshot.jsonl") == tap.records()
    assert {each.split for each in tap.records()} == {"train", "eval"}


@pytest.mark.parametrize("file", ["snapshot.json", "snapshot.jsonl"])
def test_a_damaged_snapshot_is_made_anew(open_tap: Open, tmp_path: Path, file: str) -> None:
    tap = open_tap()
    tap.take(said(1, 2, 3))
    tap.settle(session(1))
    (tmp_path / "tap" / file).write_bytes(b"{")
    tap = open_tap()
    tap.settle(session(1))
    assert texts(tap.records()) == notes(1, 2, 3)


def test_a_power_cut_while_a_snapshot_is_written_makes_it_anew(
    open_tap: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    tap = open_tap()
    tap.take(said(1, 2, 3))
    tap.settle(session(1))
    tap.take(said(4))
    whole = files.replace

    def cut(file: Path, content: bytes) -> None:
        if file.suffix == ".json":
            raise KeyboardInterrupt
        whole(file, content)

    monkeypatch.setattr("iotsplit_device.snapshot.replace", cut)
    with pytest.raises(KeyboardInterrupt):
        tap.settle(session(2))
    monkeypatch.undo()
    tap = open_tap()
    tap.settle(session(2))
    assert texts(tap.records()) == notes(1, 2, 3, 4)


def test_beside_files_nothing_is_waited_for(open_tap: Open) -> None:
    tap = open_tap(waits=False)
    assert tap.hindrance() == ""
    tap.take(said(1))
    tap.settle(session(1))
    assert tap.records() == []
    tap.take(said(2, 3))
    tap.settle(session(2))
    assert texts(tap.records()) == notes(1, 2, 3)
    assert open_tap().hindrance() == ""


def test_an_empty_snapshot_is_not_enough(open_tap: Open) -> None:
    open_tap(waits=False).settle(session(1))
    assert open_tap().hindrance() == "waits for texts: 0 of 3 from factory/+/log"


def test_a_store_that_was_emptied_leaves_what_was_learnt_before(open_tap: Open, tmp_path: Path) -> None:
    tap = open_tap()
    tap.take(said(1, 2, 3))
    tap.settle(session(1))
    tap.close()
    (tmp_path / "tap" / "texts.sqlite").unlink()
    tap = open_tap()
    tap.settle(session(2))
    assert texts(tap.records()) == notes(1, 2, 3)


def test_what_is_no_text_is_counted_and_told_once(open_tap: Open) -> None:
    tap = open_tap()
    foreign = [Packet(topic="factory/b/log", payload=payload) for payload in (b"\xff", b'{"txt": 1}', b"")]
    with structlog.testing.capture_logs() as told:
        tap.take([*foreign, *foreign, *said(1, 1)])
    assert tap.counts == {"not_json": 2, "no_field": 2, "new": 1, "known": 1}
    assert [line["reason"] for line in told] == ["it is not JSON", "it has no such field: text"]


def test_what_comes_faster_than_it_can_be_stored_is_lost_and_told(
    open_tap: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING_BYTES", 1000)
    tap = open_tap()
    with structlog.testing.capture_logs() as told:
        for packet in said(1, 2, 3, 4, 5, 6):
            tap.deliver(packet)
    assert tap.counts == {"lost": 4}
    assert len(told) == 1


def test_a_full_disk_does_not_end_the_agent(open_tap: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    tap = open_tap()

    def full(*_: object) -> int:
        raise RunFailedError("cannot write texts.sqlite: disk is full", fix="free space there")

    monkeypatch.setattr(tap._store, "add", full)
    tap.take(said(1, 2))
    assert tap.counts == {"unwritten": 2}


def test_what_has_arrived_is_stored_when_it_closes(open_tap: Open) -> None:
    tap = open_tap()
    tap.open()
    link: Any = tap._link
    assert link.filters == {"factory/+/log"}
    for event in (LinkChange(up=False), *said(1, 2, 3), LinkChange(up=True)):
        link.deliver(event)
    assert open_tap().hindrance() == ""


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"tap": ("#",)}, "where fleets speak"),
        ({"tap_min": 1}, "tap_min 1 is too small"),
        ({"tap_max_bytes": "2kB"}, "tap_max_bytes 2kB is too little for 3 texts"),
        ({"tap_max_bytes": "much"}, "size 'much' is not one"),
        ({"tap_keep": "long"}, "duration 'long' is not one"),
        ({"tap_keep": "0d"}, "tap_keep 0 keeps nothing"),
    ],
)
def test_options_that_cannot_work_are_refused(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    given: dict[str, Any] = {"tap": ("factory/+/log",), "tap_min": 3} | options
    with pytest.raises(UsageError, match=told):
        TapOptions(**given).make(Deaf(), tmp_path, Topics("default"), eval_limit=2, waits=True)
    assert not (tmp_path / "tap").exists()


def test_as_many_texts_as_are_waited_for_fit_however_long_they_are(open_tap: Open) -> None:
    tap = open_tap(tap_max_bytes="6kB", tap_field="", tap_min=4)
    longest = tap._terms.longest
    tap.take([Packet(topic="factory/a/log", payload=letter.encode() * longest) for letter in "abcd"])
    assert tap.hindrance() == ""
