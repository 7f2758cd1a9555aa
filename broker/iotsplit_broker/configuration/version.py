"""Which MQTT version a broker speaks, asked without logging in."""

import socket
from collections.abc import Callable

from iotsplit.errors import UserError
from iotsplit.runtime.address import BrokerAddress

TIMEOUT_S = 10.0
CONNECT_V5 = bytes.fromhex("100d 0004 4d515454 05 02 000a 00 0000")
"""CONNECT of MQTT 5: clean start, keep alive 10 s, no properties, an empty client id."""
CONNACK, UNSUPPORTED = 0x20, 0x84
DISCONNECT = b"\xe0\x00"
SHORTEST_V5 = 3  # flags, reason code, length of the properties; 3.1.1 has no properties


def speaks_v5(address: BrokerAddress, explain: Callable[[Exception, BrokerAddress], UserError]) -> bool:
    """Whether a broker answers in MQTT 5, be it with a refusal.

    Args:
        address: of the broker; user and password are not sent.
        explain: makes what goes wrong clear to people.

    Raises:
        UserError: nobody answers there.
    """
    try:
        with socket.create_connection((address.host, address.port), timeout=TIMEOUT_S) as plain:
            context = address.tls()
            if context is None:
                return _ask(plain)
            with context.wrap_socket(plain, server_hostname=address.host) as encrypted:
                return _ask(encrypted)
    except OSError as error:
        raise explain(error, address) from None


def _ask(connection: socket.socket) -> bool:
    connection.sendall(CONNECT_V5)
    try:
        answer = connection.recv(64)
    except ConnectionResetError:
        return False
    return is_v5(answer)


def is_v5(answer: bytes) -> bool:
    """Whether an answer begins as a CONNACK of MQTT 5; older brokers send a shorter one or hang up."""
    if len(answer) < 2 + SHORTEST_V5 or answer[0] != CONNACK:
        return False
    return answer[1] >= SHORTEST_V5 and answer[3] != UNSUPPORTED
