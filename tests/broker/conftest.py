"""Brokers of our own, and certificates that the openssl program makes."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from iotsplit_broker.process import Broker, Kind, find_mosquitto, start
from iotsplit_broker.settings import BrokerSettings

StartBroker = Callable[..., Broker]


@dataclass(frozen=True)
class Certificates:
    """A certificate authority and a certificate for 127.0.0.1 that it signed."""

    ca: Path
    cert: Path
    key: Path


@pytest.fixture
def start_mosquitto(tmp_path: Path) -> Iterator[StartBroker]:
    """Starts Mosquitto with any settings; all are ended after the test."""
    if find_mosquitto() is None:
        pytest.skip("Mosquitto is not installed")
    brokers: list[Broker] = []

    def begin(**settings: object) -> Broker:
        values = {"directory": tmp_path / "broker", **settings}
        brokers.append(start(BrokerSettings(**values), Kind.MOSQUITTO))  # type: ignore[arg-type]  # tests only
        return brokers[-1]

    yield begin
    for broker in brokers:
        broker.stop()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if shutil.which("openssl") is None:
        pytest.skip("the openssl program is not installed")
    directory = tmp_path_factory.mktemp("certificates")
    return make_certificates(directory)


@pytest.fixture(scope="session")
def other_certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Of another authority."""
    return make_certificates(tmp_path_factory.mktemp("other"))


def make_certificates(directory: Path) -> Certificates:
    made = Certificates(directory / "ca.pem", directory / "cert.pem", directory / "key.pem")
    ca_key, request, names = directory / "ca.key", directory / "request.pem", directory / "names"
    names.write_text("subjectAltName=IP:127.0.0.1\n")
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *new, "-keyout", ca_key, "-out", made.ca, "-days", "2", "-subj", "/CN=test ca")
    openssl("req", *new, "-keyout", made.key, "-out", request, "-subj", "/CN=broker")
    signed_by: list[str | Path] = ["-CA", made.ca, "-CAkey", ca_key, "-CAcreateserial"]
    openssl("x509", "-req", "-in", request, *signed_by, "-out", made.cert, "-days", "2", "-extfile", names)
    return made


def openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
