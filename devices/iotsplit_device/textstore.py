"""Texts of a device, in SQLite with a write-ahead log: each once, bounded, never half-written."""

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from iotsplit.errors import RunFailedError, UsageError
from iotsplit.runtime.transactions import transaction
from iotsplit_device.texts import digest

FORMAT = 1
SET_S = 1e9
"""Times of day before it, in seconds, are of a board without a clock that was not told the time yet."""
ROW_BYTES = 128
"""What a row costs beside its text."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS texts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    sha256 BLOB NOT NULL UNIQUE,
    text TEXT NOT NULL,
    size INTEGER NOT NULL,
    received REAL NOT NULL
) STRICT;
"""


class TextStore:
    """Texts in the order in which they came first; one thread at a time.

    Args:
        file: the database, made with its folder if missing.
        max_bytes: most bytes of all texts and their rows; the oldest make room for new ones.
        keep_s: seconds after which a text is dropped.
        least: so many are kept, however old.

    Raises:
        UsageError: the file is damaged, or of another version of iotsplit.
        RunFailedError: it cannot be written.
    """

    def __init__(self, file: Path, *, max_bytes: int, keep_s: float, least: int) -> None:
        self._file = file
        self._max_bytes, self._keep_s, self._least = max_bytes, keep_s, least
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode = WAL")
            # A power cut may cost the last texts, never the file; a memory card is spared a sync for each.
            self._connection.execute("PRAGMA synchronous = NORMAL")
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, FORMAT):
                raise self._refused(f"it has format {version}, this version of iotsplit writes {FORMAT}")
            self._connection.executescript(_SCHEMA)
            self._connection.execute(f"PRAGMA user_version = {FORMAT}")
        except (sqlite3.OperationalError, OSError) as error:
            raise self._unwritable(error) from None
        except sqlite3.DatabaseError as error:
            raise self._refused(str(error)) from None

    def __len__(self) -> int:
        return int(self._read("SELECT COUNT(*) FROM texts")[0])

    @property
    def size_bytes(self) -> int:
        """Bytes of all texts and their rows."""
        return int(self._read("SELECT COALESCE(SUM(size), 0) FROM texts")[0])

    def texts(self) -> list[str]:
        """All texts, the oldest first.

        Raises:
            UsageError: the file is damaged.
        """
        return self._read("SELECT text FROM texts ORDER BY id")

    def add(self, texts: Sequence[str], now: float) -> int:
        """Take texts, all or none, and let go what is too old or too much.

        Args:
            texts: in their normal form.
            now: the time of day in seconds.

        Returns:
            How many of them were new.

        Raises:
            RunFailedError: the disk is full or cannot be written.
            UsageError: the file is damaged.
        """
        rows = []
        for text in texts:
            size = len(text.encode()) + ROW_BYTES
            if size <= self._max_bytes:
                rows.append((digest(text), text, size, now))
        with self._transaction() as run:
            added = run.executemany(
                "INSERT OR IGNORE INTO texts (sha256, text, size, received) VALUES (?, ?, ?, ?)", rows
            ).rowcount
            if now >= SET_S:
                run.execute("UPDATE texts SET received = ? WHERE received < ?", (now, SET_S))
            run.execute(
                "DELETE FROM texts WHERE received < ? "
                "AND id NOT IN (SELECT id FROM texts ORDER BY id DESC LIMIT ?)",
                (now - self._keep_s, self._least),
            )
            self._make_room(run)
        return max(0, added)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _make_room(self, run: sqlite3.Cursor) -> None:
        over = self.size_bytes - self._max_bytes
        while over > 0:
            oldest, size = run.execute("SELECT id, size FROM texts ORDER BY id LIMIT 1").fetchone()
            run.execute("DELETE FROM texts WHERE id = ?", (oldest,))
            over -= size

    def _read(self, query: str) -> list[Any]:
        """The first column."""
        try:
            return [row[0] for row in self._connection.execute(query)]
        except sqlite3.Error as error:
            raise self._refused(str(error)) from None

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Cursor]:
        try:
            with contextlib.closing(self._connection.cursor()) as run, transaction(self._connection):
                yield run
        except sqlite3.Error as error:
            raise self._unwritable(error) from None

    def _refused(self, reason: str) -> UsageError:
        return UsageError(
            f"{self._file} cannot be gone on with: {reason}",
            fix="remove it (texts are gathered anew) or choose another --state-dir",
        )

    def _unwritable(self, error: Exception) -> RunFailedError:
        return RunFailedError(
            f"cannot write {self._file}: {error}", fix="free space there or choose another --state-dir"
        )
