"""Where a broker is, how to get in, and whom to trust there."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import SplitResult, unquote, urlsplit

from iotsplit.errors import UsageError
from iotsplit.limits import NO_LIMITS, BrokerLimits
from iotsplit.options import BrokerOptions

DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
ENCRYPTED = frozenset({"mqtts", "wss"})
EXAMPLE = "write mqtt://HOST:PORT, or mqtts://HOST:PORT for TLS"


@dataclass(frozen=True, kw_only=True)
class BrokerAddress:
    """A broker's address with everything that a connection needs.

    Args:
        scheme: ``mqtt``, ``mqtts``, ``ws`` or ``wss``.
        host: name or IP address.
        port: TCP port.
        path: HTTP path of a WebSocket.
        user: user name, or None to connect as nobody.
        password: never shown.
        ca_file: certificate authority to trust instead of the system's.
        limits: what the broker allows us.
    """

    scheme: str
    host: str
    port: int
    path: str = ""
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    limits: BrokerLimits = NO_LIMITS

    @classmethod
    def parse(
        cls,
        url: str,
        *,
        user: str | None = None,
        password: str | None = None,
        ca_file: Path | None = None,
        limits: BrokerLimits = NO_LIMITS,
    ) -> Self:
        """Read an address as people write it.

        Args:
            url: ``mqtt://[USER@]HOST[:PORT]``, or the same with mqtts, ws or wss.
            user: user name; beats the one in the address.
            password: from a file or the environment; without a user it is not used.
            ca_file: certificate authority that signed the broker's certificate.
            limits: what the broker allows us.

        Raises:
            UsageError: it is no such address, or holds a password.
        """
        parts = _split(url)
        user = user or (unquote(parts.username) if parts.username else None)
        if ca_file is not None and parts.scheme not in ENCRYPTED:
            raise UsageError(
                f"a certificate authority is given but {url} is not encrypted",
                fix="write mqtts:// or leave the file out",
            )
        return cls(
            scheme=parts.scheme,
            host=parts.hostname or "",
            port=parts.port or DEFAULT_PORTS[parts.scheme],
            path=parts.path,
            user=user,
            password=password if user else None,
            ca_file=ca_file,
            limits=limits,
        )

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"

    @property
    def is_encrypted(self) -> bool:
        """Whether TLS is spoken."""
        return self.scheme in ENCRYPTED

    @property
    def is_websocket(self) -> bool:
        """Whether MQTT is wrapped in HTTP."""
        return self.scheme.startswith("ws")

    def tls(self) -> ssl.SSLContext | None:
        """Checks the broker's certificate and name; None without encryption.

        Raises:
            UsageError: the certificate authority's file cannot be used.
        """
        if not self.is_encrypted:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except ssl.SSLError:
            raise UsageError(
                f"{self.ca_file} holds no certificate", fix="name a PEM file with -----BEGIN CERTIFICATE-----"
            ) from None
        except OSError as error:
            raise UsageError(
                f"certificate authority {self.ca_file} cannot be read: {error.strerror}", fix="check the path"
            ) from None
        context.sslsocket_class = _TidySocket
        return context


class _TidySocket(ssl.SSLSocket):
    """Closes itself when the handshake fails; paho leaves that to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"broker address {_hidden(url)!r}: {error}", fix=EXAMPLE) from None
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname or port == 0:
        raise UsageError(f"{_hidden(url)!r} is no broker address", fix=EXAMPLE)
    if parts.password is not None:
        raise UsageError(
            f"the broker address {_hidden(url)!r} holds a password, which others can see",
            fix="put it into a file (--password-file) or into IOTSPLIT_PASSWORD",
        )
    if parts.query or parts.fragment or (parts.path.strip("/") and not parts.scheme.startswith("ws")):
        raise UsageError(f"the broker address {url!r} goes on after the port", fix=EXAMPLE)
    return parts


def _hidden(url: str) -> str:
    """The address without what may be a password."""
    start, at, rest = url.rpartition("@")
    if not at:
        return url
    scheme, slashes, account = start.rpartition("//")
    return f"{scheme}{slashes}{account.partition(':')[0]}@{rest}"


def address_of(options: BrokerOptions) -> BrokerAddress:
    """The broker that the options name.

    Raises:
        UsageError: the address or the password file cannot be used.
    """
    return BrokerAddress.parse(
        options.broker,
        user=options.user,
        password=options.password(),
        ca_file=options.ca_file,
        limits=options.limits,
    )
