"""A bare MQTT client for ``iotsplit broker check``: it does what agents never do, to see what becomes of it."""

import contextlib
import queue
import socket
import threading
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage, MQTTv5, MQTTv311
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from iotsplit.packet import Packet
from iotsplit.runtime import clock
from iotsplit.runtime.address import BrokerAddress
from iotsplit.runtime.connection import (
    ANSWER_TIMEOUT_S,
    bare_socket,
    explain,
    explain_answer,
    introduce,
)
from iotsplit.runtime.pace import Pace
from iotsplit_broker.checking.rights import REFUSED

KEEPALIVE_S = 60  # it may be silent for so long while it holds its breath
WINDOW = 100
WAIT_S = 10.0  # for what has to come
QUIET_S = 2.0  # after this nothing more comes
_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)


@dataclass(frozen=True, kw_only=True)
class Manners:
    """How a client behaves.

    Args:
        version5: it speaks MQTT 5 instead of 3.1.1.
        last_will: what the broker publishes if it vanishes.
        delays: it lets its kernel delay TCP acknowledgements, as clients do that know nothing better.
    """

    version5: bool = False
    last_will: Packet | None = None
    delays: bool = False


class BareClient:
    """One connection, opened once; a context manager.

    Args:
        address: where to.
        client_id: who it says it is.
        manners: how it behaves.
    """

    def __init__(self, address: BrokerAddress, client_id: str, manners: Manners | None = None) -> None:
        self.client_id = client_id
        self.announced: dict[str, Any] = {}
        self.foreign = 0
        self._manners = manners or Manners()
        self._address = address
        self._pace = Pace(address.limits)
        self._heard: queue.SimpleQueue[Packet | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._breathing = threading.Event()
        self._breathing.set()
        self._answered = False
        self._ended = False
        self._refusal: ReasonCode | None = None
        self._acknowledged: dict[int, int] = {}
        self._granted: dict[int, list[int]] = {}
        self._client = client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if self._manners.version5 else True,
            protocol=MQTTv5 if self._manners.version5 else MQTTv311,
            transport="websockets" if address.is_websocket else "tcp",
            reconnect_on_failure=False,
        )
        client.max_inflight_messages_set(min(WINDOW, address.limits.window))
        client.connect_timeout = ANSWER_TIMEOUT_S
        introduce(client, address, self._manners.last_will)
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe

    def __enter__(self) -> Self:
        """Connect.

        Raises:
            BrokerUnreachableError: nobody answers.
            RefusedError: the broker does not want us, or is not whom we trust.
        """
        try:
            self._open()
        except KeyboardInterrupt:
            # Without a goodbye the broker would send the will when we end, after all has been cleared.
            self.__exit__(None, None, None)
            raise
        return self

    def _open(self) -> None:
        try:
            self._client.connect(self._address.host, self._address.port, keepalive=KEEPALIVE_S)
        except (OSError, ValueError) as error:
            raise explain(error, self._address) from None
        self._client.loop_start()
        in_time = self._wait(lambda: self._answered or self._ended, ANSWER_TIMEOUT_S)
        if self._refusal is not None or not self._client.is_connected():
            self.cut()
            raise explain_answer(self._refusal, self._address, in_time=in_time)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say goodbye; the broker sends no will."""
        self.release()
        self._client.disconnect()
        self._wait(lambda: self._ended, QUIET_S)
        self.cut()

    @property
    def ended(self) -> bool:
        """Whether the connection is over."""
        return self._ended

    def wait_until_ended(self, timeout_s: float = WAIT_S) -> bool:
        """Whether the connection ends within a time."""
        return self._wait(lambda: self._ended, timeout_s)

    def subscribe(self, filters: Sequence[str], *, qos: int = 1) -> list[int]:
        """Subscribe; give the broker's code for each filter, 0x80 and above for refused or no answer."""
        codes: list[int] = []
        most = self._address.limits.topics_per_subscribe
        for start in range(0, len(filters), most):
            some = filters[start : start + most]
            self._wait_until(self._pace.request_due(clock.now()))
            self._pace.take_request(clock.now())
            _, message_id = self._client.subscribe([(each, qos) for each in some])
            self._wait_for(message_id, self._granted, WAIT_S)
            codes += self._granted.get(message_id or 0, [REFUSED] * len(some))
        return codes

    def send(self, packet: Packet) -> int:
        """Publish, as soon as the broker's rates allow it; give the id that `acknowledged` knows it by."""
        self._wait_until(self._pace.due(packet, clock.now()))
        self._pace.take(packet, clock.now())
        sent = self._client.publish(packet.topic, packet.payload, qos=packet.qos, retain=packet.retain)
        return sent.mid

    def acknowledged(self, message_ids: Iterable[int], timeout_s: float = WAIT_S) -> dict[int, int]:
        """Wait for acknowledgements; give the broker's code for each that has come."""
        wanted = list(message_ids)
        until = clock.now() + timeout_s
        for message_id in wanted:
            left_s = max(0.0, until - clock.now())
            if not self._wait_for(message_id, self._acknowledged, left_s):
                break
        return {each: self._acknowledged[each] for each in wanted if each in self._acknowledged}

    def say(self, packet: Packet) -> int | None:
        """Publish and wait; give the broker's code, or None if no acknowledgement comes."""
        message_id = self.send(packet)
        return self.acknowledged([message_id]).get(message_id)

    def hear(
        self, count: int = 1, *, on: str | None = None, timeout_s: float = WAIT_S, quiet_s: float = WAIT_S
    ) -> list[Packet]:
        """What arrives until there are so many, it is quiet for `quiet_s`, or time or connection is over.

        Args:
            count: of messages.
            on: topic of those that are meant; others are only counted, as `foreign`.
            timeout_s: longest time in all.
            quiet_s: longest time between two.
        """
        heard: list[Packet] = []
        until = clock.now() + timeout_s
        while len(heard) < count:
            try:
                packet = self._heard.get(timeout=max(0.0, min(quiet_s, until - clock.now())))
            except queue.Empty:
                break
            if packet is None:
                break
            if on is None or packet.topic == on:
                heard.append(packet)
            else:
                self.foreign += 1
        return heard

    def hold(self) -> None:
        """Take and acknowledge nothing more from the network until `release`."""
        self._breathing.clear()

    def release(self) -> None:
        """Go on."""
        self._breathing.set()

    def cut(self) -> None:
        """Break the connection without a word."""
        self.release()
        raw = self._client.socket()
        if raw is not None:
            with contextlib.suppress(OSError, AttributeError):
                bare_socket(raw).shutdown(socket.SHUT_RDWR)
        self._client.loop_stop()

    def _wait_for(self, message_id: int | None, answers: Container[int], timeout_s: float) -> bool:
        """Wait until a message is answered, or the connection is over."""
        return self._wait(lambda: message_id in answers or self._ended, timeout_s)

    def _wait_until(self, at: float) -> None:
        """Wait for a time, unless the connection ends before."""
        left_s = at - clock.now()
        if left_s > 0:
            self._wait(lambda: self._ended, left_s)

    def _wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(condition, timeout_s)

    def _on_socket_open(self, client: Client, _data: object, raw: Any) -> None:
        with contextlib.suppress(OSError, AttributeError):
            bare_socket(raw).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._choose_acknowledgements(client)

    def _choose_acknowledgements(self, client: Client) -> None:
        # The kernel changes its mind by itself, so this is said after each receive.
        raw = client.socket()
        if _QUICKACK is not None and raw is not None:
            with contextlib.suppress(OSError, AttributeError):
                bare_socket(raw).setsockopt(socket.IPPROTO_TCP, _QUICKACK, int(not self._manners.delays))

    def _on_connect(
        self, _client: Client, _data: object, _flags: ConnectFlags, reason: ReasonCode, more: Properties | None
    ) -> None:
        with self._changed:
            self._refusal = reason if reason.is_failure else None
            self.announced = {} if more is None else more.json()  # type: ignore[no-untyped-call]  # of paho
            self._answered = True
            self._changed.notify_all()

    def _on_disconnect(
        self,
        _client: Client,
        _data: object,
        _flags: DisconnectFlags,
        _reason: ReasonCode,
        _more: Properties | None,
    ) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._heard.put(None)

    def _on_message(self, client: Client, _data: object, message: MQTTMessage) -> None:
        self._choose_acknowledgements(client)
        self._breathing.wait()
        self._heard.put(
            Packet(topic=message.topic, payload=bytes(message.payload), qos=message.qos, retain=message.retain)
        )

    def _on_publish(
        self, client: Client, _data: object, message_id: int, reason: ReasonCode, _more: Properties | None
    ) -> None:
        self._choose_acknowledgements(client)
        with self._changed:
            self._acknowledged[message_id] = reason.value
            self._changed.notify_all()

    def _on_subscribe(
        self,
        _client: Client,
        _data: object,
        message_id: int,
        reasons: list[ReasonCode],
        _more: Properties | None,
    ) -> None:
        with self._changed:
            self._granted[message_id] = [reason.value for reason in reasons]
            self._changed.notify_all()
