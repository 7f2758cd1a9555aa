"""Whose turn it is where several sessions have work: one is brought to the end of its step before the next."""


class Ready:
    """Sessions that have work, by their device.

    A session that has its whole step behind it is on its way through the other tiers while the next one is
    worked on. Micro-batches of several sessions in turns would bring them all to their end at the same time,
    and nothing would be left to do until they come back.
    """

    def __init__(self) -> None:
        self._devices: dict[str, None] = {}  # in the order in which they became ready
        self._last = ""

    def __bool__(self) -> bool:
        return bool(self._devices)

    def mark(self, device: str, *, ready: bool) -> None:
        """Note whether a session has work."""
        if ready:
            self._devices.setdefault(device)
        else:
            self._devices.pop(device, None)

    def turn(self) -> str | None:
        """The session that was worked on last, if it has more; else who has waited longest."""
        if self._last not in self._devices:
            self._last = next(iter(self._devices), "")
        return self._last or None
