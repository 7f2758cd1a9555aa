"""Whether two tapes hold the same: the same run of the same fleet on two machines, for example. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import zip_longest

from iotsplit.tape.comparison import Comparison, Difference
from iotsplit.tape.format import Header, Record
from iotsplit.tape.letters import Listener, find_topics
from iotsplit.tape.statements import Speaker, Statement


class Side:
    """Makes statements of one tape's records.

    Args:
        header: of the tape.
        exact: bytes have to be the same.
    """

    def __init__(self, header: Header, *, exact: bool) -> None:
        self._header = header
        self._exact = exact
        self._listener: Listener | None = None
        self._speakers: dict[str, Speaker] = {}
        self._count = 0
        self._on: Counter[str] = Counter()

    def statements(self, record: Record) -> Iterator[Statement]:
        """What a record completes."""
        self._count += 1
        if self._listener is None:
            topics = find_topics(self._header, record.topic)
            self._listener = Listener(topics) if topics is not None else None
        if self._listener is None or not record.topic.startswith(self._listener.topics.root):
            yield self._plain(record)
            return
        letter = self._listener.take(record)
        if letter is not None:
            speaker = self._speakers.setdefault(letter.sender, Speaker(exact=self._exact, across_runs=True))
            yield from speaker.statements(letter, record=self._count)

    def _plain(self, record: Record) -> Statement:
        """A message of others: the same bytes at the same turn of its topic."""
        turn = self._on[record.topic] = self._on[record.topic] + 1
        return Statement(
            key=("topic", record.topic, turn),
            topic=record.topic,
            body=record.payload,
            kind=f"message {turn}",
            record=self._count,
            count=self._count,
        )


def compare(
    first: tuple[Header, Iterable[Record]], second: tuple[Header, Iterable[Record]], *, tolerance: float
) -> tuple[Comparison, Difference | None]:
    """Read both tapes side by side, until something differs.

    Args:
        first: header and records of the one that is expected.
        second: header and records of the other.
        tolerance: of each tensor, as a share of its largest value.
    """
    comparison = Comparison(tolerance)
    one, other = (Side(header, exact=tolerance == 0.0) for header, _ in (first, second))
    for left, right in zip_longest(first[1], second[1]):
        for statement in one.statements(left) if left is not None else ():
            comparison.recorded(statement)
        for statement in other.statements(right) if right is not None else ():
            comparison.said(statement)
        if comparison.difference is not None:
            break
    comparison.finish(everything=True)
    return comparison, comparison.difference
