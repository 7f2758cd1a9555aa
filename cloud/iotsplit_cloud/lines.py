"""Files of lines of JSON that a run adds to, whatever a full disk has left of their last one."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec


def continued(file: Path) -> IO[bytes]:
    """A file to add lines to, unbuffered; what a full disk has cut short stays a line of its own."""
    lines = file.open("a+b", buffering=0)
    size_bytes = lines.seek(0, os.SEEK_END)
    if size_bytes:
        lines.seek(size_bytes - 1)
        if lines.read(1) != b"\n":
            lines.write(b"\n")
    return lines


def objects(file: Path) -> Iterator[tuple[msgspec.Raw, dict[str, Any]]]:
    """The objects of a file of lines, also as they stand there; without what a full disk has cut short."""
    with file.open("rb") as lines:
        for line in lines:
            with contextlib.suppress(msgspec.DecodeError):
                yield msgspec.Raw(line.rstrip()), msgspec.json.decode(line, type=dict[str, Any])
