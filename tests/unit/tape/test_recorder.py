"""How a recording ends: with what the broker still holds for it."""

from pathlib import Path

import pytest

from iotsplit.packet import Packet
from iotsplit.runtime.link import Deliver
from iotsplit.tape import files
from iotsplit.tape.files import TapeWriter
from iotsplit.tape.format import Header
from iotsplit.tape.recorder import Limits, Recorder, Tally


class LaggingLink:
    """A broker that hands over its last messages when somebody unsubscribes.

    Args:
        held: messages that it still has.
        impatient: whether the recording is stopped again behind them.
    """

    def __init__(self, held: int, *, impatient: bool = False) -> None:
        self._held, self._impatient = held, impatient
        self.recorder: Recorder | None = None
        self.subscribed: list[frozenset[str]] = []

    def open(self, deliver: Deliver, *, last_will: Packet | None) -> None:
        assert last_will is None
        self._deliver = deliver

    def subscribe(self, filters: frozenset[str]) -> None:
        self.subscribed.append(filters)
        assert self.recorder is not None
        if filters:
            self._deliver(Packet(topic="first", payload=b""))
            self.recorder.stop()
            return
        for number in range(self._held):
            self._deliver(Packet(topic=f"late/{number}", payload=bytes(100)))
        if self._impatient:
            self.recorder.stop()
            self._deliver(Packet(topic="too/late", payload=b""))

    def publish(self, packet: Packet) -> None:
        raise AssertionError(f"a recorder says nothing, not {packet}")

    def close(self) -> None:
        self.subscribed.append(frozenset({"closed"}))


def recorded(tape: Path, link: LaggingLink, limits: Limits) -> tuple[Tally, list[str], list[str]]:
    """The tally, the topics on the tape, and what a person was told."""
    told: list[str] = []
    with TapeWriter(tape, Header()) as writer:
        link.recorder = Recorder(link, writer, observer="ear", tell=told.append)
        tally = link.recorder.run(frozenset({"#"}), limits)
    return tally, [record.topic for record in files.records(tape)], told


def test_what_the_broker_still_holds_is_taken_when_a_recording_is_stopped(tmp_path: Path) -> None:
    link = LaggingLink(3)
    tally, topics, told = recorded(tmp_path / "x.tape", link, Limits())
    assert topics == ["first", "late/0", "late/1", "late/2"]
    assert (tally.ended_by, tally.records, tally.lost) == ("stopped", 4, 0)
    assert link.subscribed == [frozenset({"#"}), frozenset(), frozenset({"closed"})]
    assert told == []


def test_who_stops_it_again_does_not_wait_and_is_told(tmp_path: Path) -> None:
    _, topics, told = recorded(tmp_path / "x.tape", LaggingLink(1, impatient=True), Limits())
    assert topics == ["first", "late/0"]
    assert told == ["ended at once: what the broker still held is not on the tape"]


@pytest.mark.parametrize("size_bytes", [400, 700])
def test_the_rest_keeps_to_the_size_of_the_tape(tmp_path: Path, size_bytes: int) -> None:
    tally, topics, told = recorded(tmp_path / "x.tape", LaggingLink(50), Limits(size_bytes=size_bytes))
    assert tally.ended_by == "size"
    assert 1 < len(topics) < 51
    assert told == []
