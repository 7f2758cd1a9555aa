"""The device's disk: its last three checkpoints, each a body of safetensors and a manifest with its digest.

Beside them is what its edge remembers of its samples, if the fleet has it so.
"""

from pathlib import Path

import msgspec
import structlog

from iotsplit.cache import CacheChange
from iotsplit.errors import UsageError
from iotsplit.role import Local
from iotsplit.runtime.cachefile import CacheFile
from iotsplit.runtime.files import read_checked, replace, sha256, writing
from iotsplit.states import Event, Metrics
from iotsplit_device.records import Checkpoint, Unusable

FORMAT = 1
KEPT = 3
"""Two that count; three with a checkpoint before each step."""

log = structlog.get_logger()


class _Manifest(msgspec.Struct, kw_only=True):
    format: int = FORMAT
    model: str
    session: str
    step: int
    tokens: int
    sha256: str


class DeviceStore:
    """Keeps checkpoints in a directory; safe to delete at the price of repeating the round.

    Args:
        directory: made when something is saved.
        model: fingerprint of the device's model.
    """

    def __init__(self, directory: Path, *, model: str) -> None:
        self._directory = directory
        self._model = model
        self._caches = CacheFile(directory / "samples.db")

    def cached(self) -> CacheChange | None:
        """What is remembered of the device's samples, if anything is."""
        return next(iter(self._caches.load().values()), None)

    def close(self) -> None:
        """Close the files."""
        self._caches.close()

    def load(self) -> list[Checkpoint]:
        """Checkpoints that are whole; one that a power cut has torn is told of and passed over.

        Raises:
            UsageError: the directory is of another model or of another version of iotsplit.
        """
        found = [self._read(file) for file in sorted(self._directory.glob("*.json"))]
        return [checkpoint for checkpoint in found if checkpoint is not None]

    def take(self, kept: Local | Metrics | Event) -> None:
        """Save a checkpoint, or what is remembered: when this returns it is on the disk.

        Tell of a checkpoint that the session cannot use.

        Raises:
            RunFailedError: the disk is full or cannot be written.
        """
        if isinstance(kept, Unusable):
            log.warning("a checkpoint does not fit and is passed over", step=kept.step, reason=kept.reason)
        if not isinstance(kept, Checkpoint | CacheChange):
            return
        with writing(self._directory, fix="free space there or choose another --state-dir"):
            if isinstance(kept, CacheChange):
                self._caches.take(kept)
                return
            self._directory.mkdir(parents=True, exist_ok=True)
            replace(self._directory / f"{kept.step}.safetensors", kept.body)
            manifest = _Manifest(
                model=self._model,
                session=kept.session,
                step=kept.step,
                tokens=kept.tokens,
                sha256=sha256(kept.body),
            )
            # Only now: a manifest never names a body that is not there.
            replace(self._directory / f"{kept.step}.json", msgspec.json.encode(manifest))
            self._forget_others(kept)

    def _forget_others(self, newest: Checkpoint) -> None:
        manifests = {file: self._manifest(file) for file in self._directory.glob("*.json")}
        own = [
            file
            for file, manifest in manifests.items()
            if manifest is not None and manifest.session == newest.session and manifest.step <= newest.step
        ]
        kept = sorted(own, key=lambda file: int(file.stem))[-KEPT:]
        for file in manifests.keys() - set(kept):
            file.unlink()
            file.with_suffix(".safetensors").unlink(missing_ok=True)

    def _read(self, file: Path) -> Checkpoint | None:
        manifest = self._manifest(file)
        if manifest is None:
            return None
        if manifest.format != FORMAT or manifest.model != self._model:
            what = "another version of iotsplit" if manifest.format != FORMAT else "another model"
            raise UsageError(
                f"{self._directory} holds checkpoints of {what}",
                fix="choose another --state-dir, or remove it (a round in progress is then repeated)",
            )
        body = read_checked(file.with_suffix(".safetensors"), manifest.sha256)
        if body is None:
            log.warning("a checkpoint is damaged and is passed over", file=str(file))
            return None
        return Checkpoint(session=manifest.session, step=manifest.step, tokens=manifest.tokens, body=body)

    def _manifest(self, file: Path) -> _Manifest | None:
        try:
            return msgspec.json.decode(file.read_bytes(), type=_Manifest)
        except (msgspec.DecodeError, OSError) as error:
            log.warning("a checkpoint cannot be read and is passed over", file=str(file), reason=str(error))
            return None
