"""The link over MQTT: paho-mqtt behind the contract of `link`, the only module that knows it.

Small QoS 1 messages take 88 ms a round trip with Nagle's algorithm and delayed acknowledgements on both
ends; with TCP_NODELAY here and TCP_QUICKACK renewed after every read it is half a millisecond.
"""

import contextlib
import os
import socket
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.reasoncodes import ReasonCode

from iotsplit.errors import BrokerUnreachableError, RefusedError, UsageError
from iotsplit.packet import Packet
from iotsplit.runtime.link import Deliver, LinkChange

PORTS = {"mqtt": 1883, "mqtts": 8883}
CONNECT_S = 10.0
KEEPALIVE_S = 15
MAX_WAITING_BYTES = 16 << 20
MAX_BLOCK_S = 30.0
FILTERS_PER_SUBSCRIBE = 8  # AWS IoT takes no more
CLOSE_S = 10.0
QUEUED = (MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_NO_CONN)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerAddress:
    """Where a broker is, and how one gets in."""

    host: str
    port: int
    tls: bool = False
    user: str | None = None
    password: str | None = None
    ca_file: Path | None = None

    def __str__(self) -> str:
        return f"mqtt{'s' if self.tls else ''}://{self.host}:{self.port}"

    @classmethod
    def parse(
        cls,
        url: str,
        *,
        user: str | None = None,
        password: str | None = None,
        ca_file: Path | None = None,
    ) -> "BrokerAddress":
        """Read ``mqtt://HOST[:PORT]`` or ``mqtts://…``.

        Raises:
            UsageError: not such an address, or a file that is not there.
        """
        parts = urlsplit(url if "://" in url else f"mqtt://{url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in PORTS or not parts.hostname or port == -1 or parts.path not in ("", "/"):
            raise UsageError(
                f"broker address {url!r} cannot be used", fix="write mqtt://HOST:PORT or mqtts://HOST:PORT"
            )
        if parts.password is not None:
            raise UsageError(
                "a password in the broker's address can be read by every user of this machine",
                fix="put it into a file (--password-file) or into IOTSPLIT_PASSWORD",
            )
        if ca_file is not None and not ca_file.is_file():
            raise UsageError(f"CA file {ca_file} does not exist", fix="name the broker's CA with --ca-file")
        return cls(
            host=parts.hostname,
            port=port or PORTS[parts.scheme],
            tls=parts.scheme == "mqtts" or ca_file is not None,
            user=user or parts.username,
            password=password,
            ca_file=ca_file,
        )


class MqttLink:
    """One MQTT 3.1.1 client; see `link.Link` for what it promises.

    Args:
        address: the broker.
        client_id: at most 23 characters, new connections of the same id end the older one.
        window: most messages on their way to the broker at once.
    """

    def __init__(self, address: BrokerAddress, client_id: str, *, window: int = 100) -> None:
        self._address = address
        self._filters: frozenset[str] = frozenset()
        self._connected = threading.Event()
        self._answered = threading.Event()
        self._refusal: ReasonCode | None = None
        self._room = threading.Condition()
        self._waiting: dict[int, int] = {}  # bytes of each message that is not acknowledged
        self._waiting_bytes = 0
        self._acknowledged: set[int] = set()
        self._closing = False
        self._was_up = False
        self._deliver: Deliver = lambda _: None
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id, protocol=paho.MQTTv311)
        client.max_inflight_messages_set(window)
        client.max_queued_messages_set(0)  # bounded here, in bytes
        client.reconnect_delay_set(1, 30)
        client.suppress_exceptions = False
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        if address.user is not None:
            client.username_pw_set(address.user, address.password)
        self._client = client

    def open(self, deliver: Deliver, *, last_will: Packet | None) -> None:
        """Connect once; return when the broker accepted.

        Raises:
            BrokerUnreachableError: nobody answers there.
            RefusedError: credentials, TLS or access rules.
        """
        self._deliver = deliver
        if last_will is not None:
            self._client.will_set(
                last_will.topic, last_will.payload, qos=last_will.qos, retain=last_will.retain
            )
        try:
            if self._address.tls:
                self._client.tls_set_context(self._tls())
            self._client.connect(self._address.host, self._address.port, keepalive=KEEPALIVE_S)
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", "") or error.reason or str(error)
            raise RefusedError(
                f"{self._address} is not trusted: {reason}", fix="name the CA that signed it with --ca-file"
            ) from None
        except (OSError, ValueError) as error:
            raise self._unreachable(str(error)) from None
        self._client.loop_start()
        self._await_answer()

    def subscribe(self, filters: frozenset[str]) -> None:
        """Make `filters` the subscriptions of this client: subscribe what is new, unsubscribe the rest."""
        new, old = sorted(filters - self._filters), sorted(self._filters - filters)
        self._filters = filters
        self._subscribe(new)
        if old and self._connected.is_set():
            self._client.unsubscribe(old)

    def publish(self, packet: Packet) -> None:
        """Hand a packet to the bus; blocks while too many bytes wait for the network.

        While the link is down QoS 1 packets are kept and sent later; QoS 0 packets are dropped.
        """
        if packet.qos == 0 and not self._connected.is_set():
            return
        size = len(packet.payload)
        with self._room:
            # Bounded in time too: what cannot leave for so long is asked for again anyway.
            self._room.wait_for(lambda: self._waiting_bytes < MAX_WAITING_BYTES, timeout=MAX_BLOCK_S)
        # Not under our lock: paho calls on_publish with a lock of its own that publish needs.
        info = self._client.publish(packet.topic, packet.payload, packet.qos, packet.retain)
        # MQTT_ERR_NO_CONN still queues a QoS 1 message: it must not be said a second time.
        if packet.qos == 0 or info.rc not in QUEUED:
            return
        with self._room:
            if info.mid not in self._acknowledged:
                self._waiting[info.mid] = size
                self._waiting_bytes += size
            self._acknowledged.clear()

    def close(self) -> None:
        """Say goodbye (no last will is sent) and wait until everything published has left."""
        with self._room:
            if self._connected.is_set():
                self._room.wait_for(lambda: not self._waiting, timeout=CLOSE_S)
        self._closing = True
        self._client.disconnect()
        self._client.loop_stop()

    # --- what paho's network thread calls; it may only enqueue

    def _on_socket_open(self, client: paho.Client, userdata: object, sock: Any) -> None:
        del client, userdata
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._acknowledge_at_once()

    def _on_connect(
        self, client: paho.Client, userdata: object, flags: object, reason: ReasonCode, properties: object
    ) -> None:
        del client, userdata, flags, properties
        if reason.is_failure:
            self._refusal = reason
            self._answered.set()
            return
        self._connected.set()
        self._answered.set()
        self._subscribe(sorted(self._filters))
        if self._was_up:
            self._deliver(LinkChange(up=True))
        self._was_up = True

    def _on_disconnect(
        self, client: paho.Client, userdata: object, flags: object, reason: ReasonCode, properties: object
    ) -> None:
        del client, userdata, flags, properties
        self._connected.clear()
        if self._was_up and not self._closing:
            self._deliver(LinkChange(up=False, reason=str(reason)))

    def _on_message(self, client: paho.Client, userdata: object, message: paho.MQTTMessage) -> None:
        del client, userdata
        self._acknowledge_at_once()
        self._deliver(
            Packet(
                topic=message.topic,
                payload=bytes(message.payload),
                qos=message.qos,
                retain=bool(message.retain),
            )
        )

    def _on_publish(
        self, client: paho.Client, userdata: object, mid: int, reason: ReasonCode, properties: object
    ) -> None:
        del client, userdata, reason, properties
        self._acknowledge_at_once()
        with self._room:
            size = self._waiting.pop(mid, None)
            if size is None:
                self._acknowledged.add(mid)  # before publish had returned
            else:
                self._waiting_bytes -= size
            self._room.notify_all()

    # --- pieces

    def _subscribe(self, filters: list[str]) -> None:
        if not self._connected.is_set():
            return
        for at in range(0, len(filters), FILTERS_PER_SUBSCRIBE):
            self._client.subscribe([(each, 1) for each in filters[at : at + FILTERS_PER_SUBSCRIBE]])

    def _acknowledge_at_once(self) -> None:
        sock: Any = self._client.socket()
        if sock is not None and hasattr(socket, "TCP_QUICKACK"):
            with contextlib.suppress(OSError, ValueError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _tls(self) -> ssl.SSLContext:
        cafile = None if self._address.ca_file is None else os.fspath(self._address.ca_file)
        return ssl.create_default_context(cafile=cafile)

    def _await_answer(self) -> None:
        answered = self._answered.wait(CONNECT_S)
        if answered and self._refusal is None:
            return
        self._closing = True
        self._client.disconnect()
        self._client.loop_stop()
        if not answered:
            raise self._unreachable(f"no answer in {CONNECT_S:.0f} s; is it an MQTT broker?")
        raise RefusedError(f"{self._address} refuses: {self._refusal}", fix="check --user and --password-file")

    def _unreachable(self, reason: str) -> BrokerUnreachableError:
        return BrokerUnreachableError(
            f"no broker at {self._address}: {reason}", fix="start one (iotsplit broker) or check --broker"
        )
