"""Device ids made from the names of files and categories."""

import re
from collections.abc import Iterable

_LONGEST = 23


def device_ids(names: Iterable[str]) -> list[str]:
    """An id for each name, in order: allowed in topics and client ids, and unique.

    Ids match ``[A-Za-z0-9_-]{1,23}``; a name that was given away gets ``-2``, ``-3`` and so on.
    """
    taken: set[str] = set()
    ids = []
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-") or "device"
        device = plain[:_LONGEST].rstrip("-")
        number = 2
        while device in taken:
            end = f"-{number}"
            device = plain[: _LONGEST - len(end)].rstrip("-") + end
            number += 1
        taken.add(device)
        ids.append(device)
    return ids
