"""What a fleet uses up and what its broker passes on, noted at the end of each round."""

from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from benchmarks.load_fleet import FLEET, address
from iotsplit.packet import Packet
from iotsplit.runtime import clock
from iotsplit.runtime.link import LinkChange
from iotsplit.runtime.mqtt import MqttLink
from iotsplit.states import Event, decode_state
from iotsplit.topics import Topics

PUBLISHED = "$SYS/broker/publish/messages/received"
DELIVERED = "$SYS/broker/publish/messages/sent"


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What had been used so far at the end of a round."""

    at: float
    wall: float
    cloud_s: float
    broker_s: float
    agents_s: float


def cpu_s(used: Sequence[psutil.Process]) -> float:
    """CPU seconds of processes so far."""
    times = [process.cpu_times() for process in used]
    return float(sum(each.user + each.system for each in times))


class Watcher:
    """Hears the cloud's events and the broker's own counters, and looks at the processes at each event.

    Args:
        port: of the broker.
        agents: processes that hold agents.
    """

    def __init__(self, port: int, *, cloud: int, broker: int, agents: Sequence[int]) -> None:
        self.cloud, self.broker = psutil.Process(cloud), psutil.Process(broker)
        self._agents = [psutil.Process(pid) for pid in agents]
        self._events = f"{Topics(FLEET).root}events"
        self.moments: list[Moment] = []
        self.counts: dict[str, list[tuple[float, int]]] = {PUBLISHED: [], DELIVERED: []}
        self._link = MqttLink(address(port), "load-watcher")
        self._link.open(self._heard, last_will=None)
        self._link.subscribe(frozenset({self._events, *self.counts}))

    def _heard(self, packet: Packet | LinkChange) -> None:
        if not isinstance(packet, Packet):
            return
        if packet.topic in self.counts:
            self.counts[packet.topic].append((clock.now(), int(packet.payload)))
        elif decode_state(packet.payload, Event).kind in {"evaluated", "round_finished"}:
            self.moments.append(
                Moment(
                    at=clock.now(),
                    wall=clock.wall(),
                    cloud_s=cpu_s([self.cloud]),
                    broker_s=cpu_s([self.broker]),
                    agents_s=cpu_s(self._agents),
                )
            )

    def per_second(self, topic: str, moments: Sequence[Moment]) -> float:
        """Messages per second from the first moment to the last, to the broker's next second on both sides."""
        seen = self.counts[topic]
        start = max((each for each in seen if each[0] <= moments[0].at), default=seen[0])
        end = min((each for each in seen if each[0] >= moments[-1].at), default=seen[-1])
        return (end[1] - start[1]) / (end[0] - start[0])

    def close(self) -> None:
        """Hear no more."""
        self._link.close()
