"""The record command on a real broker: what it keeps, what it leaves out, and when it ends."""

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from iotsplit.cli import main
from iotsplit.fleet import record
from iotsplit.messages import decode_content
from iotsplit.packet import Packet
from iotsplit.runtime.address import BrokerAddress
from iotsplit.runtime.link import LinkChange
from iotsplit.runtime.mqtt import MqttLink
from iotsplit.tape import files
from iotsplit.tape.format import Record
from iotsplit.tape.letters import Letter, Listener, is_retained
from iotsplit.tape.numbers import tensors_of
from iotsplit.tape.recorder import Recorder
from iotsplit.topics import Topics
from tests.broker.conftest import StartBroker

pytestmark = [pytest.mark.broker, pytest.mark.slow]

GOLDEN = Path(__file__).parents[1] / "tapes"
ROOT = "iotsplit/memory/"
SEEN_S = 30.0

RecordRun = Callable[..., tuple[int, Path]]


def packets(tape: str) -> list[Packet]:
    """What a golden tape says, as its agents published it, in one QoS so that its order is kept."""
    return [
        Packet(topic=each.topic, payload=each.payload, qos=1, retain=is_retained(each.topic.removeprefix(ROOT)))
        for each in files.records(GOLDEN / tape)
    ]


@pytest.fixture
def record_run(
    start_mosquitto: StartBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RecordRun]:
    """Records with the given options while packets are said, from when the recorder listens on."""
    port = start_mosquitto().settings.port
    listens, over = threading.Event(), threading.Event()

    class Noticed(Recorder):
        def deliver(self, event: Packet | LinkChange) -> None:
            super().deliver(event)
            listens.set()

    monkeypatch.setattr(record, "Recorder", Noticed)
    link = MqttLink(BrokerAddress.parse(f"mqtt://127.0.0.1:{port}"), "test-speaker")
    link.open(lambda _: None, last_will=None)

    def run(said: Sequence[Packet], *words: str) -> tuple[int, Path]:
        first, *rest = said  # what is retained tells that the recorder is there
        link.publish(first)

        def speak() -> None:
            assert listens.wait(SEEN_S)
            for packet in rest:
                link.publish(packet)
            over.set()

        speaker = threading.Thread(target=speak)
        speaker.start()
        tape = tmp_path / "recorded.tape"
        code = main(["record", f"--broker=mqtt://127.0.0.1:{port}", "--fleet=memory", *words, str(tape)])
        speaker.join()
        return code, tape

    yield run
    link.close()


def letters(records: Iterable[Record]) -> list[Letter]:
    listener = Listener(Topics("memory"))
    return [letter for record in records if (letter := listener.take(record)) is not None]


def said_in(records: Sequence[Record]) -> list[tuple[str, bytes]]:
    return [(each.topic, each.payload) for each in records]


def test_it_ends_when_so_many_rounds_are_over(
    record_run: RecordRun, capsys: pytest.CaptureFixture[str]
) -> None:
    said = packets("rollback.tape")
    code, tape = record_run(said, "--rounds=2", "--json")
    assert code == 0
    tally = json.loads(capsys.readouterr().out)
    assert (tally["rounds"], tally["ended_by"], tally["lost"], tally["gaps"]) == (2, "rounds", 0, 0)
    ends = [n for n, each in enumerate(said) if b"round_finished" in each.payload]
    assert said_in(list(files.records(tape))) == [(p.topic, p.payload) for p in said[: ends[1] + 1]]
    assert tally["tape_bytes"] == tape.stat().st_size


def test_it_ends_when_the_tape_is_as_large_as_it_may_be(
    record_run: RecordRun, capsys: pytest.CaptureFixture[str]
) -> None:
    code, tape = record_run(packets("quiet.tape"), "--max-size=50kB", "--json")
    assert code == 0
    tally = json.loads(capsys.readouterr().out)
    assert tally["ended_by"] == "size"
    assert 10_000 < tape.stat().st_size <= 50_000
    index = files.index(tape)
    assert index is not None
    assert index.records == tally["records"] == len(list(files.records(tape)))


def test_of_a_session_all_is_kept_and_of_others_nothing(
    record_run: RecordRun, capsys: pytest.CaptureFixture[str]
) -> None:
    code, tape = record_run(packets("quiet.tape"), "--session=run1-t1-a", "--rounds=1")
    assert code == 0
    whole = letters(files.records(GOLDEN / "quiet.tape"))
    end = next(n for n, each in enumerate(whole) if b"round_finished" in each.body)
    frames = ("lan", "wan", "update")
    expected = [each for each in whole[:end] if each.first in frames and each.session == "run1-t1-a"]
    heard = letters(files.records(tape))
    found = [each for each in heard if each.first in frames]
    found.sort(key=lambda each: each.record.topic)  # MQTT promises an order within a topic only
    expected.sort(key=lambda each: each.record.topic)
    assert [each.body for each in found] == [each.body for each in expected] != []
    assert {each.first for each in heard} >= {"state", "assign", "adapter", "checkpoint", "events"}
    assert main(["inspect", str(tape), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert rows["sessions"]["run1-t1-a"]["frames"] == len(expected)
    assert rows["chunks"] == {"repeated": 0, "missing": 0}


def test_without_tensors_everything_else_is_there(
    record_run: RecordRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = packets("quiet.tape")
    secret = Packet(topic=f"{ROOT}notes/press", payload=b"who knows what this is", qos=1)
    code, tape = record_run([*said[:20], secret, *said[20:]], "--rounds=1", "--redact-tensors")
    assert code == 0
    assert files.header(tape).redacted
    end = next(n for n, each in enumerate(said) if b"round_finished" in each.payload)
    records = list(files.records(tape))
    assert [each.payload for each in records if each.topic == secret.topic] == [bytes(len(secret.payload))]
    assert [each.topic for each in records if each.topic != secret.topic] == [p.topic for p in said[: end + 1]]
    whole, redacted = letters(list(files.records(GOLDEN / "quiet.tape"))[: end + 1]), letters(records)
    for expected, got in zip(whole, redacted, strict=True):
        assert (got.kind, got.head, got.session) == (expected.kind, expected.head, expected.session)
        assert len(got.body) == len(expected.body)
        if expected.head is None:
            is_piece = expected.first in ("adapter", "checkpoint") and expected.words[-1].isdecimal()
            assert got.body == (bytes(len(expected.body)) if is_piece else expected.body)
            continue
        decode_content(got.body)
        for tensor in tensors_of(got, values=True):
            assert tensor.values is None or not np.any(tensor.values)
    capsys.readouterr()
    # It can be looked at, and is refused where its numbers would be needed.
    assert main(["inspect", str(tape)]) == 0
    assert "tensors replaced by zeros" in capsys.readouterr().out
    assert main(["replay", str(tape), "--against=edge", "--agent=edge-1"]) == 2
    assert "were replaced by zeros" in capsys.readouterr().err
