"""Takes a broker through all points, one after the other, within bounds of time and bytes."""

from collections.abc import Callable
from dataclasses import dataclass

from iotsplit.errors import RefusedError, UserError
from iotsplit.packet import Packet
from iotsplit.runtime import clock
from iotsplit_broker.checking import bridges, crossing, loads, points, probes
from iotsplit_broker.checking.bench import Bench
from iotsplit_broker.checking.findings import Finding, untested
from iotsplit_broker.checking.rights import Role, allowing, judge_rights
from iotsplit_broker.configuration.access import ME, MEMBER
from iotsplit_broker.configuration.mosquitto_acl import acl_lines

LEAST_BYTES = 16
ONE_CLIENT = "this broker lets a user have one client at a time, and a slow reader needs another that writes"


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much is tried.

    Args:
        retained: small messages that are retained at a time.
        queued: messages of 1 KiB for a subscriber that takes none.
        speed_bytes: sent at full speed.
        limit_s: no point is begun after so many seconds.
    """

    retained: int
    queued: int
    speed_bytes: int
    limit_s: float


FULL = Extent(retained=150, queued=3000, speed_bytes=32 * 1024 * 1024, limit_s=120.0)
QUICK = Extent(retained=110, queued=1200, speed_bytes=2 * 1024 * 1024, limit_s=60.0)


class Examination:
    """One broker, and perhaps the one at the other end of its bridge.

    Args:
        bench: the broker.
        extent: how much is tried.
        role: whose rights the user should have.
        tell: is given each finding as soon as it is there.
    """

    def __init__(self, bench: Bench, extent: Extent, role: Role, tell: Callable[[Finding], None]) -> None:
        self._bench = bench
        self._extent = extent
        self._role = role
        self._tell = tell
        self._until = clock.now() + extent.limit_s
        self._version5 = False
        self._size = bench.chunk_bytes
        self.findings: list[Finding] = []

    def run(self, far: Bench | None = None) -> None:
        """Go through all points.

        Args:
            far: the other end of the bridge, if there is one to look at.

        Raises:
            BrokerUnreachableError: nobody answers there.
            RefusedError: the user is not let in, or may not use the topics of this check.
        """
        reach(self._bench)
        if far is not None:
            reach(far)
        bench, extent = self._bench, self._extent
        self._point("versions", self._versions)
        self._point("rights", self._rights)
        self._point("payload", self._payload)
        self._point("retained", lambda: points.judge_retained(probes.retained(bench, self._size)))
        self._point(
            "many retained", lambda: points.judge_many_retained(probes.many_retained(bench, extent.retained))
        )
        self._point("last will", lambda: points.judge_will(probes.last_will(bench)))
        self._point("QoS 1", lambda: points.judge_qos(probes.qos(bench)))
        self._point("takeover", lambda: points.judge_takeover(probes.takeover(bench)))
        self._point("queue", self._queue)
        self._point("round trip", lambda: points.judge_trip(loads.round_trips(bench)))
        self._point("speed", self._speed)
        if far is not None:
            self._point("bridge", lambda: self._bridge(far))

    def _point(self, name: str, look: Callable[[], Finding]) -> None:
        if clock.now() > self._until:
            self._add(untested(name, f"the {self._extent.limit_s:.0f} s of this check were over before it"))
            return
        try:
            self._add(look())
        except UserError as error:
            self._add(untested(name, error.message))

    def _add(self, finding: Finding) -> None:
        self.findings.append(finding)
        self._tell(finding)

    def _versions(self) -> Finding:
        seen = probes.versions(self._bench)
        self._version5 = seen.version5
        return points.judge_versions(seen)

    def _rights(self) -> Finding:
        seen = probes.rights(self._bench, version5=self._version5)
        return judge_rights(seen, self._role, self._bench.topics, self._bench.agent)

    def _payload(self) -> Finding:
        seen = probes.payload(self._bench)
        self._size = max(LEAST_BYTES, min(self._bench.chunk_bytes, seen.largest_bytes))
        return points.judge_payload(seen)

    def _queue(self) -> Finding:
        if self._bench.single:
            return untested("queue", ONE_CLIENT, needed=False)
        return points.judge_queue(loads.queue_depth(self._bench, self._extent.queued))

    def _speed(self) -> Finding:
        return points.judge_speed(loads.speed(self._bench, self._size, limit_bytes=self._extent.speed_bytes))

    def _bridge(self, far: Bench) -> Finding:
        bridge, privacy = crossing.judge_crossing(bridges.crossing(self._bench, far, self._size))
        self._add(bridge)
        return privacy


def reach(bench: Bench) -> None:
    """Hear ourselves on the topics of this check, without which nothing else can be seen.

    Then see whether the user can have two clients at a time.

    Raises:
        BrokerUnreachableError: nobody answers there.
        RefusedError: the user is not let in, or may not use these topics.
    """
    topic = bench.topic("reach")
    with bench.client() as client:
        client.subscribe([topic])
        client.say(Packet(topic=topic, payload=b"here"))
        heard = bool(client.hear(on=topic))
    if heard:
        bench.single = probes.is_single(bench)
        return
    allowed = "; ".join(acl_lines(allowing(MEMBER, "write", f"probe/{ME}/reach"), bench.topics, bench.agent))
    raise RefusedError(
        f"{bench.address} does not let this user hear itself on {topic}",
        fix=f"allow it (mosquitto: {allowed}), or give the --id that its access rules know",
    )
