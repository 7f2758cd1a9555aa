"""A person's connection to a live fleet: reads what is retained, and asks the cloud."""

import queue
import secrets
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from iotsplit.errors import PeerError, QuorumError, RunFailedError, UsageError
from iotsplit.limits import fitting
from iotsplit.mailbox import Mailbox
from iotsplit.messages import Message
from iotsplit.options import BrokerOptions
from iotsplit.packet import Packet
from iotsplit.retained import Fetch
from iotsplit.runtime import clock
from iotsplit.runtime.address import address_of
from iotsplit.runtime.link import Link, LinkChange
from iotsplit.states import (
    AdapterChunk,
    AdapterHead,
    AdapterLatest,
    Command,
    Reply,
)
from iotsplit.topics import Topics

ANSWER_S = 10.0
QUIET_S = 1.0  # what is retained comes at once; nothing says that it was all
FETCH_S = 60.0  # without any progress
MAX_WAITING = 1000
SECTIONS = ("device", "edge", "cloud")


class FleetClient:
    """Reads adapter versions of a fleet and commands its cloud.

    Args:
        link: a connection to the fleet's broker, not open yet.
        topics: of the fleet.
        answer_s: seconds to wait for an answer.
        most_filters: subscriptions that the broker allows; None for any number.
    """

    def __init__(
        self, link: Link, topics: Topics, *, answer_s: float = ANSWER_S, most_filters: int | None = None
    ) -> None:
        self._link = link
        self._topics = topics
        self._mailbox = Mailbox(topics, "client")
        self._arrived: queue.Queue[Packet] = queue.Queue(MAX_WAITING)
        self._answer_s = answer_s
        self._most_filters = most_filters
        self._filters: frozenset[str] = frozenset()

    def __enter__(self) -> Self:
        self._link.open(self._deliver, last_will=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._link.close()

    def versions(self) -> tuple[int, list[AdapterHead]]:
        """The current version, and the heads of all that can be had.

        Raises:
            QuorumError: the fleet has none.
        """
        latest = self.latest()
        said = self._until(["adapter/+/head"], QUIET_S)
        heads = {message.version: message for message in said if isinstance(message, AdapterHead)}
        return latest, [heads[version] for version in sorted(heads)]

    def latest(self) -> int:
        """The current version.

        Raises:
            QuorumError: the fleet has none.
        """
        for message in self._until(["adapter/latest"], self._answer_s):
            if isinstance(message, AdapterLatest):
                return message.version
        raise self._nobody("no adapter version")

    def head(self, version: int) -> AdapterHead:
        """What a version is.

        Raises:
            UsageError: there is no such version.
        """
        for message in self._until([f"adapter/{version}/head"], self._answer_s):
            if isinstance(message, AdapterHead) and message.version == version:
                return message
        raise UsageError(
            f"adapter version {version} cannot be had", fix="see iotsplit adapters list for those that can"
        )

    def fetch(self, head: AdapterHead) -> list[bytes]:
        """A version's sections, checked against their digests.

        Raises:
            RunFailedError: chunks are missing or wrong.
        """
        return [self._fetch(head, section) for section in SECTIONS if section in head.sections]

    def ask(self, verb: str, *, version: int | None = None) -> Reply:
        """Command the cloud and wait for its reply.

        Raises:
            QuorumError: it did not answer.
        """
        command = Command(id=secrets.token_hex(8), verb=verb, version=version)
        self._subscribe([f"command/{command.id}"])
        for packet in self._mailbox.outgoing(command):
            self._link.publish(packet)
        for message in self._messages(self._answer_s):
            if isinstance(message, Reply) and message.id == command.id:
                return message
        raise self._nobody(f"no answer to {verb}")

    def _fetch(self, head: AdapterHead, section: str) -> bytes:
        fetch = Fetch(head.version, section)
        wanted: frozenset[str] = frozenset()
        self._add(fetch, head)
        while fetch.body is None:
            if fetch.interests != wanted:
                wanted = fetch.interests
                self._subscribe(sorted(wanted))
            message = next(self._messages(FETCH_S), None)
            if message is None:
                raise RunFailedError(
                    f"{section} of adapter version {head.version} does not arrive",
                    fix="the version may just have been replaced; try the current one",
                )
            self._add(fetch, message)
        return fetch.body

    def _add(self, fetch: Fetch, message: Message) -> None:
        try:
            if isinstance(message, AdapterHead | AdapterChunk):
                fetch.add(message)
        except PeerError as error:
            raise RunFailedError(str(error), fix="try again, or another version") from None

    def _until(self, below_root: Sequence[str], quiet_s: float) -> Iterator[Message]:
        self._subscribe(below_root)
        return self._messages(quiet_s)

    def _messages(self, quiet_s: float) -> Iterator[Message]:
        """Messages as they arrive, until none has come for a while."""
        until = clock.now() + quiet_s
        while clock.now() < until:
            try:
                packet = self._arrived.get(timeout=max(0.0, until - clock.now()))
                message = self._mailbox.incoming(packet)
            except (queue.Empty, PeerError):
                continue
            if message is not None:
                yield message
                until = clock.now() + quiet_s

    def _subscribe(self, below_root: Sequence[str]) -> None:
        wanted = frozenset(self._topics.root + word for word in below_root)
        self._filters = fitting(wanted, self._filters, self._most_filters)
        self._link.subscribe(self._filters)

    def _deliver(self, arrived: Packet | LinkChange) -> None:
        if isinstance(arrived, Packet):
            self._arrived.put(arrived)

    def _nobody(self, what: str) -> QuorumError:
        return QuorumError(
            f"{what} in fleet {self._topics.fleet} within {self._answer_s:.0f} s",
            fix="check --fleet and --topic-prefix, and that its cloud runs",
        )


def connect(options: BrokerOptions) -> FleetClient:
    """A client of the fleet that the options name.

    Raises:
        UsageError: the address or the fleet's name cannot be used.
    """
    from iotsplit.runtime.mqtt import MqttLink  # noqa: PLC0415 - keeps --help quick

    link = MqttLink(address_of(options), f"client-{secrets.token_hex(6)}")
    topics = Topics(options.fleet, options.topic_prefix)
    return FleetClient(link, topics, most_filters=options.limits.subscriptions)
