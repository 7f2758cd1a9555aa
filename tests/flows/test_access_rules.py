"""Access rules and bridges, held against all that a fleet in memory says and hears, through a fail-over."""

import itertools
from pathlib import Path

import pytest

from iotsplit.agent import Agent
from iotsplit.packet import Packet
from iotsplit.topics import Topics
from iotsplit_broker.configuration.access import ROLES, Access
from iotsplit_broker.configuration.crossings import Crossing, Way, crossings
from tests.flows.weather import WeatherFleet, settings
from tests.support import matches

ROOT = "iotsplit/test/"
ROLE_OF = {"edge-1": "edge", "edge-2": "edge", "cloud": "cloud", "a": "device", "b": "device"}


class Witnessed(WeatherFleet):
    """Notes who says what, and who listens to what."""

    def __init__(self, model: Path) -> None:
        self.said: set[tuple[str, str, bool]] = set()
        self.heard: dict[str, set[str]] = {}
        self._speaker = ""
        super().__init__(model, settings(local_steps=6, checkpoint_every=2), edges=2)

    def lose(self, name: str) -> None:
        self._speaker = name
        super().lose(name)

    def publish(self, packet: Packet) -> None:
        self.said.add((self._speaker, packet.topic.removeprefix(ROOT), packet.retain))
        super().publish(packet)

    def _say(self, agent: Agent, packets: list[Packet]) -> None:
        self._speaker = agent.role.agent
        super()._say(agent, packets)

    def _settle(self, agent: Agent) -> None:
        self._speaker = agent.role.agent
        super()._settle(agent)
        told = {each.removeprefix(ROOT) for each in agent.filters}
        self.heard.setdefault(agent.role.agent, set()).update(told)


@pytest.fixture(scope="module")
def fleet(model: Path) -> Witnessed:
    """One whose devices move to the second edge in the midst of a round."""
    fleet = Witnessed(model)
    fleet.run(until=lambda each: any("/checkpoint/" in topic for topic in each._retained))

    fleet.lose("edge-1")

    fleet.run()
    return fleet


def covers(rule: str, filter_: str) -> bool:
    """Whether everything that a filter matches is matched by a rule."""
    for mine, wanted in itertools.zip_longest(rule.split("/"), filter_.split("/")):
        if mine == "#":
            return True
        if wanted == "#" or (mine != wanted and (mine != "+" or wanted is None)):
            return False
    return True


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_agents_say_nothing_that_their_rules_forbid(fleet: Witnessed) -> None:
    for agent, topic, is_retained in fleet.said:
        rules = [rule.of(agent) for rule in ROLES[ROLE_OF[agent]] if rule.access.writes]
        fitting = [rule for rule in rules if matches(rule.path, topic)]
        assert fitting, f"{agent} may not write {topic}"
        assert not is_retained or any(rule.retained for rule in fitting), f"{agent} may not retain {topic}"


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_agents_listen_to_nothing_that_their_rules_forbid(fleet: Witnessed) -> None:
    for agent, filters in fleet.heard.items():
        rules = [rule.of(agent) for rule in ROLES[ROLE_OF[agent]] if rule.access.reads]
        for each in filters:
            assert any(covers(rule.path, each) for rule in rules), f"{agent} may not read {each}"


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_no_rule_is_there_that_no_agent_needs(fleet: Witnessed) -> None:
    # A probe and one's own state are the runner's, a head is read after a reconnect, the rest is for people.
    without_fleet = {"probe/{me}", "state/{me}", "adapter/+/head", "events", "command", "command/+"}
    without_fleet.add("probe/{me}/#")  # broker check needs it
    for role in ("device", "edge", "cloud"):
        agents = [name for name, is_a in ROLE_OF.items() if is_a == role]
        for rule in ROLES[role]:
            paths = {agent: rule.of(agent).path for agent in agents}
            says = any(matches(paths[who], topic) for who, topic, _ in fleet.said if who in paths)
            hears = any(covers(path, each) for who, path in paths.items() for each in fleet.heard[who])
            if rule.path not in without_fleet:
                assert says or not rule.access.writes, f"no {role} writes {rule.path}"
                assert hears or not rule.access.reads, f"no {role} reads {rule.path}"


def carried(found: tuple[Crossing, ...], topic: str) -> set[Way]:
    return {each.way for each in found if matches(each.path, topic)}


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("far", [{"cloud"}, {"cloud", "edge-1"}, {"cloud", "edge-2"}])
def test_a_bridge_carries_what_is_said_for_the_other_side(fleet: Witnessed, far: set[str]) -> None:
    standby = sorted(far - {"cloud"})
    found = crossings(standby=standby, edges=sorted({"edge-1", "edge-2"} - far))
    for speaker, topic, _ in fleet.said:
        for listener, filters in fleet.heard.items():
            needed = any(matches(each, topic) for each in filters)
            if needed and (speaker in far) != (listener in far):
                way = Way.IN if speaker in far else Way.OUT
                assert carried(found, topic) & {way, Way.BOTH}, f"{topic} does not reach {listener}"


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_bridge_carries_no_lan_no_checkpoints_and_nothing_both_ways(fleet: Witnessed) -> None:
    found = crossings()
    kinds = {topic.split("/")[0] for _, topic, _ in fleet.said}
    assert kinds >= {"lan", "checkpoint", "wan", "adapter"}
    for _, topic, _ in fleet.said:
        ways = carried(found, topic)
        assert len(ways) <= 1
        assert not ways or topic.split("/")[0] not in {"lan", "checkpoint", "probe"}


def test_with_a_standby_only_its_own_lan_crosses() -> None:
    found = crossings(standby=["spare"])
    assert carried(found, "lan/spare/press/s") == {Way.OUT}
    assert carried(found, "lan/press/spare/s") == {Way.IN}
    assert carried(found, "lan/press/edge-1/s") == carried(found, "lan/edge-1/press/s") == set()


def test_rules_are_placed_below_the_root_of_the_fleet() -> None:
    rule = next(rule for rule in ROLES["device"] if rule.access is Access.WRITE and rule.path.startswith("lan"))
    assert rule.of("%u").below(Topics("f", "plant7/")).path == "plant7/iotsplit/f/lan/+/%u/#"
