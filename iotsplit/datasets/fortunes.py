"""Debian's fortune cookies, read in place where the package is installed."""

import re
from pathlib import Path

from iotsplit.datasets.records import Record, Text
from iotsplit.errors import UsageError

FOLDER = Path("/usr/share/games/fortunes")


def groups(devices: int, seed: int) -> dict[str, list[Record]]:  # noqa: ARG001 - a fixed text
    """The largest categories, one for each device, each fortune a text.

    Raises:
        UsageError: fortunes are not installed, or cannot be read.
    """
    try:
        # The .dat files are indexes, the .u8 files links to the texts beside them.
        files = [file for file in FOLDER.iterdir() if file.is_file() and not file.suffix]
        largest = sorted(files, key=lambda file: (-file.stat().st_size, file.name))[:devices]
        return {file.name: _fortunes(file) for file in sorted(largest)}
    except FileNotFoundError:
        raise UsageError(
            f"fortunes are not installed: {FOLDER} does not exist",
            fix="install them (sudo apt install fortunes) or choose other data",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{FOLDER} cannot be read ({error})", fix="install the package fortunes again"
        ) from None


def _fortunes(file: Path) -> list[Record]:
    pieces = re.split(r"^%$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [Text(piece.strip("\n")) for piece in pieces if piece.strip()]
