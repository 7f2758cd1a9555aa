"""The simulator finds bugs: seeded ones, in schedules that are known to bring them out."""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from iotsplit.messages import Frame
from iotsplit.plan import Tier
from iotsplit.role import Output
from iotsplit.session import Backup
from iotsplit_cloud.lockstep import LockstepRound
from iotsplit_cloud.sessions import CloudSession
from iotsplit_device.role import DeviceRole
from iotsplit_edge.role import EdgeRole
from tests.flows import test_crashes
from tests.flows.test_crashes import in_calm, run, wanted

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick", "unmeasured")]

Patch = pytest.MonkeyPatch


def trimmed_too_early(patch: Patch) -> None:
    """Senders forget what is before the newest checkpoint, not before the last but one."""
    patch.setattr(Backup, "floor", Backup.newest)


def applied_again(patch: Patch) -> None:
    """The cloud takes an activation of the step at hand as often as it comes."""
    once = LockstepRound._is_wanted

    def always(self: LockstepRound, session: CloudSession, frame: Frame) -> bool:
        again = frame.identity.kind == "activation" and frame.step == self.step
        return once(self, session, frame) or (again and frame.micro_batch < self._settings.micro_batches)

    def any_frame(self: LockstepRound, session: CloudSession) -> Frame | None:
        held = self._held[session.assignment.device]
        return next((frame for frame in held if frame.step == self.step), None)

    patch.setattr(LockstepRound, "_is_wanted", always)
    patch.setattr(LockstepRound, "_next_frame", any_frame)


def fenced_by_nobody(patch: Patch) -> None:
    """Nobody looks at the epoch and the sender of a frame: only its session counts."""

    def belongs(self: CloudSession, frame: Frame) -> bool:
        return (frame.session, frame.device) == (self.assignment.session, self.assignment.device)

    def unfenced(role: type[DeviceRole] | type[EdgeRole], tiers: Mapping[Tier, str]) -> None:
        fenced = role._frame

        def any_frame(self: Any, frame: Frame, now: float) -> Sequence[Output]:
            # made to look as if it came from now
            found = self._sessions.get(frame.device) if role is EdgeRole else self._session
            if found is not None:
                assignment = found.backup.assignment
                sender = getattr(assignment, tiers[frame.tier])
                frame = msgspec.structs.replace(frame, epoch=assignment.epoch, sender=sender)
            return fenced(self, frame, now)

        patch.setattr(role, "_frame", any_frame)

    patch.setattr(CloudSession, "belongs", belongs)
    unfenced(DeviceRole, {Tier.EDGE: "edge"})
    unfenced(EdgeRole, {Tier.DEVICE: "device", Tier.CLOUD: "cloud"})


def fails(model: Path, seed: int) -> bool:
    disks = Path(tempfile.mkdtemp())
    try:
        run(model, seed, disks)
    except Exception:  # noqa: BLE001 - a bug shows in whatever way it does
        return True
    finally:
        shutil.rmtree(disks)
    return False


SEEDS: dict[Callable[[Patch], None], tuple[int, ...]] = {
    trimmed_too_early: (74, 86),
    applied_again: (0, 4),
    fenced_by_nobody: (51, 54),
}


@pytest.mark.parametrize("bug", SEEDS, ids=lambda bug: bug.__name__)
def test_a_seeded_bug_is_found(small_model: Path, bug: Callable[[Patch], None], monkeypatch: Patch) -> None:
    monkeypatch.setattr(test_crashes, "LIMIT", 15_000)
    for seed in SEEDS[bug]:
        in_calm(small_model, wanted(seed))
        assert not fails(small_model, seed)
    bug(monkeypatch)
    assert any(fails(small_model, seed) for seed in SEEDS[bug])
