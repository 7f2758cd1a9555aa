"""Who counts in a round: equal numbers of devices for each edge, in turns. Pure."""

import hashlib
from collections.abc import Sequence


def _shuffled(names: Sequence[str], *salt: object) -> list[str]:
    """The names in an order that depends on nothing but them and the salt."""

    def place(name: str) -> bytes:
        return hashlib.sha256(":".join(map(str, (*salt, name))).encode()).digest()

    return sorted(names, key=place)


def deal(
    devices: Sequence[str],
    edges: Sequence[str],
    *,
    devices_per_edge: int | None,
    seed: int,
    round_: int,
) -> dict[str, str]:
    """Give devices to edges for one round.

    Without `devices_per_edge` all devices take part, dealt as evenly as they go. With it, each edge
    serves the same number (SplitLLM, arXiv 2501.13318, section II), and devices take turns from round
    to round so that all are served equally often.

    Args:
        devices: ids of the devices that are there.
        edges: ids of the edges that are there.
        devices_per_edge: most devices that an edge serves in a round.
        seed: the fleet's seed.
        round_: number of the round, from 1.

    Returns:
        The edge of each chosen device, sorted by device; empty if nobody is there.
    """
    if not devices or not edges:
        return {}
    queue = _shuffled(devices, seed, "device")
    hosts = _shuffled(edges, seed, "edge", round_)
    if devices_per_edge is None:
        chosen = queue
    else:
        each = max(1, min(devices_per_edge, len(devices) // len(edges)))
        size = min(len(devices), each * len(edges))
        start = (round_ - 1) * size % len(queue)
        chosen = (queue[start:] + queue[:start])[:size]
    return dict(sorted((device, hosts[at % len(hosts)]) for at, device in enumerate(chosen)))
