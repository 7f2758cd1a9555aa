"""The proxy that makes links bad: what comes out when, and that connections break when they should."""

import contextlib
import math
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotsplit.runtime.proxy import BURST_S, PIECE_BYTES, Channel, TcpProxy
from tests.waiting import comes_true

MILLION = 1_000_000.0


def drained(channel: Channel, now: float) -> tuple[bytes, float]:
    """Everything that comes out from now on, and when the last of it does."""
    out = b""
    while channel.size_bytes:
        now = channel.next_due(now)
        out += channel.take(now)
    return out, now


def test_bytes_come_out_a_delay_after_they_went_in_and_not_before() -> None:
    channel = Channel()
    channel.shape(0.0, delay_s=0.3)
    channel.put(b"a", 1.0)
    assert channel.next_due(1.0) == 1.3
    assert channel.take(1.29) == b""
    assert channel.take(1.3) == b"a"
    assert channel.next_due(1.3) == math.inf


def test_delay_takes_nothing_from_the_throughput() -> None:
    channel = Channel()
    channel.shape(0.0, delay_s=10.0)
    for number in range(100):
        channel.put(bytes([number]), number / 100)
    out, last = drained(channel, 1.0)
    assert out == bytes(range(100))
    assert last == 10.99


def test_a_shorter_delay_lets_nothing_overtake() -> None:
    channel = Channel()
    channel.shape(0.0, delay_s=1.0)
    channel.put(b"first", 0.0)
    channel.shape(0.1)
    channel.put(b" second", 0.1)
    assert channel.take(0.9) == b""
    assert channel.take(1.0) == b"first second"


def test_a_rate_lets_through_so_much_in_a_second_and_one_burst_more() -> None:
    channel = Channel()
    channel.shape(0.0, rate=MILLION)
    channel.put(bytes(2_000_000), 0.0)
    came = sum(len(channel.take(tick / 1000)) for tick in range(1001))
    assert MILLION <= came <= MILLION * (1 + BURST_S)
    _, last = drained(channel, 1.0)
    assert last == pytest.approx(2.0 - BURST_S)


def test_what_a_link_has_not_used_it_cannot_bring_later() -> None:
    channel = Channel()
    channel.shape(0.0, rate=MILLION)
    channel.put(bytes(1_000_000), 100.0)
    assert len(channel.take(100.0)) == MILLION * BURST_S


def test_the_rate_changes_for_what_is_under_way() -> None:
    channel = Channel()
    channel.shape(0.0, rate=100_000.0)
    channel.put(bytes(1_000_000), 0.0)
    assert len(channel.take(1.0)) <= 100_000 * (1 + BURST_S)
    channel.shape(1.0, rate=math.inf)
    channel.take(1.0)
    assert channel.size_bytes == 0


def test_the_sender_of_a_slow_link_has_to_wait_before_much_is_under_way() -> None:
    channel = Channel()
    channel.put(bytes(1_000_000), 0.0)
    assert not channel.is_full
    channel.shape(0.0, rate=100_000.0)
    assert channel.is_full


@given(
    st.lists(
        st.tuples(
            st.binary(min_size=1, max_size=3 * PIECE_BYTES),
            st.sampled_from([0.0, 0.5, 2.0]),
            st.sampled_from([10_000.0, 100_000.0, math.inf]),
        ),
        max_size=10,
    )
)
def test_whatever_changes_all_bytes_come_out_in_order(steps: list[tuple[bytes, float, float]]) -> None:
    channel = Channel()
    out = b""
    for number, (data, delay_s, rate) in enumerate(steps):
        channel.shape(number / 10, delay_s=delay_s, rate=rate)
        channel.put(data, number / 10)
        out += channel.take(number / 10)
    out += drained(channel, len(steps) / 10)[0]
    assert out == b"".join(data for data, _, _ in steps)


def test_the_end_comes_behind_all_bytes() -> None:
    channel = Channel()
    channel.shape(0.0, delay_s=1.0)
    channel.put(b"last words", 0.0)
    channel.end(0.5)
    assert channel.take(1.0) == b"last words"
    assert not channel.is_over(1.0)
    assert channel.next_due(1.0) == 1.5
    assert channel.is_over(1.5)


@pytest.mark.parametrize("ends", [True, False])
def test_what_is_said_on_a_stalled_link_vanishes_with_what_is_under_way(ends: bool) -> None:
    channel = Channel()
    channel.shape(0.0, delay_s=1.0)
    channel.put(b"under way", 0.0)
    channel.stall()
    channel.put(b"said", 0.1)
    if ends:
        channel.end(0.2)
    channel.resume()
    assert channel.lost
    assert channel.take(9.0) == b""
    assert not channel.is_over(9.0)


def test_a_stall_in_which_nothing_is_said_does_no_harm() -> None:
    channel = Channel()
    channel.stall()
    channel.resume()
    channel.put(b"on", 1.0)
    assert not channel.lost
    assert channel.take(1.0) == b"on"


# --- with sockets


@pytest.fixture
def proxy() -> Iterator[TcpProxy]:
    """Stands before a server that sends everything back."""
    listener = socket.create_server(("127.0.0.1", 0))

    def echo(end: socket.socket) -> None:
        with end, contextlib.suppress(OSError):
            while data := end.recv(65536):
                end.sendall(data)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    proxy = TcpProxy(listener.getsockname()[1])
    yield proxy
    proxy.close()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    server.join(5)


def connected(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=20)


def answer(end: socket.socket, data: bytes) -> bytes:
    """What comes back."""
    sender = threading.Thread(target=end.sendall, args=(data,), daemon=True)
    sender.start()
    back = b""
    while len(back) < len(data):
        piece = end.recv(65536)
        assert piece, "the connection broke"
        back += piece
    return back


def is_broken(end: socket.socket) -> bool:
    """Whether it breaks; waits for it."""
    try:
        return end.recv(1) == b""
    except ConnectionError:
        return True


def test_a_slow_link_brings_the_same_bytes(proxy: TcpProxy) -> None:
    data = bytes(range(256)) * 400
    with connected(proxy) as end:
        proxy.shape(delay_s=0.01, rate=2_000_000.0)
        assert answer(end, data) == data
        proxy.shape()
        assert answer(end, data * 20) == data * 20


def test_a_cut_link_breaks_connections_and_a_mended_one_takes_new_ones(proxy: TcpProxy) -> None:
    with connected(proxy) as end:
        assert answer(end, b"hello") == b"hello"
        proxy.cut()
        assert is_broken(end)
    with connected(proxy) as end:
        assert is_broken(end)
    proxy.mend()
    with connected(proxy) as end:
        assert answer(end, b"hello") == b"hello"


def test_a_stalled_connection_stays_open_says_nothing_and_breaks_when_the_link_is_back(proxy: TcpProxy) -> None:
    with connected(proxy) as end, connected(proxy) as quiet:
        assert answer(end, b"hello") == b"hello"
        assert answer(quiet, b"hello") == b"hello"
        proxy.stall()
        end.sendall(b"is anybody there")
        assert comes_true(lambda: proxy.has_lost)
        end.setblocking(False)
        with pytest.raises(BlockingIOError):
            end.recv(1)
        end.settimeout(20)
        proxy.mend()
        assert is_broken(end)
        assert answer(quiet, b"still here") == b"still here"
