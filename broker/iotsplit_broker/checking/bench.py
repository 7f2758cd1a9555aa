"""One broker under test: clients, topics of our own, and what has to be cleared there afterwards."""

import contextlib
import secrets
from contextlib import AbstractContextManager

from iotsplit.errors import UserError
from iotsplit.packet import Packet
from iotsplit.runtime.address import BrokerAddress
from iotsplit.runtime.mqtt import MqttLink
from iotsplit.topics import Topics
from iotsplit_broker.checking.client import BareClient, Manners


class Bench:
    """Gives each probe its clients and topics.

    Args:
        address: the broker's.
        topics: of the fleet; nothing outside of it is touched.
        agent: the name that stands in the topics.
        chunk_bytes: largest message that agents are to send.

    Attributes:
        single: whether the broker lets the user have but one client at a time.
    """

    def __init__(self, address: BrokerAddress, topics: Topics, agent: str, *, chunk_bytes: int) -> None:
        self.address = address
        self.topics = topics
        self.agent = agent
        self.chunk_bytes = chunk_bytes
        self.single = False
        self._name = f"check-{secrets.token_hex(4)}"
        self._clients = 0
        self._retained: dict[str, None] = {}

    def topic(self, *words: object) -> str:
        """A topic of our own, below ``probe/<agent>/``."""
        return "/".join([f"{self.topics.root}probe/{self.agent}", *map(str, words)])

    def new_id(self) -> str:
        """A client id that nobody has."""
        self._clients += 1
        return f"{self._name}-{self._clients}"

    def client(self, manners: Manners | None = None) -> BareClient:
        """A client that connects when it is entered."""
        return BareClient(self.address, self.new_id(), manners)

    def beside(self, client: BareClient) -> AbstractContextManager[BareClient]:
        """Another client; the same where there can be but one."""
        return contextlib.nullcontext(client) if self.single else self.client()

    def link(self) -> MqttLink:
        """A link as agents have it, not open yet."""
        return MqttLink(self.address, self.new_id())

    def retained(self, *words: object, payload: bytes) -> Packet:
        """A retained message on a topic of our own, remembered for `clean`."""
        return self.retained_on(self.topic(*words), payload)

    def retained_on(self, topic: str, payload: bytes) -> Packet:
        """A retained message on any topic of the fleet, remembered for `clean`."""
        self._retained[topic] = None
        return Packet(topic=topic, payload=payload, retain=True)

    def clean(self) -> list[str]:
        """Clear whatever may be retained; give the topics for which the broker did not confirm it."""
        left = list(self._retained)
        with contextlib.suppress(UserError):
            while left:
                with self.client() as client:
                    ids = {client.send(Packet(topic=topic, payload=b"", retain=True)): topic for topic in left}
                    done = {ids[each] for each in client.acknowledged(ids)}
                left = [topic for topic in left if topic not in done]
                if not done:
                    break
        self._retained = dict.fromkeys(left)
        return left
