"""Facts that the cloud must not forget, in SQLite with a write-ahead log: inspectable, never half-written."""

import sqlite3
from pathlib import Path
from typing import TypeVar

import msgspec

from iotsplit.errors import RunFailedError, UsageError
from iotsplit.runtime.transactions import transaction

FORMAT = 2

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS checkpoints (
    file TEXT PRIMARY KEY, sha256 TEXT NOT NULL, value TEXT NOT NULL
) STRICT;
"""

FactT = TypeVar("FactT")


class Database:
    """Facts by name, and the checkpoints of the round at hand.

    Args:
        file: the database, made if missing.

    Raises:
        UsageError: it is damaged, or of another version of iotsplit.
        RunFailedError: it cannot be written.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            self._connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, FORMAT):
                raise self._refused(f"it has format {version}, this version of iotsplit writes {FORMAT}")
            self._connection.executescript(_SCHEMA)
            self._connection.execute(f"PRAGMA user_version = {FORMAT}")
        except sqlite3.OperationalError as error:
            raise self._unwritable(error) from None
        except sqlite3.DatabaseError as error:
            raise self._refused(str(error)) from None

    def fact(self, name: str, kind: type[FactT]) -> FactT | None:
        """A fact; None if it was never written.

        Raises:
            UsageError: it cannot be read.
        """
        row = self._connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else self._decode(row[0], kind)

    def checkpoints(self, kind: type[FactT]) -> list[tuple[str, str, FactT]]:
        """File, digest and description of each checkpoint.

        Raises:
            UsageError: one cannot be read.
        """
        rows = self._connection.execute("SELECT file, sha256, value FROM checkpoints ORDER BY file").fetchall()
        return [(file, digest, self._decode(value, kind)) for file, digest, value in rows]

    def write(self, facts: dict[str, object | None], *, forget_checkpoints: bool = False) -> None:
        """Write facts at once: all of them or none; None removes one.

        Raises:
            RunFailedError: the disk is full or cannot be written.
        """
        statements: list[tuple[str, tuple[str, ...]]] = []
        if forget_checkpoints:
            statements.append(("DELETE FROM checkpoints", ()))
        for name, value in facts.items():
            if value is None:
                statements.append(("DELETE FROM facts WHERE name = ?", (name,)))
            else:
                text = msgspec.json.encode(value).decode()
                statements.append(("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, text)))
        self._run(statements)

    def add_checkpoint(self, file: str, digest: str, value: object, *, remove: list[str]) -> None:
        """Enter a checkpoint whose file is on the disk, and take others out.

        Raises:
            RunFailedError: the disk is full or cannot be written.
        """
        text = msgspec.json.encode(value).decode()
        added = ("INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?)", (file, digest, text))
        self._run([added, *(("DELETE FROM checkpoints WHERE file = ?", (old,)) for old in remove)])

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _run(self, statements: list[tuple[str, tuple[str, ...]]]) -> None:
        try:
            with transaction(self._connection):
                for statement, values in statements:
                    self._connection.execute(statement, values)
        except sqlite3.Error as error:
            raise self._unwritable(error) from None

    def _decode(self, text: str, kind: type[FactT]) -> FactT:
        try:
            return msgspec.json.decode(text, type=kind)
        except msgspec.DecodeError as error:
            raise self._refused(str(error)) from None

    def _refused(self, reason: str) -> UsageError:
        return UsageError(
            f"{self._file} cannot be gone on with: {reason}", fix="choose another --output, or --fresh"
        )

    def _unwritable(self, error: sqlite3.Error) -> RunFailedError:
        return RunFailedError(
            f"cannot write {self._file}: {error}", fix="free space there or choose another --output"
        )
