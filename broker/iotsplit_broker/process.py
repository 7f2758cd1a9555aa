"""A broker as a child process: Mosquitto where it is installed, else the embedded one."""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from iotsplit.errors import RunFailedError, UsageError, UserError
from iotsplit.runtime import clock, processes
from iotsplit.runtime.address import identity_of
from iotsplit_broker.settings import BrokerSettings, mosquitto_conf, rumqttd_conf

# Debian puts it where users do not look, Homebrew where launchd does not.
MOSQUITTO_PLACES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")
READY_TIMEOUT_S = 10.0
LOOK_EVERY_S = 0.01
ATTEMPTS = 5
LOG_LINES = 5
EMBEDDED_LACKS = "retained messages are lost when it ends, no access rules, no TLS"


class Kind(StrEnum):
    """Which broker to start."""

    AUTO = "auto"
    MOSQUITTO = "mosquitto"
    EMBEDDED = "embedded"


@dataclass(frozen=True, kw_only=True)
class Broker:
    """A running broker.

    Args:
        settings: with the port that it listens on.
        kind: which one it is.
        name: name and version, for people.
        process: the child.
    """

    settings: BrokerSettings
    kind: Kind
    name: str
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """End it."""
        processes.stop(self.process)


def find_mosquitto() -> str | None:
    """The path of the mosquitto program."""
    beyond = os.pathsep.join(MOSQUITTO_PLACES)
    return shutil.which("mosquitto") or shutil.which("mosquitto", path=beyond)


def choose(kind: Kind) -> Kind:
    """The broker that can be started here.

    Raises:
        UsageError: it is not installed.
    """
    if kind is not Kind.EMBEDDED and find_mosquitto() is not None:
        return Kind.MOSQUITTO
    if kind is not Kind.MOSQUITTO and importlib.util.find_spec("iotcore") is not None:
        return Kind.EMBEDDED
    wanted = {Kind.AUTO: "no broker", Kind.MOSQUITTO: "mosquitto", Kind.EMBEDDED: "the embedded broker"}[kind]
    raise UsageError(
        f"{wanted} {'is' if kind is Kind.AUTO else 'is not'} installed",
        fix="apt install mosquitto, or pip install 'iotsplit[embedded]'",
    )


def start(settings: BrokerSettings, kind: Kind = Kind.AUTO) -> Broker:
    """Start a broker; return when it accepts connections.

    It dies with the thread that called this (Linux), whatever ends that.

    Raises:
        UsageError: it is not installed, or the settings do not fit it.
        RunFailedError: it does not start.
    """
    chosen = choose(kind)
    _prepare(settings, chosen)
    launch = {Kind.MOSQUITTO: _launch_mosquitto, Kind.EMBEDDED: _launch_embedded}[chosen]
    if settings.port:
        return _start_once(settings, chosen, launch)
    for _ in range(ATTEMPTS - 1):
        # Between finding a port free and listening on it someone else may take it.
        try:
            return _start_once(replace(settings, port=_free_port(settings.host)), chosen, launch)
        except RunFailedError:
            continue
    return _start_once(replace(settings, port=_free_port(settings.host)), chosen, launch)


def _prepare(settings: BrokerSettings, kind: Kind) -> None:
    _check_files(settings)
    if kind is Kind.EMBEDDED and (settings.users_file or settings.cert_file or settings.include_dir):
        raise UsageError(
            "the embedded broker knows neither users, TLS nor bridges here",
            fix="install Mosquitto, or listen on loopback",
        )
    try:
        settings.directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"directory {settings.directory} cannot be made: {error.strerror}", fix="choose another --directory"
        ) from None


def _check_files(settings: BrokerSettings) -> None:
    certificate, key, authority = settings.cert_file, settings.key_file, settings.client_ca_file
    for path in (settings.users_file, certificate, key, authority, settings.acl_file):
        if path is not None and not path.is_file():
            raise UsageError(f"{path} is not there", fix="check the path")
    if identity_of(certificate, key) is None and authority is not None:
        raise UsageError("clients show certificates in TLS only", fix="give --cert-file with --client-ca-file")
    if settings.include_dir is not None and not settings.include_dir.is_dir():
        raise UsageError(f"{settings.include_dir} is no directory", fix="check --include-dir")
    if settings.acl_file is not None and settings.users_file is None:
        raise UsageError("access rules need users", fix="give --users-file with --acl-file")


Launch = Callable[[BrokerSettings, Path], tuple[str, subprocess.Popen[bytes]]]


def _start_once(settings: BrokerSettings, kind: Kind, launch: Launch) -> Broker:
    log = settings.directory / "broker.log"
    log.unlink(missing_ok=True)
    if settings.port and _answers(settings):
        raise UsageError(
            f"port {settings.port} of {settings.host} is taken", fix="stop who has it, or choose another --port"
        )
    name, process = launch(settings, log)
    try:
        _await_ready(process, settings, log)
    except BaseException:
        processes.stop(process)
        raise
    return Broker(settings=settings, kind=kind, name=name, process=process)


def _launch_mosquitto(settings: BrokerSettings, log: Path) -> tuple[str, subprocess.Popen[bytes]]:
    program = find_mosquitto() or "mosquitto"
    conf = settings.directory / "mosquitto.conf"
    # Changing to its own user would cost it the parent-death signal, and our directory is not that user's.
    conf.write_text(mosquitto_conf(settings, user="root" if os.getuid() == 0 else None), encoding="utf-8")
    process = processes.start([program, "-c", str(conf)], log=log)
    return f"Mosquitto {_version(program)}".strip(), process


def _version(program: str) -> str:
    told = subprocess.run([program, "-h"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\S+)", told)
    return found[1] if found else ""


def _launch_embedded(settings: BrokerSettings, log: Path) -> tuple[str, subprocess.Popen[bytes]]:
    conf = settings.directory / "embedded.toml"
    conf.write_text(rumqttd_conf(settings), encoding="utf-8")
    words = [sys.executable, "-m", "iotsplit_broker.embedded", str(conf)]
    return "the embedded broker", processes.start(words, log=log)


def _await_ready(process: subprocess.Popen[bytes], settings: BrokerSettings, log: Path) -> None:
    until = clock.now() + READY_TIMEOUT_S
    pause = threading.Event()
    while clock.now() < until:
        if process.poll() is not None:
            raise _failure(f"the broker ended at once with code {process.returncode}", log)
        if _answers(settings):
            return
        pause.wait(LOOK_EVERY_S)
    raise _failure(f"the broker does not answer within {READY_TIMEOUT_S:.0f} s", log)


def _failure(what: str, log: Path) -> UserError:
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    last = " | ".join(line.strip() for line in text.splitlines()[-LOG_LINES:])
    return RunFailedError(f"{what}: {last or 'it says nothing'}", fix=f"see {log}")


def _answers(settings: BrokerSettings) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 - compared only
    try:
        socket.create_connection((host, settings.port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise UsageError(f"cannot listen on {host}: {error.strerror}", fix="check --host") from None
        return int(probe.getsockname()[1])
