"""Tapes as files and pipes: read in pieces, written so that nothing that is there is ever lost."""

import itertools
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from iotsplit import __version__
from iotsplit.errors import UsageError
from iotsplit.runtime import clock
from iotsplit.runtime.files import writing
from iotsplit.tape import format as tape_format
from iotsplit.tape.format import Damage, Decoder, Encoder, Header, Item, Record
from iotsplit.tape.places import Index, Place, Survey

PIPE = "-"
"""Stands for stdin or stdout instead of a file."""
PIECE_BYTES = 1 << 20
SYNC_EVERY_S = 5.0
FREE = "free space there or choose another place for the tape"

Tell = Callable[[str], None]


def tell_nobody(line: str) -> None:
    """Says nothing."""
    del line


class TapeWriter:
    """Writes a tape. A file that is there is never overwritten.

    Args:
        path: of the tape, or ``-`` for stdout.
        header: what the tape says of itself.
        sync: see blocks on the disk every few seconds, so that a power cut takes no more than those.

    Raises:
        UsageError: there is a file of that name.
        RunFailedError: it cannot be written.
    """

    def __init__(self, path: Path, header: Header, *, sync: bool = False) -> None:
        self.path = path
        self.encoder = Encoder()
        self._synced_at = clock.now()
        self._out = _create(path)
        self._sync = sync and stat.S_ISREG(os.fstat(self._out.fileno()).st_mode)  # a pipe cannot be
        self._write(self.encoder.begin(header))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, record: Record) -> None:
        """Write a record; it may wait for others to make a block with."""
        self._write(self.encoder.add(record))

    def flush(self) -> None:
        """Write what waits."""
        self._write(self.encoder.flush())

    def close(self) -> None:
        """Write what waits and the index."""
        if self._out.closed:
            return
        with writing(self.path, fix=FREE):
            self._write(self.encoder.end())
            if str(self.path) != PIPE:
                self._out.close()

    def _write(self, data: bytes) -> None:
        if not data:
            return
        with writing(self.path, fix=FREE):
            self._out.write(data)
            self._out.flush()
            if self._sync and clock.now() - self._synced_at > SYNC_EVERY_S:
                self._synced_at = clock.now()
                os.fsync(self._out.fileno())


def _create(path: Path) -> BinaryIO:
    if str(path) == PIPE:
        if sys.stdout.isatty():
            raise UsageError("a tape is not text for a terminal", fix="name a file, or send it into a pipe")
        return sys.stdout.buffer
    with writing(path, fix=FREE):
        try:
            return path.open("xb")
        except FileExistsError:
            raise UsageError(f"{path} exists already", fix="choose another name, or remove it") from None


def new_header(
    *, filters: tuple[str, ...] = (), fleet: str = "", prefix: str = "", redacted: bool = False
) -> Header:
    """The header of a tape that begins now."""
    return Header(
        made_by=f"iotsplit {__version__}",
        created_ns=clock.wall_ns(),
        filters=filters,
        fleet=fleet,
        prefix=prefix,
        redacted=redacted,
    )


def items(path: Path, *, offset: int = 0) -> Iterator[tuple[int, Item]]:
    """Everything in a tape, in order, with the offset of its block.

    Args:
        path: of the tape, or ``-`` for stdin.
        offset: of a block to begin with.

    Raises:
        UsageError: it cannot be read, or is no tape.
        MismatchError: a tape of another version of the format.
    """
    decoder = Decoder("stdin" if str(path) == PIPE else str(path), offset=offset)
    source = _open(path)
    try:
        if offset:
            source.seek(min(offset, source.seek(0, os.SEEK_END)))
        while data := source.read(PIECE_BYTES):
            yield from decoder.feed(data)
        yield from decoder.end()
    except OSError as error:
        raise _unreadable(path, error) from None
    finally:
        if str(path) != PIPE:
            source.close()


def records(path: Path, *, tell: Tell = tell_nobody) -> Iterator[Record]:
    """The records of a tape, in order.

    Args:
        path: of the tape, or ``-`` for stdin.
        tell: told of each place that is damaged.

    Raises:
        UsageError: it cannot be read, or is no tape.
        MismatchError: a tape of another version of the format.
    """
    yield from rest(items(path), path, tell=tell)


def begin(path: Path) -> tuple[Header, Iterator[tuple[int, Item]]]:
    """What a tape says of itself, and everything in it; an empty header if that place is damaged.

    Raises:
        UsageError: it cannot be read, or is no tape.
        MismatchError: a tape of another version of the format.
    """
    source = items(path)
    taken = []
    for at, item in source:
        taken.append((at, item))
        if not isinstance(item, Damage):
            break
    first = taken[-1][1] if taken else None
    return first if isinstance(first, Header) else Header(), itertools.chain(taken, source)


def rest(source: Iterable[tuple[int, Item]], path: Path, *, tell: Tell = tell_nobody) -> Iterator[Record]:
    """The records among what is still to be read of a tape."""
    for _, item in source:
        if isinstance(item, Record):
            yield item
        elif isinstance(item, Damage):
            tell(explain(path, item))


def explain(path: Path, damage: Damage) -> str:
    """A damaged place, in words."""
    where = f"{path}: {damage.size_bytes} bytes at offset {damage.offset}"
    if damage.at_end:
        return f"{where} are torn and left out (it is still being written, or was cut off)"
    return f"{where} are damaged and were passed over"


def header(path: Path) -> Header:
    """What a tape says of itself; an empty header if that place is damaged.

    Raises:
        UsageError: it cannot be read, or is no tape.
        MismatchError: a tape of another version of the format.
    """
    return begin(path)[0]


def index(path: Path) -> Index | None:
    """The index at the end of a tape; None if it has none, or one that does not lie where its end says.

    Raises:
        UsageError: it cannot be read.
    """
    if str(path) == PIPE:
        return None
    with _open(path) as source:
        try:
            source.seek(max(0, source.seek(0, os.SEEK_END) - tape_format.END_BYTES))
            at = tape_format.index_offset(source.read())
        except OSError as error:
            raise _unreadable(path, error) from None
    found = next(items(path, offset=at), None) if at else None
    return found[1] if found is not None and found[0] == at and isinstance(found[1], Index) else None


def items_from(path: Path, place: Place) -> Iterator[tuple[int, Item]] | None:
    """What is in a tape from a place of its index on; None if that place is not what the index says.

    Raises:
        UsageError: it cannot be read.
    """
    if place.offset <= 0:
        return None
    found = items(path, offset=place.offset)
    first = next(found, None)
    if first is None or first[0] != place.offset:
        return None
    if not isinstance(first[1], Record) or first[1].mono_ns != place.mono_ns:
        return None
    return itertools.chain([first], found)


def rebuild_index(path: Path, *, tell: Tell = tell_nobody) -> Index:
    """Read a whole tape and write an index behind it; what is there stays as it is.

    Raises:
        UsageError: it cannot be read, or is no tape.
        RunFailedError: it cannot be written.
    """
    survey = Survey()
    for at, item in items(path):
        if isinstance(item, Header):
            survey = tape_format.survey_of(item)
        elif isinstance(item, Record):
            survey.note(at, item.mono_ns, item.topic, item.payload)
        elif isinstance(item, Damage):
            tell(explain(path, item))
    with writing(path, fix=FREE), path.open("ab") as out:
        out.write(tape_format.index_blocks(survey.index(), out.tell()))
    return survey.index()


def _open(path: Path) -> BinaryIO:
    if str(path) == PIPE:
        return sys.stdin.buffer
    try:
        return path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"tape {path} cannot be read: {error.strerror or error}", fix="check the path")
