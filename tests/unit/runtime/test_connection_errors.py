"""What people are told when there is no connection; without any broker."""

import queue
import socket
import ssl
import threading
from collections.abc import Iterator

import pytest

from iotsplit.errors import BrokerUnreachableError, RefusedError, UserError
from iotsplit.runtime import connection
from iotsplit.runtime.address import BrokerAddress
from iotsplit.runtime.connection import explain
from iotsplit.runtime.mqtt import MqttLink

ADDRESS = BrokerAddress.parse("mqtts://broker.local:8883")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def opening(port: int, scheme: str = "mqtt") -> UserError:
    link = MqttLink(BrokerAddress.parse(f"{scheme}://127.0.0.1:{port}"), "test")
    with pytest.raises(UserError) as caught:
        link.open(queue.SimpleQueue[object]().put, last_will=None)
    link.close()
    return caught.value


def test_nobody_listening_is_said_with_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    error = opening(port)
    assert isinstance(error, BrokerUnreachableError)
    assert f"mqtt://127.0.0.1:{port}" in error.message
    assert "iotsplit broker" in error.fix


def test_silence_is_a_time_out(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "ANSWER_TIMEOUT_S", 0.05)
    error = opening(listener.getsockname()[1])
    assert isinstance(error, BrokerUnreachableError)
    assert "no answer" in error.message


def test_a_server_that_hangs_up_is_no_broker(listener: socket.socket) -> None:
    def hang_up() -> None:
        client, _ = listener.accept()
        client.recv(1000)
        client.close()

    thread = threading.Thread(target=hang_up)
    thread.start()
    error = opening(listener.getsockname()[1])
    thread.join()
    assert isinstance(error, BrokerUnreachableError)
    assert "mqtts://" in error.fix


@pytest.mark.parametrize(
    ("cause", "kind", "word"),
    [
        (socket.gaierror(-2, "Name or service not known"), BrokerUnreachableError, "broker.local"),
        (TimeoutError(), BrokerUnreachableError, "no answer"),
        (ConnectionRefusedError(), BrokerUnreachableError, "nobody listens"),
        (OSError(101, "Network is unreachable"), BrokerUnreachableError, "Network is unreachable"),
        (ssl.SSLError(1, "wrong version number"), BrokerUnreachableError, "TLS"),
    ],
)
def test_each_cause_has_words_of_its_own(cause: Exception, kind: type[UserError], word: str) -> None:
    error = explain(cause, ADDRESS)
    assert type(error) is kind
    assert word in error.message
    assert "\n" not in str(error)


def test_an_untrusted_certificate_is_a_refusal() -> None:
    cause = ssl.SSLCertVerificationError(1, "failed")
    cause.verify_message = "self-signed certificate"
    error = explain(cause, ADDRESS)
    assert isinstance(error, RefusedError)
    assert "self-signed certificate" in error.message
    assert "--ca-file" in error.fix
