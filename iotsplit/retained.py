"""Adapter versions as retained messages: sections of chunks, the head last, fetched in small windows.

MQTT keeps one retained message per topic, so every chunk has a topic of its own. Some brokers silently
drop retained messages beyond a hundred per subscription, so a reader asks for a few explicit topics at a time.
"""

import hashlib
from collections.abc import Mapping
from itertools import islice
from typing import Any

from iotsplit.errors import MalformedMessageError
from iotsplit.messages import AdapterChunk, AdapterHead, AdapterSection, encode_state

WINDOW = 32
MAX_SECTION_BYTES = 1 << 30


def cut_version(
    sections: Mapping[str, bytes],
    *,
    version: int,
    round_: int,
    model: str,
    peft: dict[str, Any],
    chunk_bytes: int,
) -> tuple[list[AdapterChunk], AdapterHead]:
    """Cut a version's sections into chunks, and make the head that is published after them."""
    chunks: list[AdapterChunk] = []
    table = {}
    for name, body in sections.items():
        pieces = [body[at : at + chunk_bytes] for at in range(0, len(body), chunk_bytes)] or [b""]
        table[name] = AdapterSection(
            first=len(chunks),
            chunks=len(pieces),
            size_bytes=len(body),
            sha256=hashlib.sha256(body).hexdigest(),
        )
        chunks += [
            AdapterChunk(version=version, index=len(chunks) + offset, data=piece)
            for offset, piece in enumerate(pieces)
        ]
    head = AdapterHead(version=version, round=round_, model=model, sections=table, peft=peft)
    return chunks, head


def digest(head: AdapterHead) -> str:
    """What an assignment names a version by: two fleets' version 3 are not the same."""
    return hashlib.sha256(encode_state(head)).hexdigest()


class Fetch:
    """One reader's way through one section of a version: says which topics it needs now.

    Args:
        version: the version's number.
        section: name of the section.
        expected: digest of the head, if known; any other head is ignored.
    """

    def __init__(self, version: int, section: str, *, expected: str | None = None) -> None:
        self.version = version
        self.section = section
        self.head: AdapterHead | None = None
        self.body: bytes | None = None
        self._expected = expected
        self._pieces: dict[int, bytes] = {}

    @property
    def interests(self) -> frozenset[str]:
        """Topics below the root to be subscribed to now; none when the section is whole."""
        if self.body is not None:
            return frozenset()
        if self.head is None:
            return frozenset({f"adapter/{self.version}/head"})
        place = self.head.sections[self.section]
        missing = (i for i in range(place.first, place.first + place.chunks) if i not in self._pieces)
        return frozenset(f"adapter/{self.version}/{index}" for index in islice(missing, WINDOW))

    def add(self, message: AdapterHead | AdapterChunk) -> bool:
        """Take a head or chunk; true when the section has become whole.

        Raises:
            MalformedMessageError: a head without the section, or pieces that do not match their digest;
                head and pieces are forgotten and asked for again.
        """
        if message.version != self.version or self.body is not None:
            return False
        if isinstance(message, AdapterHead):
            return self._take_head(message)
        if self.head is None:
            return False
        place = self.head.sections[self.section]
        if place.first <= message.index < place.first + place.chunks:
            self._pieces[message.index] = message.data
        return len(self._pieces) == place.chunks and self._join(place)

    def _take_head(self, head: AdapterHead) -> bool:
        if self._expected is not None and digest(head) != self._expected:
            return False
        place = head.sections.get(self.section)
        if place is None or not 0 < place.chunks <= place.size_bytes + 1 <= MAX_SECTION_BYTES:
            raise MalformedMessageError(f"adapter version {head.version} has no usable section {self.section}")
        if self.head != head:
            self.head, self._pieces = head, {}
        return False

    def _join(self, place: AdapterSection) -> bool:
        body = b"".join(self._pieces[index] for index in sorted(self._pieces))
        if hashlib.sha256(body).hexdigest() != place.sha256:
            # With the head too: brokers send again only what is subscribed to anew.
            self.head, self._pieces = None, {}
            raise MalformedMessageError(
                f"adapter version {self.version}: {self.section} does not match its digest"
            )
        self.body = body
        return True
