"""The section of a ``mosquitto.conf`` that carries a fleet between two sites."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from iotsplit.errors import UsageError
from iotsplit.runtime.address import BrokerAddress
from iotsplit.topics import Topics
from iotsplit_broker.access import check_user
from iotsplit_broker.crossings import Crossing

KEEPALIVE_S = 15
LONGEST_RETRY_S = 10  # an agent that is silent for 30 s is taken for lost
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
        name: of the connection, and its client id on the far side: one for each site.
        remote: the far broker, with user and password.
        here: the fleet's topics at this Mosquitto.
        there: the fleet's topics at the far broker.
        protocol: not AUTO.
        cert_file: certificate of this bridge, for brokers that want one.
        key_file: private key of that certificate.
    """

    name: str
    remote: BrokerAddress
    here: Topics
    there: Topics
    protocol: Protocol
    cert_file: Path | None = None
    key_file: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what Mosquitto's bridges cannot do or would read as something else.

        Raises:
            UsageError: with the option to change.
        """
        check_user(self.name)
        if self.remote.is_websocket:
            raise UsageError(
                f"a Mosquitto bridge cannot use {self.remote}", fix="name an mqtt:// or mqtts:// port"
            )
        if (self.cert_file is None) != (self.key_file is None):
            raise UsageError("a certificate needs its key", fix="give --cert-file and --key-file together")
        if self.cert_file is not None and not self.remote.is_encrypted:
            raise UsageError(f"a certificate is given but {self.remote} is not encrypted", fix="write mqtts://")
        if self.remote.user is not None and self.remote.password is None:
            raise UsageError(f"user {self.remote.user} has no password", fix="give it in --password-file")
        for what, text in (("user", self.remote.user), ("password", self.remote.password)):
            if text is not None and (text != text.strip() or not text or re.search(r"[\x00-\x1f\x7f]", text)):
                raise UsageError(
                    f"the bridge's {what} is empty, or has spaces around it or control characters",
                    fix="choose one that a line of mosquitto.conf can hold",
                )


def bridge_section(bridge: Bridge, carried: Sequence[Crossing], *, notes: Sequence[str] = ()) -> str:
    """The section.

    Args:
        bridge: from where to where.
        carried: what crosses.
        notes: lines for people at its top.
    """
    host = f"[{bridge.remote.host}]" if ":" in bridge.remote.host else bridge.remote.host
    lines = [
        *(f"# {note}" for note in notes),
        f"connection {bridge.name}",
        f"address {host}:{bridge.remote.port}",
        *_protocol(bridge.protocol),
        f"remote_clientid {bridge.name}",
        f"local_clientid {bridge.name}-here",
        *_login(bridge.remote),
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
    return "\n".join(lines) + "\n"


def _protocol(protocol: Protocol) -> list[str]:
    return [f"bridge_protocol_version {VERSIONS[protocol]}", *PRICES[protocol]]


def _login(remote: BrokerAddress) -> list[str]:
    if remote.user is None:
        return []
    return [f"remote_username {remote.user}", f"remote_password {remote.password}"]


def _encryption(bridge: Bridge) -> list[str]:
    if not bridge.remote.is_encrypted:
        return []
    ca = bridge.remote.ca_file
    lines = [f"bridge_capath {SYSTEM_AUTHORITIES}" if ca is None else f"bridge_cafile {ca.resolve()}"]
    if bridge.cert_file is not None and bridge.key_file is not None:
        lines += [
            f"bridge_certfile {bridge.cert_file.resolve()}",
            f"bridge_keyfile {bridge.key_file.resolve()}",
        ]
    return lines


def _topic(crossing: Crossing, bridge: Bridge) -> str:
    return f"topic {crossing.path} {crossing.way} {crossing.qos} {bridge.here.root} {bridge.there.root}"
