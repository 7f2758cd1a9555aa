"""What a device with a tap learns from in a round: a file that stays as it is until the next round."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import structlog

from iotsplit.datasets.records import Record, read, to_jsonl
from iotsplit.runtime.files import read_checked, replace, sha256, writing

FORMAT = 1

log = structlog.get_logger()


class _Manifest(msgspec.Struct, kw_only=True):
    format: int = FORMAT
    key: str
    sha256: str


class Snapshot:
    """Records in a ``.jsonl`` file, fixed for as long as they are asked for by the same key.

    Args:
        directory: made when something is fixed.
    """

    def __init__(self, directory: Path) -> None:
        self.file = directory / "snapshot.jsonl"
        self._manifest_file = directory / "snapshot.json"
        self._manifest = self._read()

    @property
    def digest(self) -> str:
        """SHA-256 of the records; empty if nothing was fixed."""
        return "" if self._manifest is None else self._manifest.sha256

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to learn from."""
        return self.digest in ("", sha256(b""))

    def records(self) -> list[Record]:
        """What was fixed."""
        return [] if self.is_empty else read(self.file)

    def fix(self, key: str, records: Callable[[], Sequence[Record]]) -> bool:
        """Have records for a key: those that were fixed for it before, also before a restart, or new ones.

        Returns:
            Whether they are new.

        Raises:
            RunFailedError: the disk is full or cannot be written.
        """
        if self._manifest is not None and self._manifest.key == key:
            return False
        body = to_jsonl(records())
        manifest = _Manifest(key=key, sha256=sha256(body))
        with writing(self.file.parent, fix="free space there or choose another --state-dir"):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            new = manifest.sha256 != self.digest
            if new:
                replace(self.file, body)
            # Only now: a manifest never names records that are not there.
            replace(self._manifest_file, msgspec.json.encode(manifest))
        self._manifest = manifest
        return new

    def _read(self) -> _Manifest | None:
        if not self._manifest_file.exists():
            return None
        try:
            manifest = msgspec.json.decode(self._manifest_file.read_bytes(), type=_Manifest)
        except (msgspec.DecodeError, OSError) as error:
            log.warning("a snapshot cannot be read and is made anew", reason=str(error))
            return None
        if manifest.format != FORMAT or read_checked(self.file, manifest.sha256) is None:
            log.warning("a snapshot is not what was written and is made anew", file=str(self.file))
            return None
        return manifest
