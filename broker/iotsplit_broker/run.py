"""``iotsplit broker run``: a broker of our own, ready for fleets."""

import fcntl
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import FrameType

from platformdirs import user_state_path

from iotsplit.errors import RunFailedError, UsageError
from iotsplit.options import CommonOptions, parse
from iotsplit.runtime.processes import die_with_parent, signals_handled
from iotsplit_broker.process import EMBEDDED_LACKS, Broker, Kind, start
from iotsplit_broker.settings import AUTOSAVE_S, LOOPBACK, MAX_MESSAGE_BYTES, BrokerSettings

EXAMPLES = (
    "iotsplit broker",
    "iotsplit broker --port 1883 --host 0.0.0.0 --users-file /etc/iotsplit/users",
    "iotsplit broker --config broker.toml",
)
INTERRUPTED = 130
ENDINGS = (signal.SIGINT, signal.SIGTERM)

Signals = SimpleQueue[int]


@dataclass(frozen=True, kw_only=True)
class BrokerCommand(CommonOptions):
    """The broker.

    Runs Mosquitto with the settings that fleets need, else the embedded broker, until a signal ends it.

    Args:
        port: TCP port; 0 for a free one, which is printed.
        host: Address to listen on; 0.0.0.0 lets other machines in.
        directory: Directory for retained messages and log; by default the user's state directory.
        kind: mosquitto, embedded, or auto for the first that is installed.
        users_file: Users and password hashes made by mosquitto_passwd; without it everybody may connect.
        cert_file: Certificate of this broker; with it the port speaks TLS.
        key_file: Private key of that certificate.
        client_ca_file: Authority whose certificate every client has to show (Mosquitto); needs --cert-file.
        max_message_bytes: Largest message accepted.
        autosave_s: Seconds of retained messages that a power cut may cost (Mosquitto).
        acl_file: Access rules (Mosquitto), made by iotsplit broker config; needs --users-file.
        include_dir: Directory with more Mosquitto settings in .conf files, such as a bridge.
    """

    port: int = 1883
    host: str = LOOPBACK
    directory: Path | None = None
    kind: Kind = Kind.AUTO
    users_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    client_ca_file: Path | None = None
    max_message_bytes: int = MAX_MESSAGE_BYTES
    autosave_s: int = AUTOSAVE_S
    acl_file: Path | None = None
    include_dir: Path | None = None


def main(words: Sequence[str]) -> int:
    """Run a broker until a signal ends it."""
    options = parse(BrokerCommand, words, name="iotsplit broker run", examples=EXAMPLES)
    if os.environ.get("IOTSPLIT_PARENT_DEATH"):
        die_with_parent()
    settings = settings_of(options)
    with _signals() as signals, _alone_in(settings.directory):
        broker = start(settings, options.kind)
        try:
            _announce(broker, as_json=options.json)
            return _until_the_end(broker, signals)
        finally:
            broker.stop()


@contextmanager
def _signals() -> Iterator[Signals]:
    """Queue signals instead of interrupting, so that none can come between start and stop."""
    # Not by blocking them: the child would inherit that, and never end.
    queue: Signals = SimpleQueue()

    def put(number: int, frame: FrameType | None) -> None:
        del frame
        queue.put(number)

    with signals_handled((*ENDINGS, signal.SIGCHLD), put):
        yield queue


def settings_of(options: BrokerCommand) -> BrokerSettings:
    """The settings that the options mean."""
    return BrokerSettings(
        directory=options.directory or user_state_path("iotsplit") / "broker",
        host=options.host,
        port=options.port,
        users_file=options.users_file,
        cert_file=options.cert_file,
        key_file=options.key_file,
        client_ca_file=options.client_ca_file,
        max_message_bytes=options.max_message_bytes,
        autosave_s=options.autosave_s,
        acl_file=options.acl_file,
        include_dir=options.include_dir,
    )


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Hold a directory: two brokers in one would overwrite each other's retained messages."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "lock").open("w")
    except OSError as error:
        raise UsageError(
            f"directory {directory} cannot be used: {error.strerror}", fix="choose another --directory"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"another broker keeps its messages in {directory}", fix="choose another --directory"
            ) from None
        yield


def _announce(broker: Broker, *, as_json: bool) -> None:
    settings = broker.settings
    if broker.kind is Kind.EMBEDDED:
        sys.stderr.write(f"iotsplit: the embedded broker stands in for Mosquitto: {EMBEDDED_LACKS}\n")
    if settings.users_file is None and settings.host not in {LOOPBACK, "localhost", "::1"}:
        sys.stderr.write(f"iotsplit: everybody who reaches {settings.host} may connect; see --users-file\n")
    told = {"host": settings.host, "port": settings.port, "kind": broker.kind, "pid": broker.process.pid}
    line = (
        json.dumps(told) if as_json else f"{settings.scheme}://{settings.host}:{settings.port} ({broker.name})"
    )
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _until_the_end(broker: Broker, signals: Signals) -> int:
    while True:
        number = signals.get()
        if number in ENDINGS:
            return INTERRUPTED if number == signal.SIGINT else 0
        if broker.process.poll() is not None:
            raise RunFailedError(
                f"the broker ended with code {broker.process.returncode}",
                fix=f"see {broker.settings.directory / 'broker.log'}",
            )
