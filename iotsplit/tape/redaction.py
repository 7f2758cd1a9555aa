"""A tape that can be given away: zeros where tensors, labels and LoRA parameters were. Pure."""

from typing import Any

import msgpack
import msgspec

from iotsplit import chunks
from iotsplit.chunks import Head
from iotsplit.tape.format import Record
from iotsplit.tape.letters import Listener
from iotsplit.topics import Topics


class Redactor:
    """Replaces numbers by as many zeros; what is said when, by whom and how large stays.

    A frame is written when its last chunk has come: only then can be known what in it is a tensor. Its chunks
    then hold less, because zeros compress. What is below the root and not of the protocol is zeros from one
    end to the other.

    Args:
        topics: of the fleet.
    """

    def __init__(self, topics: Topics) -> None:
        self._listener = Listener(topics)
        self._root = topics.root

    def take(self, record: Record) -> list[Record]:
        """What is written of a record."""
        unreadable = self._listener.unreadable
        letter = self._listener.take(record)
        if letter is None:
            is_foreign = self._listener.unreadable > unreadable
            return [_with(record, bytes(len(record.payload)))] if is_foreign else []
        if letter.head is not None:
            try:
                return [_with(record, each) for each in _frame(letter.head, letter.body)]
            except (ValueError, msgpack.UnpackException):
                return [_with(record, bytes(len(record.payload)))]
        is_tensor = letter.first in ("adapter", "checkpoint") and letter.words[-1].isdecimal()
        return [_with(record, bytes(len(record.payload)))] if is_tensor or not letter.first else [record]


def _with(record: Record, payload: bytes) -> Record:
    return msgspec.structs.replace(record, payload=payload)


def _frame(head: Head, body: bytes) -> list[bytes]:
    content = _zeros(msgpack.unpackb(body, strict_map_key=True))
    return chunks.cut(msgpack.packb(content), head)


def _zeros(value: Any) -> Any:
    match value:
        case bytes():
            return bytes(len(value))
        case dict():
            return {key: _zeros(each) for key, each in value.items()}
        case list():
            return [_zeros(each) for each in value]
    return value
