"""One connection to a broker, from CONNECT to its end; for agents the only module that knows paho-mqtt."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage, MQTTv311
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from iotsplit.errors import BrokerUnreachableError, RefusedError, UserError
from iotsplit.packet import Packet
from iotsplit.runtime.address import BrokerAddress

KEEPALIVE_S = 15
ANSWER_TIMEOUT_S = 10.0
GOODBYE_TIMEOUT_S = 2.0
_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Events:
    """What a connection reports, from its network thread."""

    arrived: Callable[[Packet], None]
    acknowledged: Callable[[int], None]


class Connection:
    """A connection that is opened once, and never comes back after it ended.

    paho can reconnect by itself, but then sends what was not acknowledged after newer packets, and waits
    in a way that nobody can end; a new connection each time has neither fault.

    Args:
        address: where to.
        client_id: who we are.
        last_will: what the broker publishes if we vanish.
        events: called from the network thread; must not block.
    """

    def __init__(
        self, address: BrokerAddress, client_id: str, *, last_will: Packet | None, events: Events
    ) -> None:
        self._address = address
        self._events = events
        self._answered = threading.Event()
        self._ended = threading.Event()
        self._refusal: ReasonCode | None = None
        self._network_thread = 0
        self.end_reason = ""
        self._client = client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=True,
            protocol=MQTTv311,
            transport="websockets" if address.is_websocket else "tcp",
            reconnect_on_failure=False,
        )
        client.max_inflight_messages_set(address.limits.window)
        client.connect_timeout = ANSWER_TIMEOUT_S
        introduce(client, address, last_will)
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe

    def open(self) -> None:
        """Connect; return when the broker has accepted us.

        Raises:
            BrokerUnreachableError: nobody answers.
            RefusedError: the broker does not want us, or is not whom we trust.
        """
        try:
            self._client.connect(self._address.host, self._address.port, keepalive=KEEPALIVE_S)
        except (OSError, ValueError) as error:
            raise explain(error, self._address) from None
        self._client.loop_start()
        in_time = self._answered.wait(ANSWER_TIMEOUT_S)
        if self._refusal is not None or not self._client.is_connected():
            self._tear()
            raise explain_answer(self._refusal, self._address, in_time=in_time)

    def publish(self, packet: Packet) -> int:
        """Hand a packet to the network thread; return the id that its acknowledgement will name."""
        # Its return code 4 (no connection) means: taken all the same. Never send again for it.
        return self._client.publish(packet.topic, packet.payload, qos=packet.qos, retain=packet.retain).mid

    def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe with QoS 1, in one packet."""
        self._client.subscribe([(each, 1) for each in filters])

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe, in one packet."""
        self._client.unsubscribe(list(filters))

    def wait_until_ended(self) -> None:
        """Return when the connection has ended, whoever ended it."""
        # paho's thread can end without a word (a file descriptor above select's limit), so look now and then.
        while not self._ended.wait(KEEPALIVE_S) and self._client.is_connected():
            pass

    def in_network_thread(self) -> bool:
        """Whether this is the thread that must never wait for the network."""
        return threading.get_ident() == self._network_thread

    def close(self) -> None:
        """Say goodbye after everything published; the broker sends no will."""
        self._client.disconnect()
        self._ended.wait(GOODBYE_TIMEOUT_S)
        self._tear()

    def _tear(self) -> None:
        raw = self._client.socket()
        if raw is not None:
            with contextlib.suppress(OSError, AttributeError):
                bare_socket(raw).shutdown(socket.SHUT_RDWR)
        self._client.disconnect()
        self._client.loop_stop()

    def _on_socket_open(self, client: Client, _data: object, raw: Any) -> None:
        # Nagle's algorithm and delayed acknowledgements together cost 88 ms for each small QoS 1 packet.
        with contextlib.suppress(OSError, AttributeError):
            bare_socket(raw).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._acknowledge_quickly(client)

    def _acknowledge_quickly(self, client: Client) -> None:
        # The kernel falls back to delayed acknowledgements by itself, so this is said after each receive.
        raw = client.socket()
        if _QUICKACK is not None and raw is not None:
            with contextlib.suppress(OSError, AttributeError):
                bare_socket(raw).setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)

    def _on_connect(
        self, client: Client, _data: object, _flags: ConnectFlags, reason: ReasonCode, _more: Properties | None
    ) -> None:
        self._network_thread = threading.get_ident()
        if reason.is_failure:
            self._refusal = reason
        self._acknowledge_quickly(client)
        self._answered.set()

    def _on_disconnect(
        self,
        _client: Client,
        _data: object,
        _flags: DisconnectFlags,
        reason: ReasonCode,
        _more: Properties | None,
    ) -> None:
        silent = "keep alive" in str(reason).lower()
        self.end_reason = f"no answer within {KEEPALIVE_S} s" if silent else "the connection broke"
        self._answered.set()
        self._ended.set()

    def _on_message(self, client: Client, _data: object, message: MQTTMessage) -> None:
        self._acknowledge_quickly(client)
        try:
            topic = message.topic
        except UnicodeDecodeError:
            return
        self._events.arrived(
            Packet(topic=topic, payload=bytes(message.payload), qos=message.qos, retain=message.retain)
        )

    def _on_publish(
        self, client: Client, _data: object, message_id: int, _reason: ReasonCode, _more: Properties | None
    ) -> None:
        self._acknowledge_quickly(client)
        self._events.acknowledged(message_id)

    def _on_subscribe(
        self,
        _client: Client,
        _data: object,
        _message_id: int,
        reasons: list[ReasonCode],
        _more: Properties | None,
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            log.error("the broker refused a subscription; check its access rules", broker=str(self._address))


def introduce(client: Client, address: BrokerAddress, last_will: Packet | None) -> None:
    """Tell a client what it needs before it connects: encryption, user, last will.

    Raises:
        UsageError: the certificate authority's file cannot be used.
    """
    context = address.tls()
    if context is not None:
        client.tls_set_context(context)
    if address.is_websocket:
        client.ws_set_options(path=address.path or "/mqtt")
    if address.user is not None:
        client.username_pw_set(address.user, address.password)
    if last_will is not None:
        client.will_set(last_will.topic, last_will.payload, qos=last_will.qos, retain=last_will.retain)


def bare_socket(raw: Any) -> Any:
    """The TCP or TLS socket below paho's WebSocket, which has no socket options of its own."""
    return getattr(raw, "_socket", raw)


def explain(error: Exception, address: BrokerAddress) -> UserError:
    """What an exception of connecting means to the person who runs it."""
    match error:
        case ssl.SSLCertVerificationError():
            return RefusedError(
                f"the certificate of {address} is not to be trusted: {error.verify_message}",
                fix="give the file of the authority that signed it: --ca-file FILE",
            )
        case ssl.SSLError() | ConnectionResetError() if address.is_encrypted:
            return BrokerUnreachableError(
                f"{address} does not answer in TLS",
                fix="check the port, or write mqtt:// for none",
            )
        case socket.gaierror():
            return BrokerUnreachableError(f"no host named {address.host}", fix="check the name in --broker")
        case TimeoutError():
            return BrokerUnreachableError(
                f"no answer from {address} within {ANSWER_TIMEOUT_S:.0f} s", fix="check address and firewall"
            )
        case ConnectionRefusedError():
            return BrokerUnreachableError(
                f"nobody listens at {address}", fix="start a broker there (iotsplit broker) or check --broker"
            )
    reason = getattr(error, "strerror", None) or error
    return BrokerUnreachableError(f"{address} cannot be reached: {reason}", fix="check --broker and network")


def explain_answer(refusal: ReasonCode | None, address: BrokerAddress, *, in_time: bool) -> UserError:
    """What a broker's refusal, or its silence, means to the person who runs it."""
    if refusal is None:
        if not in_time:
            return explain(TimeoutError(), address)
        if not address.is_encrypted:
            fix = "check that this is an MQTT port; an encrypted one needs mqtts://"
        elif address.identity is None:
            fix = "check that this is an MQTT port; if it wants a certificate, give --cert-file and --key-file"
        else:
            fix = f"check that the broker trusts who signed {address.identity[0]}"
        return BrokerUnreachableError(f"{address} closed the connection without an answer", fix=fix)
    told = str(refusal).lower()
    if "unavailable" in told:
        return BrokerUnreachableError(f"{address} says: {told}", fix="try again later, or look into its log")
    who = f"user {address.user}" if address.user else "a connection without a user"
    return RefusedError(
        f"{address} refused {who}: {told}",
        fix="check --user and the password (--password-file or IOTSPLIT_PASSWORD)",
    )
