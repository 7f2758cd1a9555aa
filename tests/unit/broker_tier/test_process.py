"""Choosing and starting a broker, where no broker gets as far as to listen."""

import importlib.util
import shutil
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from iotsplit.errors import RunFailedError, UsageError
from iotsplit_broker import process
from iotsplit_broker.process import Kind, choose, start
from iotsplit_broker.settings import BrokerSettings


@pytest.fixture
def settings(tmp_path: Path) -> BrokerSettings:
    return BrokerSettings(directory=tmp_path / "broker")


def installed(monkeypatch: pytest.MonkeyPatch, *, mosquitto: bool, iotcore: bool) -> None:
    monkeypatch.setattr(process, "find_mosquitto", lambda: "/usr/sbin/mosquitto" if mosquitto else None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object() if iotcore else None)


@pytest.mark.parametrize(
    ("kind", "mosquitto", "iotcore", "chosen"),
    [
        (Kind.AUTO, True, True, Kind.MOSQUITTO),
        (Kind.AUTO, False, True, Kind.EMBEDDED),
        (Kind.AUTO, True, False, Kind.MOSQUITTO),
        (Kind.EMBEDDED, True, True, Kind.EMBEDDED),
        (Kind.MOSQUITTO, True, True, Kind.MOSQUITTO),
    ],
)
def test_mosquitto_comes_first_unless_another_is_named(
    monkeypatch: pytest.MonkeyPatch, kind: Kind, mosquitto: bool, iotcore: bool, chosen: Kind
) -> None:
    installed(monkeypatch, mosquitto=mosquitto, iotcore=iotcore)
    assert choose(kind) is chosen


@pytest.mark.parametrize(
    ("kind", "mosquitto", "iotcore", "words"),
    [
        (Kind.AUTO, False, False, "no broker is installed"),
        (Kind.MOSQUITTO, False, True, "mosquitto is not installed"),
        (Kind.EMBEDDED, True, False, "the embedded broker is not installed"),
    ],
)
def test_a_broker_that_is_missing_is_said_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, kind: Kind, mosquitto: bool, iotcore: bool, words: str
) -> None:
    installed(monkeypatch, mosquitto=mosquitto, iotcore=iotcore)
    with pytest.raises(UsageError, match=words) as caught:
        choose(kind)
    assert "apt install mosquitto" in caught.value.fix


def test_mosquitto_is_found_beyond_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "mosquitto"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(process, "MOSQUITTO_PLACES", ("/neither", str(tmp_path)))
    assert process.find_mosquitto() == str(program)


def test_a_missing_file_is_a_usage_error(settings: BrokerSettings, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="users is not there"):
        start(replace(settings, users_file=tmp_path / "users"))


def test_a_certificate_without_its_key_is_a_usage_error(settings: BrokerSettings, tmp_path: Path) -> None:
    (tmp_path / "c.pem").touch()
    with pytest.raises(UsageError, match="needs its key"):
        start(replace(settings, cert_file=tmp_path / "c.pem"))


def test_certificates_of_clients_without_tls_are_a_usage_error(
    settings: BrokerSettings, tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").touch()
    with pytest.raises(UsageError, match="in TLS only"):
        start(replace(settings, client_ca_file=tmp_path / "ca.pem"))


def test_the_embedded_broker_is_not_started_without_the_users_that_were_asked_for(
    settings: BrokerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, mosquitto=False, iotcore=True)
    (tmp_path / "users").touch()
    with pytest.raises(UsageError, match="neither users, TLS nor bridges"):
        start(replace(settings, users_file=tmp_path / "users"))


def test_access_rules_without_users_are_a_usage_error(settings: BrokerSettings, tmp_path: Path) -> None:
    (tmp_path / "acl").touch()
    with pytest.raises(UsageError, match="access rules need users"):
        start(replace(settings, acl_file=tmp_path / "acl"))


def test_an_access_list_that_is_missing_is_a_usage_error(settings: BrokerSettings, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="acl is not there"):
        start(replace(settings, acl_file=tmp_path / "acl"))


def test_a_missing_directory_of_more_settings_is_a_usage_error(
    settings: BrokerSettings, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"conf\.d is no directory"):
        start(replace(settings, include_dir=tmp_path / "conf.d"))


def test_a_directory_that_cannot_be_made_is_a_usage_error(settings: BrokerSettings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be made"):
        start(replace(settings, directory=tmp_path / "file" / "below"))


def test_a_taken_port_is_a_usage_error(settings: BrokerSettings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} of 127.0.0.1 is taken"):
            start(replace(settings, port=port))


def test_an_address_that_is_not_ours_is_a_usage_error(settings: BrokerSettings) -> None:
    with pytest.raises(UsageError, match=r"192\.0\.2\.1"):
        start(replace(settings, host="192.0.2.1"))


def fake_mosquitto(monkeypatch: pytest.MonkeyPatch, directory: Path, code: str) -> None:
    program = directory / "mosquitto"
    program.write_text(f"#!{sys.executable}\nimport sys, signal\nif '-c' in sys.argv:\n    {code}\n")
    program.chmod(0o755)
    monkeypatch.setattr(process, "find_mosquitto", lambda: shutil.which(str(program)))


def test_a_broker_that_ends_at_once_is_reported_with_its_last_words(
    settings: BrokerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_mosquitto(monkeypatch, tmp_path, "sys.exit('Error: no idea what this is')")
    monkeypatch.setattr(process, "ATTEMPTS", 1)
    with pytest.raises(RunFailedError, match="ended at once with code 1: Error: no idea what this is"):
        start(settings, Kind.MOSQUITTO)


def test_a_broker_that_never_listens_is_ended_and_reported(
    settings: BrokerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_mosquitto(monkeypatch, tmp_path, "signal.pause()")
    monkeypatch.setattr(process, "ATTEMPTS", 1)
    monkeypatch.setattr(process, "READY_TIMEOUT_S", 0.05)
    with pytest.raises(RunFailedError, match="does not answer"):
        start(settings, Kind.MOSQUITTO)


def test_a_free_port_that_is_lost_in_between_is_tried_again(
    settings: BrokerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def free_port(host: str) -> int:
        asked.append(host)
        return 1

    fake_mosquitto(monkeypatch, tmp_path, "sys.exit('Address already in use')")
    monkeypatch.setattr(process, "ATTEMPTS", 3)
    monkeypatch.setattr(process, "_free_port", free_port)
    with pytest.raises(RunFailedError, match="Address already in use"):
        start(settings, Kind.MOSQUITTO)
    assert len(asked) == 3
