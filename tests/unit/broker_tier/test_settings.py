"""The configurations that our brokers are started with."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotsplit.errors import UsageError
from iotsplit_broker.settings import BrokerSettings, mosquitto_conf, rumqttd_conf


def lines(settings: BrokerSettings, *, user: str | None = None) -> list[str]:
    return mosquitto_conf(settings, user=user).splitlines()


def test_mosquitto_gets_what_fleets_need(tmp_path: Path) -> None:
    told = lines(BrokerSettings(directory=tmp_path, port=4242))
    assert "listener 4242 127.0.0.1" in told
    for line in (
        "set_tcp_nodelay true",
        "max_inflight_messages 100",
        "persistence true",
        "persistent_client_expiration 14d",
        "log_dest stderr",
        f"persistence_location {tmp_path}/",
    ):
        assert line in told


@pytest.mark.parametrize(
    "wrong",
    [{"port": -1}, {"port": 65536}, {"max_message_bytes": 0}, {"max_message_bytes": 2**28}, {"autosave_s": 0}],
)
def test_values_that_no_broker_takes_are_refused_by_name(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=f"{min(wrong)} .* is out of range"):
        BrokerSettings(directory=tmp_path, **wrong)  # type: ignore[arg-type]  # tests only


def test_queues_are_bounded_but_never_zero(tmp_path: Path) -> None:
    told = dict(line.split(" ", 1) for line in lines(BrokerSettings(directory=tmp_path)))
    assert int(told["max_queued_messages"]) > 1000
    assert int(told["max_queued_bytes"]) > 1_000_000


def test_saving_is_by_time_and_not_by_change(tmp_path: Path) -> None:
    told = lines(BrokerSettings(directory=tmp_path, autosave_s=3))
    assert "autosave_on_changes false" in told
    assert "autosave_interval 3" in told


def test_everybody_may_connect_only_without_a_users_file(tmp_path: Path) -> None:
    assert "allow_anonymous true" in lines(BrokerSettings(directory=tmp_path))
    told = lines(BrokerSettings(directory=tmp_path, users_file=tmp_path / "users"))
    assert "allow_anonymous false" in told
    assert f"password_file {tmp_path / 'users'}" in told


def test_with_access_rules_nobody_takes_the_client_id_of_another(tmp_path: Path) -> None:
    assert "use_username_as_clientid true" not in lines(BrokerSettings(directory=tmp_path))
    told = lines(BrokerSettings(directory=tmp_path, users_file=tmp_path / "u", acl_file=tmp_path / "acl"))
    assert {f"acl_file {tmp_path / 'acl'}", "use_username_as_clientid true"} <= set(told)


def test_more_settings_come_last(tmp_path: Path) -> None:
    told = lines(BrokerSettings(directory=tmp_path, include_dir=tmp_path / "conf.d"))
    assert told[-1] == f"include_dir {tmp_path / 'conf.d'}"


def test_a_certificate_makes_the_port_speak_tls(tmp_path: Path) -> None:
    settings = BrokerSettings(directory=tmp_path, cert_file=tmp_path / "c.pem", key_file=tmp_path / "k.pem")
    assert settings.scheme == "mqtts"
    assert f"certfile {tmp_path / 'c.pem'}" in lines(settings)
    assert f"keyfile {tmp_path / 'k.pem'}" in lines(settings)


def test_relative_paths_become_absolute() -> None:
    told = lines(BrokerSettings(directory=Path("here")))
    assert f"persistence_location {Path.cwd() / 'here'}/" in told


def test_the_user_stays_unless_it_is_said(tmp_path: Path) -> None:
    assert not [line for line in lines(BrokerSettings(directory=tmp_path)) if line.startswith("user ")]
    assert "user root" in lines(BrokerSettings(directory=tmp_path), user="root")


@given(port=st.integers(1, 65535), size=st.integers(1, 2**28 - 1))
def test_the_embedded_broker_takes_messages_of_a_mebibyte_and_more(port: int, size: int) -> None:
    settings = BrokerSettings(directory=Path(), port=port, max_message_bytes=size)
    server = tomllib.loads(rumqttd_conf(settings))["v4"]["1"]
    assert server["listen"] == f"127.0.0.1:{port}"
    assert server["connections"]["max_payload_size"] == max(size, 2**20)
