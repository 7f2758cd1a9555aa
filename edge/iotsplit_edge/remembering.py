"""What an edge remembers of a device's samples at both of its hops; what it has lost its neighbours have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from iotsplit.cache import Cache, is_long_ago, new_cache
from iotsplit.errors import TensorRefusedError
from iotsplit.messages import CloudRows, DeviceRows
from iotsplit.plan import Tier
from iotsplit.settings import TrainingSettings
from iotsplit.tensors import remembered
from iotsplit.tensors.remembered import Remembered

ROWS = {"device_rows": Tier.DEVICE, "cloud_rows": Tier.CLOUD}
"""Who has what was lost, by the kind of frame that brings it."""


@dataclass(slots=True)
class Caches:
    """One device's samples.

    Args:
        below: as the edge has read them.
        above: as the cloud has.
        round: the newest in which the device has trained here.
    """

    below: Cache
    above: Cache
    round: int = 0

    def begin(self, session: str, base: str, round_: int) -> None:
        """Begin a session of that round, or go on with it, from what another has left."""
        self.round = round_
        for cache in (self.below, self.above):
            cache.begin(session, base)

    def missing(self, of: Remembered, width: int) -> Mapping[str, Sequence[int]]:
        """Samples of which changes have come and that are lost, by the kind of frame that has them."""
        caches = {"device_rows": self.below, "cloud_rows": self.above}
        missing = {kind: remembered.missing_in(cache, of, width) for kind, cache in caches.items()}
        return {kind: samples for kind, samples in missing.items() if samples}

    def recall(self, rows: DeviceRows | CloudRows, of: Remembered, width: int) -> None:
        """Take in what a neighbour has.

        Raises:
            TensorRefusedError: it is not what is missing.
        """
        cache = self.below if isinstance(rows, DeviceRows) else self.above
        lengths = dict(zip(of.samples, of.lengths, strict=True))
        for sample, data in zip(rows.samples, rows.rows, strict=True):
            is_row = sample in lengths and remembered.is_row(data, lengths[sample], width)
            if not is_row or not cache.recall(sample, data, beside=of.samples):
                raise TensorRefusedError(f"something else than what is remembered of sample {sample}")


def new_caches(device: str, settings: TrainingSettings) -> Caches:
    """Caches of a device that this edge has not served, or not without a gap."""
    below, above = (new_cache(device, settings, is_kept=False) for _ in range(2))
    return Caches(below, above)


def lately(caches: Mapping[str, Caches], round_: int) -> dict[str, Caches]:
    """Those of devices that have trained here lately; all others are forgotten."""
    return {device: each for device, each in caches.items() if not is_long_ago(each.round, round_)}
