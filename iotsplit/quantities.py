"""Durations and sizes as people write them."""

import re

from iotsplit.errors import UsageError

UNITS = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
"""Bytes in each."""

_SIZE = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(UNITS)})?")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def read_duration(text: str) -> float:
    """Seconds of a duration such as ``60s`` or ``10m``.

    Raises:
        UsageError: it is none.
    """
    found = _DURATION.fullmatch(text)
    if found is None:
        raise UsageError(f"duration {text!r} is not one", fix="write 60s, 10m or 8h")
    return float(found[1]) * _SECONDS[found[2] or "s"]


def read_size(text: str) -> int:
    """Bytes of a size such as ``500MB``.

    Raises:
        UsageError: it is none.
    """
    found = _SIZE.fullmatch(text)
    if found is None or not float(found[1]):
        raise UsageError(f"size {text!r} is not one", fix="write 500MB or 1GB")
    return int(float(found[1]) * UNITS[found[2] or "B"])
