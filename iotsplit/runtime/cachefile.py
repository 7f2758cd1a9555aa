"""What is remembered of samples, on disk: all of a change is written or none of it."""

import errno
import sqlite3
import zlib
from pathlib import Path

import structlog

from iotsplit.cache import NOWHERE, CacheChange, Place, Row
from iotsplit.runtime.transactions import transaction

log = structlog.get_logger()

_SCHEMA = """
CREATE TABLE IF NOT EXISTS owners (owner TEXT PRIMARY KEY, base TEXT NOT NULL, session TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS samples (
    owner TEXT NOT NULL, sample INTEGER NOT NULL, digest BLOB NOT NULL, data BLOB NOT NULL,
    crc32 INTEGER NOT NULL, PRIMARY KEY (owner, sample)
) STRICT;
CREATE TABLE IF NOT EXISTS waiting (
    owner TEXT NOT NULL, session TEXT NOT NULL, step INTEGER NOT NULL, micro_batch INTEGER NOT NULL,
    place INTEGER NOT NULL, sample INTEGER NOT NULL, digest BLOB NOT NULL, data BLOB NOT NULL,
    crc32 INTEGER NOT NULL, PRIMARY KEY (owner, session, step, micro_batch, place)
) STRICT;
"""


class CacheFile:
    """Caches by their owners; safe to delete at the price of sending everything whole once.

    Args:
        file: the database, made when something is written. One that is damaged is begun anew.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._opened: sqlite3.Connection | None = None

    def load(self) -> dict[str, CacheChange]:
        """What was written, by owner."""
        if not self._file.exists():
            return {}
        try:
            return {owner: self._of(owner, base, session) for owner, base, session in self._owners()}
        except sqlite3.DatabaseError as error:
            log.warning("a cache is damaged and is begun anew", file=str(self._file), reason=str(error))
            self.close()
            self._file.unlink()
            return {}

    def take(self, change: CacheChange) -> None:
        """Write a change: when this returns it is on the disk.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        owner = change.owner
        try:
            with transaction(self._connection):
                run = self._connection.execute
                many = self._connection.executemany
                if change.emptied:
                    run("DELETE FROM samples WHERE owner = ?", (owner,))
                if change.is_last:
                    run("DELETE FROM owners WHERE owner = ?", (owner,))
                else:
                    run("INSERT OR REPLACE INTO owners VALUES (?, ?, ?)", (owner, change.base, change.session))
                run(
                    "DELETE FROM waiting WHERE owner = ? AND (? OR session <> ?)",
                    (owner, change.is_last, change.session),
                )
                many(
                    "DELETE FROM samples WHERE owner = ? AND sample = ?",
                    [(owner, each) for each in change.gone],
                )
                many(
                    "INSERT OR REPLACE INTO samples VALUES (?, ?, ?, ?, ?)",
                    [(owner, *_columns(row)) for row in change.rows],
                )
                many(
                    "INSERT OR REPLACE INTO waiting VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    [(owner, change.session, *row.place, *_columns(row)) for row in change.waiting],
                )
        except sqlite3.Error as error:
            raise OSError(errno.EIO, str(error), str(self._file)) from None

    def close(self) -> None:
        """Close the file."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._opened is None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._opened = sqlite3.connect(self._file, isolation_level=None, check_same_thread=False)
            self._opened.execute("PRAGMA journal_mode = WAL")
            self._opened.execute("PRAGMA synchronous = FULL")
            self._opened.executescript(_SCHEMA)
        return self._opened

    def _owners(self) -> list[tuple[str, str, str]]:
        return self._connection.execute("SELECT owner, base, session FROM owners").fetchall()

    def _of(self, owner: str, base: str, session: str) -> CacheChange:
        rows = self._connection.execute(
            "SELECT sample, digest, data, crc32 FROM samples WHERE owner = ?", (owner,)
        )
        waiting = self._connection.execute(
            "SELECT step, micro_batch, place, sample, digest, data, crc32 FROM waiting WHERE owner = ?",
            (owner,),
        )
        return CacheChange(
            owner=owner,
            base=base,
            session=session,
            emptied=False,
            rows=tuple(_row(NOWHERE, *columns) for columns in rows),
            waiting=tuple(_row((step, micro, place), *columns) for step, micro, place, *columns in waiting),
        )


def _columns(row: Row) -> tuple[int, bytes, bytes, int]:
    return row.sample, row.digest, row.data, zlib.crc32(row.data)


def _row(place: Place, sample: int, digest: bytes, data: bytes, crc32: int) -> Row:
    if zlib.crc32(data) != crc32:  # SQLite would not see it
        raise sqlite3.DatabaseError(f"the row of sample {sample} is damaged")
    return Row(sample=sample, place=place, digest=digest, data=data)
