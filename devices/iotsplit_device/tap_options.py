"""A device's tap as its options say it."""

from dataclasses import dataclass
from pathlib import Path

from iotsplit.errors import UsageError
from iotsplit.quantities import read_duration, read_size
from iotsplit.runtime.link import Link
from iotsplit.settings import at_least
from iotsplit.topics import Topics
from iotsplit_device.snapshot import Snapshot
from iotsplit_device.tap import Tap, Terms
from iotsplit_device.texts import check_filters
from iotsplit_device.textstore import ROW_BYTES, TextStore

LONGEST = 256 * 1024
"""Bytes of a payload: a text is a note or a line, and all of them have to be read at once."""
SHORTEST_LIMIT = 1000


@dataclass(frozen=True, kw_only=True)
class TapOptions:
    """Texts from the bus.

    Args:
        tap: Topic filters whose messages are learnt from, such as factory/+/log; give it again for more.
        tap_field: JSON field that holds the text, with dots for objects within; else the payload is the text.
        tap_max_bytes: Most bytes of texts to keep, such as 4MB; the oldest make room.
        tap_keep: Drop texts that are older than this, such as 30d.
        tap_min: Fewest texts to begin with; a device without --data waits for them.
    """

    tap: tuple[str, ...] = ()
    tap_field: str = ""
    tap_max_bytes: str = "4MB"
    tap_keep: str = "30d"
    tap_min: int = 16

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the setting.

        Raises:
            UsageError: a value is out of its range.
        """
        at_least("tap_min", self.tap_min, 2)  # one to learn, one to hold out
        if self._longest < SHORTEST_LIMIT:
            raise UsageError(
                f"tap_max_bytes {self.tap_max_bytes} is too little for {self.tap_min} texts",
                fix=f"use at least {self.tap_min * (SHORTEST_LIMIT + ROW_BYTES)} bytes, or a smaller tap_min",
            )
        if not read_duration(self.tap_keep):
            raise UsageError("tap_keep 0 keeps nothing", fix="write 30d or 12h")

    @property
    def _longest(self) -> int:
        # However long they are, as many as are waited for fit.
        return min(LONGEST, read_size(self.tap_max_bytes) // self.tap_min - ROW_BYTES)

    def make(self, link: Link, state: Path, topics: Topics, *, eval_limit: int, waits: bool) -> Tap:
        """The tap, not open yet.

        Args:
            link: a connection of its own.
            state: the device's directory for what it must not forget.
            topics: of the device's fleet.
            eval_limit: most texts that are scored.
            waits: whether the device has nothing else to learn from.

        Raises:
            UsageError: a filter is none or matches topics of a fleet, or the store is damaged.
            RunFailedError: the state directory cannot be written.
        """
        check_filters(self.tap, topics)
        terms = Terms(
            filters=frozenset(self.tap),
            field=self.tap_field,
            longest=self._longest,
            least=self.tap_min,
            eval_limit=eval_limit,
            waits=waits,
        )
        store = TextStore(
            state / "tap" / "texts.sqlite",
            max_bytes=read_size(self.tap_max_bytes),
            keep_s=read_duration(self.tap_keep),
            least=self.tap_min,
        )
        return Tap(link, store, Snapshot(state / "tap"), terms)
