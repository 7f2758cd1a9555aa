"""What the cloud remembers of every device's samples: the far end of their upper hop."""

from collections.abc import Iterable, Mapping

from iotsplit.cache import Cache, CacheChange, is_long_ago, new_cache, nothing_of, rows_of
from iotsplit.messages import CloudRows, Want
from iotsplit.settings import TrainingSettings
from iotsplit.states import Assignment


class Caches:
    """One cache for each device, if the fleet remembers anything.

    Args:
        settings: the fleet's.
        held: what was written of it.
    """

    def __init__(self, settings: TrainingSettings, held: Mapping[str, CacheChange]) -> None:
        self._settings = settings
        self._is_on = bool(settings.cache_bytes) and not settings.federated
        self._caches = {device: new_cache(device, settings, each) for device, each in held.items()}
        self._last: dict[str, int] = {}  # round of each device that has trained since this start
        self._forgotten: list[str] = []

    def bases(self, devices: Iterable[str], *, again: bool) -> Mapping[str, str]:
        """The session that each device's next one goes on from.

        Args:
            devices: their ids.
            again: the round is done again, and goes on from what it did before.
        """
        caches = {device: self._caches[device] for device in devices if device in self._caches}
        return {device: cache.base if again else cache.newest for device, cache in caches.items()}

    def begin(self, assignments: Iterable[Assignment]) -> dict[str, Cache]:
        """Begin sessions, or go on with them; gives what they remember, by session."""
        if not self._is_on:
            return {}
        begun = {}
        for assignment in assignments:
            cache = self._caches.setdefault(assignment.device, new_cache(assignment.device, self._settings))
            cache.begin(assignment.session, assignment.cache)
            begun[assignment.session] = cache
            self._last[assignment.device] = assignment.round
        self._forgotten += self._forget_others()
        return begun

    def _forget_others(self) -> list[str]:
        """Forget devices that have not trained for long; gives their ids."""
        round_ = max(self._last.values(), default=0)
        gone = [device for device in self._caches if is_long_ago(self._last.setdefault(device, round_), round_)]
        for device in gone:
            del self._caches[device], self._last[device]
        return gone

    def has_lost(self, assignments: Iterable[Assignment]) -> bool:
        """Whether one of the sessions that have begun goes on from what is not there any more."""
        return any(each.cache and self._caches[each.device].base != each.cache for each in assignments)

    def rows(self, device: str, want: Want) -> CloudRows:
        """What is remembered of the samples that an edge asks for.

        Raises:
            MalformedMessageError: it asks for more than a batch.
        """
        found = rows_of(self._caches.get(device), want.samples, most=self._settings.batch_size)
        return CloudRows(samples=tuple(found), rows=tuple(found.values()))

    def take_changes(self) -> list[CacheChange]:
        """What has to be written since the last call, before anything that is said later leaves."""
        forgotten, self._forgotten = self._forgotten, []
        changes = [cache.take_change() for cache in self._caches.values()]
        return [*map(nothing_of, forgotten), *(change for change in changes if change is not None)]
