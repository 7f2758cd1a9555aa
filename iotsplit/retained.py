"""Adapter versions and checkpoints as retained messages: chunks, the head last, fetched in small windows.

MQTT keeps one retained message per topic, so every chunk has a topic of its own. Some brokers silently
drop retained messages beyond a hundred per subscription, so a reader asks for a few explicit topics at a time.
"""

import hashlib
from collections.abc import Mapping
from itertools import islice
from typing import Any

from iotsplit.errors import MalformedMessageError
from iotsplit.messages import Message
from iotsplit.states import (
    CHECKPOINT_SLOTS,
    AdapterChunk,
    AdapterHead,
    AdapterSection,
    CheckpointChunk,
    CheckpointHead,
    Forget,
    encode_state,
)

WINDOW = 32
MAX_SECTION_BYTES = 1 << 30
LOOK_S = 5.0
"""How long a broker may take to say again what it has kept."""
AGAIN_S = 4.0
"""How long nothing may come of what is retained before it is subscribed to anew."""


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
        pieces = _cut(body, chunk_bytes)
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


def cut_checkpoint(
    body: bytes, *, place: tuple[str, str, int, int], every: int, tokens: int, chunk_bytes: int
) -> tuple[list[CheckpointChunk], CheckpointHead]:
    """Cut an edge's checkpoint into chunks, and make the head that is published after them.

    Args:
        body: what was saved.
        place: device, session, epoch and step.
        every: steps between two checkpoints.
        tokens: loss tokens trained so far.
        chunk_bytes: largest chunk.
    """
    device, session, epoch, step = place
    pieces = _cut(body, chunk_bytes)
    head = CheckpointHead(
        device=device,
        session=session,
        epoch=epoch,
        step=step,
        slot=step // every % CHECKPOINT_SLOTS,
        tokens=tokens,
        chunks=len(pieces),
        size_bytes=len(body),
        sha256=hashlib.sha256(body).hexdigest(),
    )
    chunks = [
        CheckpointChunk(device=device, name=head.name, index=index, data=piece)
        for index, piece in enumerate(pieces)
    ]
    return chunks, head


def clear_checkpoint(head: CheckpointHead) -> list[Message]:
    """What clears a checkpoint from the broker, the head first."""
    return [Forget(path=f"{head.path}/head"), *(Forget(path=f"{head.path}/{i}") for i in range(head.chunks))]


def _cut(body: bytes, chunk_bytes: int) -> list[bytes]:
    return [body[at : at + chunk_bytes] for at in range(0, len(body), chunk_bytes)] or [b""]


class Pieces:
    """Chunks on their way to becoming one body.

    Args:
        path: their place below the root; a chunk's index is the word behind it.
        indices: of all of them.
        size_bytes: of the body.
        sha256: of the body.
    """

    def __init__(self, path: str, indices: range, *, size_bytes: int, sha256: str) -> None:
        self._path, self._indices, self._size_bytes, self._sha256 = path, indices, size_bytes, sha256
        self._have: dict[int, bytes] = {}
        self._held_bytes = 0

    @property
    def interests(self) -> frozenset[str]:
        """Topics below the root to be subscribed to now."""
        missing = (index for index in self._indices if index not in self._have)
        return frozenset(f"{self._path}/{index}" for index in islice(missing, WINDOW))

    def add(self, index: int, data: bytes) -> bytes | None:
        """Take a chunk; gives the body when it is whole.

        Raises:
            MalformedMessageError: the chunks do not match their digest.
        """
        if index in self._indices:
            self._held_bytes += len(data) - len(self._have.get(index, b""))
            self._have[index] = data
        if self._held_bytes > self._size_bytes:
            raise MalformedMessageError(f"{self._path} is larger than its head says")
        if len(self._have) < len(self._indices):
            return None
        body = b"".join(self._have[index] for index in self._indices)
        if hashlib.sha256(body).hexdigest() != self._sha256:
            raise MalformedMessageError(f"{self._path} does not match its digest")
        return body


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
        self._pieces: Pieces | None = None

    @property
    def interests(self) -> frozenset[str]:
        """Topics below the root to be subscribed to now; none when the section is whole."""
        if self.body is not None:
            return frozenset()
        if self._pieces is None:
            return frozenset({f"adapter/{self.version}/head"})
        return self._pieces.interests

    def add(self, message: AdapterHead | AdapterChunk) -> bool:
        """Take a head or chunk; true when the section has become whole.

        Raises:
            MalformedMessageError: a head without the section, or pieces that do not match their digest;
                head and pieces are forgotten and asked for again.
        """
        if message.version != self.version or self.body is not None:
            return False
        if isinstance(message, AdapterHead):
            self._take_head(message)
        elif self._pieces is not None:
            self._take_chunk(self._pieces, message)
        return self.body is not None

    def _take_head(self, head: AdapterHead) -> None:
        if self._expected is not None and digest(head) != self._expected:
            return
        place = head.sections.get(self.section)
        if place is None or not 0 < place.chunks <= place.size_bytes + 1 <= MAX_SECTION_BYTES:
            raise MalformedMessageError(f"adapter version {head.version} has no usable section {self.section}")
        if self.head != head:
            indices = range(place.first, place.first + place.chunks)
            self.head = head
            self._pieces = Pieces(
                f"adapter/{self.version}", indices, size_bytes=place.size_bytes, sha256=place.sha256
            )

    def _take_chunk(self, pieces: Pieces, chunk: AdapterChunk) -> None:
        try:
            self.body = pieces.add(chunk.index, chunk.data)
        except MalformedMessageError:
            # With the head too: brokers send again only what is subscribed to anew.
            self.head = self._pieces = None
            raise MalformedMessageError(
                f"adapter version {self.version}: {self.section} does not match its digest"
            ) from None


class Again:
    """Lets a subscription rest for a moment when nothing has come of it for a while.

    Brokers say what they have kept once for each subscription; on the way it may be lost like anything else.
    """

    def __init__(self) -> None:
        self.resting = False
        self.due = float("inf")

    def begin(self, now: float) -> None:
        """Something is subscribed to, or something has come of it."""
        self.resting, self.due = False, now + AGAIN_S

    def end(self) -> None:
        """Nothing is waited for any more."""
        self.resting, self.due = False, float("inf")

    def tick(self, now: float) -> None:
        """Rest when it is time, and wake at the next tick."""
        if now >= self.due:
            self.resting = not self.resting
            self.due = now if self.resting else now + AGAIN_S


class Shelf:
    """Looks after a reconnect whether the broker still has what an agent answers for.

    A broker that was restarted may have forgotten everything, or the last seconds. The agent looks for its
    heads; what has not come after a while it says again.
    """

    def __init__(self) -> None:
        self._doubted: dict[str, Message] = {}
        self.next_due = float("inf")

    def look(self, heads: Mapping[str, Message], now: float) -> None:
        """Begin to look for these heads, by their paths."""
        self._doubted = dict(heads)
        self.next_due = now + LOOK_S if self._doubted else float("inf")

    def seen(self, head_path: str, head: Message) -> None:
        """A head that the broker has kept; an older one in its place will be replaced."""
        if self._doubted.get(head_path) == head:
            del self._doubted[head_path]

    @property
    def interests(self) -> frozenset[str]:
        """Heads that are looked for."""
        return frozenset(self._doubted)

    def lost(self, now: float) -> list[str]:
        """Heads that the broker has lost, once the time to look is over."""
        if now < self.next_due:
            return []
        missing, self._doubted = sorted(self._doubted), {}
        self.next_due = float("inf")
        return missing
