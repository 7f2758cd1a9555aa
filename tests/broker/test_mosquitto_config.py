"""The whole configuration that we write for Mosquitto, as a distribution's service would start it."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from iotsplit.errors import RefusedError, UserError
from iotsplit.packet import Packet
from iotsplit.runtime import processes
from iotsplit.runtime.address import BrokerAddress
from iotsplit.runtime.link import LinkChange
from iotsplit.runtime.mqtt import MqttLink
from iotsplit_broker.configuration.config import main
from iotsplit_broker.process import find_mosquitto
from tests.broker.conftest import Certificates
from tests.broker.sites import SECRET, users_file
from tests.waiting import comes_true

pytestmark = [pytest.mark.slow, pytest.mark.broker]


def opened(url: str, user: str | None, ca: Path, deliver: Callable[[Packet | LinkChange], None]) -> MqttLink:
    link = MqttLink(BrokerAddress.parse(url, user=user, password=SECRET, ca_file=ca), "x")
    link.open(deliver, last_will=None)
    return link


def test_a_device_gets_in_with_tls_and_its_password_and_nobody_else(
    tmp_path: Path, certificates: Certificates
) -> None:
    program = find_mosquitto()
    if program is None:
        pytest.skip("Mosquitto is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place = tmp_path / "etc"
    main(
        [
            *("--for=mosquitto", f"--output={place}", "--host=127.0.0.1", f"--port={port}", "--edges=edge-1"),
            *(f"--cert-file={certificates.cert}", f"--key-file={certificates.key}", f"--directory={tmp_path}"),
        ]
    )
    users_file(place / "users", ["press"])
    conf = place / "mosquitto.conf"
    if os.getuid() == 0:  # the tests' directories are not its own user's
        conf.write_text(conf.read_text() + "user root\n")
    broker = processes.start([program, "-c", str(conf)], log=tmp_path / "log")
    heard: list[Packet | LinkChange] = []
    url = f"mqtts://127.0.0.1:{port}"
    try:
        assert comes_true(lambda: answers(url, certificates.ca))
        link = opened(url, "press", certificates.ca, heard.append)
        own = Packet(topic="iotsplit/default/probe/press", payload=bytes(61440))
        link.subscribe(frozenset({own.topic}))
        link.publish(own)
        assert comes_true(lambda: bool(heard))
        link.close()
        with pytest.raises(RefusedError, match="without a user"):
            opened(url, None, certificates.ca, heard.append)
    finally:
        processes.stop(broker)
    assert [packet.topic for packet in heard if isinstance(packet, Packet)] == [own.topic]


def answers(url: str, ca: Path) -> bool:
    """Whether somebody is there, be it to refuse us."""
    try:
        opened(url, None, ca, lambda _: None).close()
    except RefusedError:
        return True
    except UserError:
        return False
    return True
