"""What is left of a frame on a tape that is given away: nothing that was computed or read."""

from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from iotsplit import chunks
from iotsplit.mailbox import Mailbox
from iotsplit.messages import Contents
from iotsplit.tape.format import Record
from iotsplit.tape.redaction import Redactor
from iotsplit.topics import Topics
from tests.unit.core.samples import CONTENTS, frame

TOPICS = Topics("test")


def secrets(value: Any) -> Iterator[bytes]:
    """All bytes in a message, in order."""
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from secrets(each)


def body_of(payload: bytes) -> Any:
    assembler = chunks.Assembler(max_message_bytes=1 << 20, max_open_bytes=1 << 20)
    body = assembler.add("topic", chunks.read(payload))
    assert body is not None
    return msgpack.unpackb(body)


@pytest.mark.parametrize("content", CONTENTS, ids=lambda each: type(each).__name__)
def test_all_bytes_of_every_kind_of_frame_are_zeros(content: Contents) -> None:
    (packet,) = Mailbox(TOPICS, "d1").outgoing(frame(content))
    (kept,) = Redactor(TOPICS).take(Record(1, 1, packet.topic, packet.payload, 1))
    before, after = body_of(packet.payload), body_of(kept.payload)
    assert list(secrets(after)) == [bytes(len(each)) for each in secrets(before)]
    assert before.keys() == after.keys()
