"""Who counts in a round: equal numbers of devices for each edge, in turns. Pure."""

import hashlib
from collections.abc import Mapping, Sequence


def _shuffled(names: Sequence[str], *salt: object) -> list[str]:
    """The names in an order that depends on nothing but them and the salt."""

    def place(name: str) -> bytes:
        return hashlib.sha256(":".join(map(str, (*salt, name))).encode()).digest()

    return sorted(names, key=place)


def deal(  # noqa: PLR0913 - so much decides
    devices: Sequence[str],
    edges: Sequence[str],
    *,
    devices_per_edge: int | None,
    rooms: Mapping[str, int] | None = None,
    seed: int,
    round_: int,
    stay: bool = False,
) -> dict[str, str]:
    """Give devices to edges for one round.

    Without `devices_per_edge` all devices take part, dealt as evenly as they go. With it, each edge
    serves the same number (SplitLLM, arXiv 2501.13318, section II), and devices take turns from round
    to round so that all are served equally often. They do so too when edges have less room than that.

    Args:
        devices: ids of the devices that are there.
        edges: ids of the edges that are there.
        devices_per_edge: most devices that an edge serves in a round.
        rooms: most devices of each edge that can only serve so many.
        seed: the fleet's seed.
        round_: number of the round, from 1.
        stay: edges take no turns: a device comes to the same one again as long as the same are there.

    Returns:
        The edge of each chosen device, sorted by device; empty if nobody is there.
    """
    if not devices or not edges:
        return {}
    queue = _shuffled(devices, seed, "device")
    hosts = _shuffled(edges, seed, "edge", 1 if stay else round_)
    each = len(devices)
    if devices_per_edge is not None:
        each = max(1, min(devices_per_edge, len(devices) // len(edges)))
    caps = {edge: min(each, (rooms or {}).get(edge, each)) for edge in hosts}
    places = [edge for turn in range(each) for edge in hosts if turn < caps[edge]]
    size = min(len(queue), len(places))
    start = (round_ - 1) * size % len(queue)
    chosen = (queue[start:] + queue[:start])[:size]
    return dict(sorted(zip(chosen, places, strict=False)))
