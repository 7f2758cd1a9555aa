"""The section of a ``mosquitto.conf`` that carries a fleet between two sites."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from iotsplit.errors import UsageError
from iotsplit.runtime.address import BrokerAddress
from iotsplit.topics import Topics
from iotsplit_broker.configuration.crossings import Crossing, Way

KEEPALIVE_S = 15
LONGEST_RETRY_S = 10  # an agent that is silent for 30 s is taken for lost
MAX_NAME = 19  # with -out behind it, what every broker takes for a client id
NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_NAME}}}")
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")
SYSTEM_AUTHORITIES = "/etc/ssl/certs"


class Protocol(StrEnum):
    """MQTT version of a bridge: 5 or 3.1.1."""

    AUTO = "auto"
    V5 = "v5"
    V311 = "v311"


VERSIONS = {Protocol.V5: "mqttv50", Protocol.V311: "mqttv311"}
# Mosquitto 2.0 sends no session expiry interval in a bridge's CONNECT (its issues 1632, 2424, 2793, 2980).
PRICES = {
    Protocol.V5: (
        "# In MQTT 5 a bridge of Mosquitto 2.0 has no session on the far side: what comes in while it is down",
        "# is lost and asked for again, what is retained comes when it is back, and what was cleared meanwhile",
        "# stays here. Between two Mosquittos --protocol v311 has none of that.",
    ),
    Protocol.V311: (
        "# In 3.1.1 only a far broker that knows Mosquitto's bridges keeps the retain flag of what comes.",
        "# Where it does not, agents here miss adapter versions until the bridge connects anew.",
        "try_private true",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Bridge:
    """A bridge of a Mosquitto to another broker.

    Args:
        name: of this site at the far broker: its connections are called so, with -out and -in.
        remote: the far broker, and the certificate that the bridge shows there; user and password are not used.
        users: users of the connections out and in at the far broker, or none; the same one twice will do unless
            the far broker makes the user the client id.
        password: of both users.
        here: the fleet's topics at this Mosquitto.
        there: the fleet's topics at the far broker.
        protocol: not AUTO.
    """

    name: str
    remote: BrokerAddress
    here: Topics
    there: Topics
    protocol: Protocol
    users: tuple[str, str] | None = None
    password: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse what Mosquitto's bridges cannot do or would read as something else.

        Raises:
            UsageError: with the option to change.
        """
        if NAME.fullmatch(self.name) is None:
            raise UsageError(
                f"the bridge's name {self.name!r} cannot be a client id",
                fix=f"give --name, with 1 to {MAX_NAME} of the characters A-Z a-z 0-9 _ -",
            )
        if self.remote.is_websocket:
            raise UsageError(
                f"a Mosquitto bridge cannot use {self.remote}", fix="name an mqtt:// or mqtts:// port"
            )
        self._check_login()

    def _check_login(self) -> None:
        if (self.users is None) != (self.password is None):
            raise UsageError(
                "a user needs a password, and a password a user", fix="give --user and --password-file"
            )
        for text in (*(self.users or ()), self.password):
            if text is not None and (text != text.strip() or not text or UNPRINTABLE.search(text)):
                raise UsageError(
                    "the bridge's user or password is empty, or has spaces around it or control characters",
                    fix="choose one that a line of mosquitto.conf can hold",
                )


def bridge_section(bridge: Bridge, carried: Sequence[Crossing], *, notes: Sequence[str] = ()) -> str:
    """The section: a connection for each way.

    Mosquitto leaves Nagle's algorithm on in its bridges. With one connection for both ways a message waits for
    the far side's delayed acknowledgement of the PUBACK before: 44 ms a round trip on loopback, 1 ms with two
    (measured, Mosquitto 2.0.11, 1 to 60 KiB).

    Args:
        bridge: from where to where.
        carried: what crosses; what goes both ways has to be on one connection, or it would go round.
        notes: lines for people at its top.
    """
    out = [each for each in carried if each.way is not Way.IN]
    coming = [each for each in carried if each.way is Way.IN]
    lines = [
        *(f"# {note}" for note in notes),
        "# A connection for each way: on one for both, a message waits 40 ms after one that came before.",
        *_connection(bridge, "out", out, None if bridge.users is None else bridge.users[0]),
        "",
        *_connection(bridge, "in", coming, None if bridge.users is None else bridge.users[1]),
    ]
    return "\n".join(lines) + "\n"


def _connection(bridge: Bridge, way: str, carried: Sequence[Crossing], user: str | None) -> list[str]:
    host = f"[{bridge.remote.host}]" if ":" in bridge.remote.host else bridge.remote.host
    lines = [
        f"connection {bridge.name}-{way}",
        f"address {host}:{bridge.remote.port}",
        *_protocol(bridge.protocol),
        f"remote_clientid {bridge.name}-{way}",
        f"local_clientid {bridge.name}-{way}-here",
        *([] if user is None else [f"remote_username {user}", f"remote_password {bridge.password}"]),
        *_encryption(bridge),
        "start_type automatic",
        "# What is said while the bridge is down waits on both sides, within max_queued_messages and _bytes.",
        "cleansession false",
        f"keepalive_interval {KEEPALIVE_S}",
        f"restart_timeout 1 {LONGEST_RETRY_S}",
        "# Nothing is said outside the fleet's own topics on the far side.",
        "notifications_local_only true",
        "bridge_attempt_unsubscribe false",
    ]
    for each in carried:
        lines += [f"# {each.why}", _topic(each, bridge)]
    return lines


def _protocol(protocol: Protocol) -> list[str]:
    return [f"bridge_protocol_version {VERSIONS[protocol]}", *PRICES[protocol]]


def _encryption(bridge: Bridge) -> list[str]:
    if not bridge.remote.is_encrypted:
        return []
    ca = bridge.remote.ca_file
    lines = [f"bridge_capath {SYSTEM_AUTHORITIES}" if ca is None else f"bridge_cafile {ca.resolve()}"]
    if bridge.remote.identity is not None:
        certificate, key = bridge.remote.identity
        lines += [f"bridge_certfile {certificate.resolve()}", f"bridge_keyfile {key.resolve()}"]
    return lines


def _topic(crossing: Crossing, bridge: Bridge) -> str:
    return f"topic {crossing.path} {crossing.way} {crossing.qos} {bridge.here.root} {bridge.there.root}"
