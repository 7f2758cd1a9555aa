"""Which roles a user's rights are enough for."""

import pytest

from iotsplit.errors import PeerError
from iotsplit.mailbox import Mailbox
from iotsplit.packet import Packet
from iotsplit.topics import DEPTHS, Topics
from iotsplit_broker.checking.findings import Finding, Verdict
from iotsplit_broker.checking.rights import PATHS, READS, WRITES, Access, Role, access_of, judge_rights, lacks

TOPICS = Topics("default", "plant7/")
ALL = dict.fromkeys(PATHS, Access(write=True, read=True))
NONE = dict.fromkeys(PATHS, Access(write=False, read=False))


def device_only() -> dict[str, Access]:
    """A device's rights, as its broker shows them: what it may only read cannot be shown."""
    seen = dict(NONE)
    seen |= {name: Access(write=True, read=False) for name in WRITES[Role.DEVICE]}
    seen |= {name: Access(write=False, read=None) for name in READS[Role.DEVICE]}
    seen |= {name: Access(write=True, read=True) for name in WRITES[Role.DEVICE] & READS[Role.DEVICE]}
    return seen


def judged(seen: dict[str, Access], wanted: Role) -> Finding:
    return judge_rights(seen, wanted, TOPICS, "press-3")


def test_what_roles_need_is_what_the_access_rules_give_them() -> None:
    everyone = {"state", "metrics", "probe"}
    assert {
        Role.DEVICE: everyone | {"lan", "update"},
        Role.EDGE: everyone | {"lan", "wan", "edge_update", "checkpoint"},
        Role.CLOUD: everyone | {"round", "assign", "wan", "adapter", "adapter_head", "events", "reply"},
    } == WRITES
    own = {"state", "probe"}
    assert {
        Role.DEVICE: own | {"assign", "lan", "adapter", "adapter_head"},
        Role.EDGE: own | {"assign", "lan", "wan", "adapter", "adapter_head", "checkpoint"},
        Role.CLOUD: own | {"wan", "update", "edge_update", "adapter_head", "metrics", "command"},
    } == READS


def test_whoever_may_do_everything_may_be_everything() -> None:
    finding = judged(ALL, Role.ANY)
    assert finding.measured["roles"] == ["device", "edge", "cloud"]
    assert finding.verdict is Verdict.OK


def test_a_devices_rights_are_enough_for_a_device_alone() -> None:
    finding = judged(device_only(), Role.DEVICE)
    assert finding.measured["roles"] == ["device"]
    assert not finding.fails
    assert "not as cloud" in finding.said


def test_what_a_role_lacks_is_named_with_the_rule_to_add() -> None:
    finding = judged(device_only(), Role.EDGE)
    assert finding.fails
    assert "may not write checkpoint, edge update, wan nor read" in finding.said
    expected = (
        "checkpoint/# readwrite",
        "update/+/+/edge write",
        "wan/+/press-3/# write",
        "wan/press-3/# read",
    )
    rules = [f"topic {access} {TOPICS.root}{path}" for path, access in (each.split() for each in expected)]
    assert finding.fixes["mosquitto"] == f"in acl_file: user press-3; {'; '.join(rules)}"


def test_what_a_device_lacks_is_given_to_every_device() -> None:
    seen = {**device_only(), "lan": Access(write=False, read=True)}
    finding = judged(seen, Role.DEVICE)
    assert finding.fixes["mosquitto"] == f"in acl_file: pattern write {TOPICS.root}lan/+/%u/#"


def test_with_any_role_one_has_to_be_possible() -> None:
    finding = judged(NONE, Role.ANY)
    assert finding.fails
    assert finding.said.startswith("enough for no role; as device")


@pytest.mark.parametrize("role", WRITES)
def test_each_single_right_is_needed(role: Role) -> None:
    for name in WRITES[role]:
        assert lacks({**ALL, name: Access(write=False, read=True)}, role) == [("write", name)]
    for name in READS[role]:
        assert lacks({**ALL, name: Access(write=True, read=False)}, role) == [("read", name)]


def test_silence_where_both_rights_are_needed_means_that_one_is_missing() -> None:
    unknown = Access(write=None, read=None)
    assert lacks({**ALL, "state": unknown}, Role.DEVICE) == [("read", "state")]
    assert lacks({**ALL, "assign": unknown}, Role.DEVICE) == []


ECHO = {"code": 0, "echoed": True, "heard": True, "subscribed": True}
DENIED = {"code": 0x87, "echoed": False, "heard": False, "subscribed": True}


@pytest.mark.parametrize(
    ("seen", "honest", "access"),
    [
        (ECHO, True, Access(write=True, read=True)),
        (ECHO, False, Access(write=True, read=True)),
        (DENIED, True, Access(write=False, read=None)),
        ({**DENIED, "code": 0}, True, Access(write=True, read=False)),
        ({**DENIED, "code": 0x10}, True, Access(write=True, read=False)),
        # Of MQTT 3.1.1 every acknowledgement says the same.
        ({**DENIED, "code": 0}, False, Access(write=None, read=None)),
        ({**DENIED, "code": None}, False, Access(write=False, read=None)),
        ({**DENIED, "subscribed": False}, True, Access(write=False, read=False)),
        ({**DENIED, "code": 0, "subscribed": False}, False, Access(write=None, read=False)),
        # A live fleet's retained message shows that we may read.
        ({**DENIED, "heard": True}, True, Access(write=False, read=True)),
    ],
)
def test_what_a_message_shows(seen: dict[str, object], honest: bool, access: Access) -> None:
    assert access_of(**seen, honest=honest) == access  # type: ignore[arg-type]  # tests only


def test_all_topics_of_the_protocol_are_looked_at() -> None:
    firsts = {path.split("/")[0] for path in PATHS.values()}
    assert firsts == set(DEPTHS) | {"probe"}


@pytest.mark.parametrize("name", [name for name in PATHS if name not in {"probe", "adapter", "checkpoint"}])
def test_agents_drop_what_a_check_says(name: str) -> None:
    topic = TOPICS.root + PATHS[name].format(me="press-3")
    with pytest.raises(PeerError):
        Mailbox(TOPICS, "press-3").incoming(Packet(topic=topic, payload=b'{"check": "check-1"}'))
