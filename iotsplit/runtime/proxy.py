"""A TCP proxy in threads, between clients and a broker: a slow or bad link, when somebody wants one.

For comparisons and tests. In user space, so that nobody needs rights over the machine's network (netem).
"""

import contextlib
import math
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence

from iotsplit.runtime import clock

ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset, as a vanished peer does
PIECE_BYTES = 4096
BURST_S = 0.05
"""What a slow link may bring at once after it had nothing to do, in seconds of its rate."""
QUEUE_S = 0.5
"""What waits for a slow link at most, in seconds of its rate; then the sender has to wait."""
MOST_BYTES = 16 << 20
UP, DOWN = "up", "down"
Watch = Callable[[str, bytes, float], bool]
"""Sees a connection's bytes with their way and time, at the client's end; false breaks the connection."""


class Channel:
    """One direction of a link as arithmetic: times in, bytes out. No I/O.

    Each byte comes out `delay_s` after it went in, in order, and not more than `rate` of them a second (a token
    bucket). Bytes under way do not hold up each other: delay takes nothing from the throughput.
    """

    def __init__(self) -> None:
        self.size_bytes = 0
        self.lost = False
        """Whether something has vanished: what comes later makes no sense to the other end."""
        self._held: deque[tuple[float, bytes]] = deque()
        self._end_at = math.inf
        self._delay_s, self._rate = 0.0, math.inf
        self._tokens, self._filled_at = 0.0, 0.0
        self._stalled = False

    def shape(self, now: float, *, delay_s: float = 0.0, rate: float = math.inf) -> None:
        """Change seconds and bytes per second; what is under way keeps its delay."""
        self._fill(now)
        self._delay_s, self._rate = delay_s, rate
        self._fill(now)

    def stall(self) -> None:
        """Let everything vanish, what is under way and what will come, until `resume`."""
        self.lost = self.lost or bool(self._held) or self._end_at < math.inf
        self._stalled = True
        self._held.clear()
        self._end_at, self.size_bytes = math.inf, 0

    def resume(self) -> None:
        """Let through what comes from now on."""
        self._stalled = False

    @property
    def is_full(self) -> bool:
        """Whether the sender has to wait."""
        most = self._rate * (self._delay_s + QUEUE_S)
        return self.size_bytes > min(MOST_BYTES, most)

    def put(self, data: bytes, now: float) -> None:
        """Bytes go in."""
        if self._stalled:
            self.lost = True
            return
        self._held.append((now + self._delay_s, data))
        self.size_bytes += len(data)

    def end(self, now: float) -> None:
        """The sender has closed: that comes out behind all its bytes."""
        if self._stalled:
            self.lost = True
        else:
            self._end_at = now + self._delay_s

    def take(self, now: float) -> bytes:
        """Bytes that come out."""
        self._fill(now)
        out = bytearray()
        while self._held and self._held[0][0] <= now and self._tokens >= 1:
            due, data = self._held.popleft()
            room = int(min(self._tokens, len(data)))
            out += data[:room]
            self._tokens -= room
            if room < len(data):
                self._held.appendleft((due, data[room:]))
        self.size_bytes -= len(out)
        return bytes(out)

    def is_over(self, now: float) -> bool:
        """Whether everything has come out, and the end as well."""
        return not self._held and self._end_at <= now

    def next_due(self, now: float) -> float:
        """When something comes out; infinity if nothing is under way."""
        if not self._held:
            return self._end_at
        due, data = self._held[0]
        self._fill(now)
        missing = min(len(data), PIECE_BYTES) - self._tokens
        return max(due, now + max(0.0, missing) / self._rate)

    def _fill(self, now: float) -> None:
        if self._rate == math.inf:
            self._tokens = math.inf
        else:
            most = max(PIECE_BYTES, self._rate * BURST_S)
            self._tokens = min(most, self._tokens + self._rate * (now - self._filled_at))
        self._filled_at = now


class TcpProxy:
    """Forwards connections to an address on loopback, as well or badly as it is told.

    Args:
        port: port of the real server.
        watch: makes what looks at each connection.
    """

    def __init__(self, port: int, watch: Callable[[], Watch] = lambda: lambda *_: True) -> None:
        self._upstream = ("127.0.0.1", port)
        self._watch = watch
        self._lock = threading.Lock()
        self._pairs: list[_Pair] = []
        self._open, self._stalled = True, False
        self._shapes: dict[str, tuple[float, float]] = {}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def shape(self, *, delay_s: float = 0.0, rate: float = math.inf, ways: Sequence[str] = (UP, DOWN)) -> None:
        """Make the link slow, or quick again.

        Args:
            delay_s: one way.
            rate: bytes per second.
            ways: which; up is towards the server.
        """
        with self._lock:
            self._shapes |= dict.fromkeys(ways, (delay_s, rate))
            for pair in self._pairs:
                pair.shape(self._shapes)

    def stall(self) -> None:
        """Leave connections open and let vanish what is said on them, until `mend`: they are half open."""
        with self._lock:
            self._stalled = True
            for pair in self._pairs:
                pair.stall()

    @property
    def has_lost(self) -> bool:
        """Whether something has vanished on a connection that still looks open."""
        with self._lock:
            return any(pair.has_lost for pair in self._pairs)

    def cut(self) -> None:
        """Break all connections and break new ones at once, until `mend`."""
        with self._lock:
            self._open = False
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            pair.abort()

    def mend(self) -> None:
        """Let connections through again; those on which something has vanished break now."""
        with self._lock:
            self._open, self._stalled = True, False
            self._pairs = [pair for pair in self._pairs if pair.resume()]

    def close(self) -> None:
        """Break all connections and accept no more."""
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if not self._open:
                    client.close()
                    continue
                try:
                    server = socket.create_connection(self._upstream)
                except OSError:  # the broker is away
                    client.close()
                    continue
                pair = _Pair(client, server, self._watch())
                pair.shape(self._shapes)
                if self._stalled:
                    pair.stall()
                self._pairs.append(pair)
                self._threads += pair.start()


class _Pair:
    """A connection on both sides of the proxy: two channels with a reader and a writer each."""

    def __init__(self, client: socket.socket, server: socket.socket, watch: Watch) -> None:
        self._watch = watch
        self._ends = (client, server)
        self._changed = threading.Condition()
        self._closed = False
        self._channels = {UP: Channel(), DOWN: Channel()}
        for end in self._ends:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self) -> list[threading.Thread]:
        client, server = self._ends
        threads = []
        for source, way, target in ((client, UP, server), (server, DOWN, client)):
            threads.append(threading.Thread(target=self._read, args=(source, way), daemon=True))
            threads.append(threading.Thread(target=self._write, args=(way, target), daemon=True))
        for thread in threads:
            thread.start()
        return threads

    @property
    def has_lost(self) -> bool:
        return any(channel.lost for channel in self._channels.values())

    def shape(self, shapes: dict[str, tuple[float, float]]) -> None:
        with self._changed:
            for way, (delay_s, rate) in shapes.items():
                self._channels[way].shape(clock.now(), delay_s=delay_s, rate=rate)
            self._changed.notify_all()

    def stall(self) -> None:
        with self._changed:
            for channel in self._channels.values():
                channel.stall()
            self._changed.notify_all()

    def resume(self) -> bool:
        """Go on; false if that makes no sense any more."""
        with self._changed:
            for channel in self._channels.values():
                channel.resume()
            whole = not self._closed and not self.has_lost
        if not whole:
            self.abort()
        return whole

    def abort(self) -> None:
        """Break off with a reset."""
        self._close(abort=True)

    def _read(self, source: socket.socket, way: str) -> None:
        data, channel = b".", self._channels[way]
        while data:
            try:
                data = source.recv(65536)
            except OSError:
                data = b""
            if way == UP and not self._watch(way, data, clock.now()):
                self.abort()
                return
            with self._changed:
                if data:
                    channel.put(data, clock.now())
                else:
                    channel.end(clock.now())
                self._changed.notify_all()
                while channel.is_full and not self._closed:
                    self._changed.wait()

    def _write(self, way: str, target: socket.socket) -> None:
        channel = self._channels[way]
        while (data := self._next(channel)) is not None:
            if way == DOWN and not self._watch(way, data, clock.now()):
                self.abort()
                return
            with contextlib.suppress(OSError):  # the reader of that socket notices as well
                target.sendall(data)
        self._close(abort=False)

    def _next(self, channel: Channel) -> bytes | None:
        """What comes out next; nothing at the end."""
        with self._changed:
            while not self._closed:
                now = clock.now()
                data = channel.take(now)
                if data:
                    self._changed.notify_all()
                    return data
                if channel.is_over(now):
                    return None
                wait_s = channel.next_due(now) - now
                self._changed.wait(None if wait_s == math.inf else wait_s)
        return None

    def _close(self, *, abort: bool) -> None:
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        for end in self._ends:
            with contextlib.suppress(OSError):
                if abort:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
                # Wakes the thread that reads from it; a close alone would leave it there.
                end.shutdown(socket.SHUT_RDWR)
            end.close()
