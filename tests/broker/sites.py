"""A shop floor with devices and edges, a cloud elsewhere, and a bridge between their brokers."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.fleet import Fleet
from iotsplit.packet import Packet
from iotsplit.runtime.address import BrokerAddress
from iotsplit.runtime.link import LinkChange
from iotsplit.runtime.mqtt import MqttLink
from iotsplit.runtime.proxy import TcpProxy

FLEET = "chaos"  # as benchmarks.fleet names it
SECRET = "secret"


def iotsplit(*words: str) -> str:
    """What a command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "iotsplit", *words], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def users_file(path: Path, names: Iterable[str]) -> Path:
    """Users who all have the same password."""
    path.touch()
    for name in names:
        subprocess.run(["mosquitto_passwd", "-b", str(path), name, SECRET], check=True, capture_output=True)
    return path


def address_of(port: int, user: str | None = None, ca: Path | None = None) -> BrokerAddress:
    """A broker on loopback."""
    scheme = "mqtt" if ca is None else "mqtts"
    return BrokerAddress.parse(f"{scheme}://127.0.0.1:{port}", user=user, password=SECRET, ca_file=ca)


class Listener:
    """Hears everything on a broker, and counts it.

    Args:
        port: of the broker on loopback.
        user: who listens, or nobody.
        filters: what to hear.
        ca: authority of the broker's certificate, if it has one.
    """

    def __init__(
        self,
        port: int,
        *,
        user: str | None = None,
        filters: frozenset[str] = frozenset({"#"}),
        ca: Path | None = None,
    ) -> None:
        address = address_of(port, user, ca)
        self.packets: list[Packet] = []
        self.breaks = 0
        self._link = MqttLink(address, f"listener-{user}")
        self._link.open(self._take, last_will=None)
        self._link.subscribe(filters)

    def _take(self, event: Packet | LinkChange) -> None:
        if isinstance(event, Packet):
            self.packets.append(event)
        else:
            self.breaks += 1

    def topics(self, root: str) -> list[list[str]]:
        """Words below the root of everything heard; nothing may lie elsewhere."""
        heard = [packet.topic for packet in list(self.packets)]
        assert [topic for topic in heard if not topic.startswith(root)] == []
        return [topic.removeprefix(root).split("/") for topic in heard]

    def sizes(self, root: str) -> Counter[str]:
        """Payload bytes by the first word of the topic."""
        sizes: Counter[str] = Counter()
        for packet in list(self.packets):
            sizes[packet.topic.removeprefix(root).split("/")[0]] += len(packet.payload)
        return sizes

    def close(self) -> None:
        self._link.close()


@dataclass(kw_only=True)
class TwoSites(Fleet):
    """A fleet whose cloud is at another broker than its devices and edges.

    Args:
        far_port: port of the cloud's broker.
        bridge_words: more options of the bridge.
        floor_words: more options of the shop floor's broker.
        prefix: in front of every topic at the cloud's broker.
        far_edges: edges that are at the cloud's broker.
        with_users: whether every agent logs in by its name.
    """

    far_port: int
    bridge_words: Sequence[str] = ()
    floor_words: Sequence[str] = ()
    prefix: str = ""
    far_edges: Sequence[str] = ()
    with_users: bool = False
    bridge: TcpProxy = field(init=False)

    def __post_init__(self) -> None:
        self.bridge = TcpProxy(self.far_port)
        (self.output / "password").write_text(SECRET)
        super().__post_init__()

    @property
    def here(self) -> str:
        """Root of the topics on the shop floor."""
        return f"iotsplit/{FLEET}/"

    @property
    def there(self) -> str:
        """Root of the topics at the cloud."""
        return f"{self.prefix}iotsplit/{FLEET}/"

    @property
    def _settings(self) -> Path:
        return self.output / "conf.d"

    def start(self, name: str) -> None:
        if name == "broker" and not self._settings.exists():
            iotsplit(
                *("broker", "bridge", f"--fleet={FLEET}", f"--local=mqtt://127.0.0.1:{self.port}"),
                *(f"--remote=mqtt://127.0.0.1:{self.bridge.port}", f"--prefix={self.prefix}"),
                *(f"--output={self._settings / 'bridge.conf'}", *self.bridge_words),
            )
        super().start(name)

    def _words(self, name: str) -> list[str]:
        words = super()._words(name)
        if name == "broker":
            return [*words, f"--include-dir={self._settings}", *self.floor_words]
        if self.with_users:
            words += [f"--user={name}", f"--password-file={self.output / 'password'}"]
        if name != "cloud" and name not in self.far_edges:
            return words
        words = [word for word in words if not word.startswith("--broker=")]
        extra = ["--standby"] if name in self.far_edges else []
        return [*words, f"--broker=mqtt://127.0.0.1:{self.far_port}", f"--topic-prefix={self.prefix}", *extra]

    def give_up(self, name: str) -> None:
        """Kill an agent that nobody starts again."""
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def close(self) -> None:
        super().close()
        self.bridge.close()
