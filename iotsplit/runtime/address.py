"""Where a broker is, how to get in, and whom to trust there."""

import hashlib
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
        identity: files of the certificate and the private key that we show, if the broker wants to see any.
        limits: what the broker allows us.
    """

    scheme: str
    host: str
    port: int
    path: str = ""
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    identity: tuple[Path, Path] | None = None
    limits: BrokerLimits = NO_LIMITS

    @classmethod
    def parse(
        cls,
        url: str,
        *,
        user: str | None = None,
        password: str | None = None,
        ca_file: Path | None = None,
        identity: tuple[Path, Path] | None = None,
        limits: BrokerLimits = NO_LIMITS,
    ) -> Self:
        """Read an address as people write it.

        Args:
            url: ``mqtt://[USER@]HOST[:PORT]``, or the same with mqtts, ws or wss.
            user: user name; beats the one in the address.
            password: from a file or the environment; without a user it is not used.
            ca_file: certificate authority that signed the broker's certificate.
            identity: files of our certificate and its private key.
            limits: what the broker allows us.

        Raises:
            UsageError: it is no such address, or holds a password.
        """
        parts = _split(url)
        user = user or (unquote(parts.username) if parts.username else None)
        if parts.scheme not in ENCRYPTED and (ca_file is not None or identity is not None):
            given = "certificate" if ca_file is None else "certificate authority"
            raise UsageError(
                f"a {given} is given but {url} is not encrypted", fix="write mqtts:// or leave the file out"
            )
        return cls(
            scheme=parts.scheme,
            host=parts.hostname or "",
            port=parts.port or DEFAULT_PORTS[parts.scheme],
            path=parts.path,
            user=user,
            password=password if user else None,
            ca_file=ca_file,
            identity=identity,
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
        """Checks the broker's certificate and name, and shows ours if there is one; None without encryption.

        Raises:
            UsageError: one of the files cannot be used.
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
        if self.identity is not None:
            _show(context, *self.identity)
        context.sslsocket_class = _TidySocket
        return context


def _show(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    def ask() -> str:
        raise UsageError(
            f"the private key {key} is locked with a password", fix="unlock it, as with: openssl pkey"
        )

    try:
        context.load_cert_chain(certificate, key, password=ask)
    except ssl.SSLError as error:
        differ = error.reason == "KEY_VALUES_MISMATCH"
        raise UsageError(
            f"{key} is not the key of {certificate}" if differ else f"{certificate} and {key} are no such pair",
            fix="name PEM files: the certificate with --cert-file, its private key with --key-file",
        ) from None
    except OSError as error:
        raise UsageError(
            f"{certificate} and {key} cannot be read: {error.strerror}", fix="check the paths"
        ) from None


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


def identity_of(cert_file: Path | None, key_file: Path | None) -> tuple[Path, Path] | None:
    """A certificate with its private key, or neither.

    Raises:
        UsageError: only one of them is given.
    """
    if cert_file is not None and key_file is not None:
        return cert_file, key_file
    if cert_file is None and key_file is None:
        return None
    raise UsageError("a certificate needs its key", fix="give --cert-file and --key-file together")


def address_of(options: BrokerOptions) -> BrokerAddress:
    """The broker that the options name.

    Raises:
        UsageError: the address or the password file cannot be used, or a certificate lacks its key.
    """
    return BrokerAddress.parse(
        options.broker,
        user=options.user,
        password=options.password(),
        ca_file=options.ca_file,
        identity=identity_of(options.cert_file, options.key_file),
        limits=options.limits,
    )


def shortened(name: str, longest: int) -> str:
    """A name if it is not too long; else its beginning, and what tells it from others that begin so."""
    if len(name) <= longest:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{name[: longest - 7]}-{digest}"
