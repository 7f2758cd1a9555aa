"""Files that survive a power cut: replaced as a whole, seen on the disk, checked when they are read."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from iotsplit.errors import RunFailedError


def replace(file: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Replace a file as a whole, and see it on the disk: a power cut leaves the old one or the new one.

    Args:
        file: what is replaced, or made.
        content: what it will hold.
        mode: who may read and write it, less the process's umask.
    """
    draft = file.with_name(f".{file.name}.new")
    draft.unlink(missing_ok=True)  # its mode may be another
    with open(draft, "wb", opener=lambda path, flags: os.open(path, flags, mode)) as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    draft.replace(file)
    directory = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def sha256(content: bytes) -> str:
    """Digest of a file's content."""
    return hashlib.sha256(content).hexdigest()


def read_checked(file: Path, digest: str) -> bytes | None:
    """A file's content, or None if it is not there or not what was written."""
    with contextlib.suppress(OSError):
        content = file.read_bytes()
        if sha256(content) == digest:
            return content
    return None


FREE_OUTPUT = "free space there or choose another --output"


@contextlib.contextmanager
def writing(place: Path, *, fix: str = FREE_OUTPUT) -> Iterator[None]:
    """Turn errors of the disk into one clear line.

    Raises:
        RunFailedError: something could not be written.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # who reads our output is gone: that is no matter of the disk
    except OSError as error:
        raise RunFailedError(
            f"cannot write {error.filename or place}: {error.strerror or error}", fix=fix
        ) from None
