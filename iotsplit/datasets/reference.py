"""Real text that every Python brings along: the language reference, one topic at a time."""

from pydoc_data.topics import topics

from iotsplit.datasets.records import Record, Text


def groups(devices: int, seed: int) -> dict[str, list[Record]]:  # noqa: ARG001 - a fixed text
    """Each topic of the reference, in the order of their names."""
    return {name: [Text(topics[name])] for name in sorted(topics)}
