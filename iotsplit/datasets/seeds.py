"""Random numbers that depend on named things alone."""

import random


def seeded(*names: object) -> random.Random:
    """A generator for these names: equal names give equal numbers, on every machine.

    The names become one string, whose seed does not depend on PYTHONHASHSEED.
    """
    return random.Random("/".join(map(str, names)))  # noqa: S311 - data, not secrets
