"""Users and TLS on a real Mosquitto: who gets in, and what the others are told."""

import queue
import subprocess
from pathlib import Path

import pytest

from iotsplit.errors import BrokerUnreachableError, RefusedError, UsageError, UserError
from iotsplit.packet import Packet
from iotsplit.runtime.address import BrokerAddress
from iotsplit.runtime.link import LinkChange
from iotsplit.runtime.mqtt import MqttLink
from iotsplit_broker.process import Broker
from tests.broker.conftest import Certificates, StartBroker, openssl

pytestmark = pytest.mark.broker


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    subprocess.run(
        ["mosquitto_passwd", "-c", "-b", str(path), "anna", "right"], check=True, capture_output=True
    )
    return path


def echo(
    broker: Broker,
    *,
    ca: Path | None = None,
    user: str | None = None,
    password: str | None = None,
    identity: tuple[Path, Path] | None = None,
) -> bytes:
    """Connect, say something to ourselves, give what came back."""
    url = f"{broker.settings.scheme}://127.0.0.1:{broker.settings.port}"
    link = MqttLink(
        BrokerAddress.parse(url, user=user, password=password, ca_file=ca, identity=identity), "test"
    )
    inbox: queue.SimpleQueue[Packet | LinkChange] = queue.SimpleQueue()
    link.open(inbox.put, last_will=None)
    try:
        link.subscribe(frozenset({"echo"}))
        link.publish(Packet(topic="echo", payload=b"hello"))
        event = inbox.get(timeout=10)
    finally:
        link.close()
    assert isinstance(event, Packet)
    return event.payload


def refused(broker: Broker, kind: type[UserError], **access: object) -> UserError:
    with pytest.raises(kind) as caught:
        echo(broker, **access)  # type: ignore[arg-type]  # tests only
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_known_user_gets_in(start_mosquitto: StartBroker, users: Path) -> None:
    assert echo(start_mosquitto(users_file=users), user="anna", password="right") == b"hello"


def test_a_wrong_password_is_refused_without_being_repeated(start_mosquitto: StartBroker, users: Path) -> None:
    error = refused(start_mosquitto(users_file=users), RefusedError, user="anna", password="wr0ng")
    assert "user anna" in error.message
    assert "--password-file" in error.fix
    assert "wr0ng" not in str(error)


def test_nobody_is_refused_where_users_are_known(start_mosquitto: StartBroker, users: Path) -> None:
    error = refused(start_mosquitto(users_file=users), RefusedError)
    assert "without a user" in error.message


def test_a_certificate_of_the_named_authority_is_trusted(
    start_mosquitto: StartBroker, certificates: Certificates
) -> None:
    broker = start_mosquitto(cert_file=certificates.cert, key_file=certificates.key)
    assert echo(broker, ca=certificates.ca) == b"hello"


def test_a_certificate_of_another_authority_is_refused(
    start_mosquitto: StartBroker, certificates: Certificates, other_certificates: Certificates
) -> None:
    broker = start_mosquitto(cert_file=certificates.cert, key_file=certificates.key)
    error = refused(broker, RefusedError, ca=other_certificates.ca)
    assert "not to be trusted" in error.message


def test_the_systems_authorities_do_not_know_ours(
    start_mosquitto: StartBroker, certificates: Certificates
) -> None:
    broker = start_mosquitto(cert_file=certificates.cert, key_file=certificates.key)
    assert "--ca-file" in refused(broker, RefusedError).fix


@pytest.fixture
def mutual(start_mosquitto: StartBroker, certificates: Certificates) -> Broker:
    """A broker that wants to see its clients' certificates."""
    ca, cert, key = certificates.ca, certificates.cert, certificates.key
    return start_mosquitto(cert_file=cert, key_file=key, client_ca_file=ca)


def test_who_shows_a_certificate_of_the_authority_gets_in(mutual: Broker, certificates: Certificates) -> None:
    assert echo(mutual, ca=certificates.ca, identity=(certificates.cert, certificates.key)) == b"hello"


def test_who_shows_none_is_told_to(mutual: Broker, certificates: Certificates) -> None:
    assert "--cert-file" in refused(mutual, UserError, ca=certificates.ca).fix


def test_a_certificate_of_another_authority_does_not_help(
    mutual: Broker, certificates: Certificates, other_certificates: Certificates
) -> None:
    foreign = (other_certificates.cert, other_certificates.key)
    error = refused(mutual, UserError, ca=certificates.ca, identity=foreign)
    assert f"trusts who signed {other_certificates.cert}" in error.fix


def test_keys_of_other_certificates_and_locked_ones_are_refused(
    mutual: Broker, certificates: Certificates, other_certificates: Certificates, tmp_path: Path
) -> None:
    swapped = (certificates.cert, other_certificates.key)
    assert "is not the key of" in refused(mutual, UsageError, ca=certificates.ca, identity=swapped).message
    locked = tmp_path / "locked.pem"
    openssl("pkey", "-in", certificates.key, "-aes256", "-passout", "pass:x", "-out", locked)
    pair = (certificates.cert, locked)
    assert "locked with a password" in refused(mutual, UsageError, ca=certificates.ca, identity=pair).message


def test_a_plain_connection_to_a_tls_port_is_told_to_use_tls(
    start_mosquitto: StartBroker, certificates: Certificates
) -> None:
    broker = start_mosquitto(cert_file=certificates.cert, key_file=certificates.key)
    link = MqttLink(BrokerAddress.parse(f"mqtt://127.0.0.1:{broker.settings.port}"), "test")
    with pytest.raises(BrokerUnreachableError, match="mqtts://"):
        link.open(lambda _: None, last_will=None)


def test_a_tls_connection_to_a_plain_port_is_told_so(start_mosquitto: StartBroker) -> None:
    broker = start_mosquitto()
    link = MqttLink(BrokerAddress.parse(f"mqtts://127.0.0.1:{broker.settings.port}"), "test")
    with pytest.raises(BrokerUnreachableError, match="TLS"):
        link.open(lambda _: None, last_will=None)
