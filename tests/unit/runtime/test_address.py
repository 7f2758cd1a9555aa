"""Broker addresses: what people write, and what they are told when it cannot be used."""

import ssl
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotsplit.errors import UsageError
from iotsplit.options import BrokerOptions
from iotsplit.runtime.address import BrokerAddress, address_of


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("mqtt://broker.local", "broker.local", 1883),
        ("mqtt://broker.local:1884/", "broker.local", 1884),
        ("mqtts://broker.local", "broker.local", 8883),
        ("ws://broker.local/mqtt", "broker.local", 80),
        ("wss://broker.local:9001", "broker.local", 9001),
        ("mqtt://[::1]:1883", "::1", 1883),
    ],
)
def test_host_and_port_are_read(url: str, host: str, port: int) -> None:
    address = BrokerAddress.parse(url)
    assert (address.host, address.port) == (host, port)


@given(
    scheme=st.sampled_from(["mqtt", "mqtts", "ws", "wss"]),
    host=st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z]{2,5})?", fullmatch=True),
    port=st.integers(1, 65535),
)
def test_an_address_reads_what_it_shows(scheme: str, host: str, port: int) -> None:
    address = BrokerAddress.parse(f"{scheme}://{host}:{port}")
    assert BrokerAddress.parse(str(address)) == address


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_usage_error(text: str) -> None:
    try:
        address = BrokerAddress.parse(text)
    except UsageError:
        return
    assert address.host


@pytest.mark.parametrize(
    "url",
    [
        "",
        "broker.local",
        "broker.local:1883",
        "http://broker.local",
        "mqtt://",
        "mqtt://:1883",
        "mqtt://broker.local:0",
        "mqtt://broker.local:70000",
        "mqtt://broker.local:port",
        "mqtt://broker.local/topic",
        "mqtt://broker.local?x=1",
    ],
)
def test_what_is_no_address_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(UsageError, match="mqtt://HOST:PORT"):
        BrokerAddress.parse(url)


@pytest.mark.parametrize("url", ["mqtt://anna:s3cret@broker", "mqtt://anna:s3cret@broker:x", "//u:s3cret@h"])
def test_a_password_in_the_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        BrokerAddress.parse(url)
    assert "s3cret" not in str(caught.value)


def test_the_user_may_stand_in_the_address_and_the_option_beats_it() -> None:
    assert BrokerAddress.parse("mqtt://anna%40lab@broker").user == "anna@lab"
    assert BrokerAddress.parse("mqtt://anna@broker", user="bert").user == "bert"


def test_a_password_without_a_user_is_not_used() -> None:
    assert BrokerAddress.parse("mqtt://broker", password="s3cret").password is None


def test_neither_text_nor_repr_shows_the_password() -> None:
    address = BrokerAddress.parse("mqtt://broker", user="anna", password="s3cret")
    assert address.password == "s3cret"
    assert "s3cret" not in f"{address} {address!r}"


def test_a_certificate_authority_for_a_plain_connection_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mqtts://"):
        BrokerAddress.parse("mqtt://broker", ca_file=tmp_path / "ca.pem")


def test_a_plain_connection_has_no_tls() -> None:
    assert BrokerAddress.parse("mqtt://broker").tls() is None


def test_tls_checks_certificate_and_name() -> None:
    context = BrokerAddress.parse("mqtts://broker").tls()
    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


def test_a_missing_certificate_authority_is_a_usage_error(tmp_path: Path) -> None:
    address = BrokerAddress.parse("mqtts://broker", ca_file=tmp_path / "none.pem")
    with pytest.raises(UsageError, match=r"none\.pem cannot be read"):
        address.tls()


def test_a_certificate_of_ours_for_a_plain_connection_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a certificate is given .* not encrypted"):
        BrokerAddress.parse("mqtt://broker", identity=(tmp_path / "c", tmp_path / "k"))


def test_a_certificate_needs_its_key(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a certificate needs its key"):
        address_of(BrokerOptions(broker="mqtts://broker", cert_file=tmp_path / "c"))


def test_a_missing_certificate_is_told(tmp_path: Path) -> None:
    pair = (tmp_path / "c.pem", tmp_path / "k.pem")
    with pytest.raises(UsageError, match=r"c\.pem and .*k\.pem cannot be read: No such file"):
        BrokerAddress.parse("mqtts://broker", identity=pair).tls()


def test_what_is_no_certificate_is_refused(tmp_path: Path) -> None:
    pair = (tmp_path / "c.pem", tmp_path / "k.pem")
    for path in pair:
        path.write_text("x")
    with pytest.raises(UsageError, match=r"c\.pem and .*k\.pem are no such pair"):
        BrokerAddress.parse("mqtts://broker", identity=pair).tls()


def test_a_file_without_certificates_is_a_usage_error(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("hello")
    with pytest.raises(UsageError, match="holds no certificate"):
        BrokerAddress.parse("mqtts://broker", ca_file=path).tls()
