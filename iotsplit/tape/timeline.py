"""A page that shows who said what when."""

from pathlib import Path

from iotsplit.tape.format import Record
from iotsplit.tape.letters import Letter


class Timeline:
    """Gathers bars."""

    def record(self, record: Record, first: str, letter: Letter | None) -> None:
        """Take a record."""

    def write(self, path: Path) -> None:
        """Write the page."""
