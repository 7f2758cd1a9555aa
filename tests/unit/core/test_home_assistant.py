"""How an agent appears in Home Assistant: topics that it speaks on, templates that read what it says there."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from paho.mqtt.client import topic_matches_sub

from iotsplit.errors import UsageError
from iotsplit.home_assistant import check_prefix, discovery, topic_of
from iotsplit.messages import Message
from iotsplit.options import AgentOptions, parse
from iotsplit.plan import Tier
from iotsplit.states import Birth, Metrics, Round, encode_state
from iotsplit.topics import Topics

TOPICS = Topics("bakery", "plant7/line3/")
JINJA = ImmutableSandboxedEnvironment()


def birth(agent: str = "press", role: Tier = Tier.DEVICE, *, online: bool = True, problem: str = "") -> Birth:
    return Birth(agent=agent, role=role, online=online, incarnation=1, version="0.1.0", problem=problem)


def appearing(agent: str = "press", role: Tier = Tier.DEVICE) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads(discovery("homeassistant", TOPICS, birth(agent, role)).payload)
    return payload


def shown(name: str, message: Message, agent: str = "press", role: Tier = Tier.DEVICE) -> str:
    """What a sensor makes of a message; it has to be one that reaches it."""
    sensor = appearing(agent, role)["components"][name]
    assert topic_matches_sub(sensor["state_topic"], TOPICS.topic_of(message))
    return rendered(sensor["value_template"], message)


def rendered(template: str, message: Message) -> str:
    return JINJA.from_string(template).render(value_json=json.loads(encode_state(message)))


def metrics(agent: str = "press", role: Tier = Tier.DEVICE, **more: Any) -> Metrics:
    return Metrics(agent=agent, role=role, **more)


def test_the_message_is_retained_where_home_assistant_looks() -> None:
    packet = discovery("homeassistant", TOPICS, birth())
    assert packet.retain
    assert packet.topic == "homeassistant/device/plant7_line3_iotsplit_bakery_press/config"


def test_it_has_what_device_discovery_asks_for() -> None:
    found = appearing()
    assert found["device"]["identifiers"] == ["plant7_line3_iotsplit_bakery_press"]
    assert (found["device"]["model"], found["device"]["sw_version"]) == ("device", "0.1.0")
    assert found["origin"]["name"] == "iotsplit"
    assert set(found["components"]) == {"state", "round", "loss", "sent", "received"}
    assert {each["platform"] for each in found["components"].values()} == {"sensor"}
    assert len({each["unique_id"] for each in found["components"].values()}) == 5


@given(
    st.sampled_from(["a", "a_b", "a-b"]), st.sampled_from(["c", "b_c", "_"]), st.sampled_from(["", "a/", "a_/"])
)
def test_no_two_agents_have_one_topic(fleet: str, agent: str, prefix: str) -> None:
    others = {
        (p, f, a): topic_of("h", Topics(f, p), a)
        for p in ("", "a/", "a_/")
        for f in ("a", "a_b", "a-b")
        for a in ("c", "b_c", "_")
    }
    own = others.pop((prefix, fleet, agent))
    assert own not in others.values()
    assert set(own) <= set("abcdefghijklmnopqrstuvwxyz_-/")


@pytest.mark.parametrize(
    ("said", "shows"),
    [
        (birth(), "online"),
        (birth(online=False), "offline"),
        (birth(online=False, problem="waits for texts: 3 of 16"), "waits for texts: 3 of 16"),
        (birth(online=False, problem="x" * 300), "x" * 255),
    ],
)
def test_the_state_tells_why(said: Birth, shows: str) -> None:
    assert shown("state", said) == shows
    assert "availability" not in appearing()["components"]["state"]  # else the reason could not be seen


def test_numbers_are_unavailable_while_the_agent_is() -> None:
    for name, sensor in appearing()["components"].items():
        if name != "state":
            (availability,) = sensor["availability"]
            assert availability["topic"] == TOPICS.topic_of(birth())
            assert rendered(availability["value_template"], birth()) == "online"
            assert rendered(availability["value_template"], birth(online=False)) == "offline"


def test_the_round_is_the_fleets() -> None:
    assert shown("round", Round(round=7, phase="training", version=6, sessions=2)) == "7"


@pytest.mark.parametrize("agent", ["press", "x-press"])
def test_a_device_shows_the_loss_of_its_own_sessions_whoever_says_it(agent: str) -> None:
    for name in ("press", "x-press", "cloud"):
        said = metrics("cloud", Tier.CLOUD, session=f"3fa2c1-t2r1-{name}", loss=1.25)
        assert shown("loss", said, agent) == ("1.25" if name == agent else "")
    assert shown("loss", metrics(session=f"3fa2c1-t2-{agent}", loss=0.5), agent) == "0.5"
    assert shown("loss", metrics(), agent) == ""


def test_edge_and_cloud_show_the_loss_that_was_said_last() -> None:
    said = metrics("cloud", Tier.CLOUD, session="3fa2c1-t2-press", loss=1.25)
    for agent, role in (("edge-1", Tier.EDGE), ("cloud", Tier.CLOUD)):
        assert shown("loss", said, agent, role) == "1.25"
        assert shown("loss", metrics(agent, role), agent, role) == ""


def test_bytes_are_all_that_the_agent_has_sent_and_received() -> None:
    heartbeat = metrics(sent_bytes={"lan": 1000, "metrics": 24}, received_bytes={"lan": 5})
    assert (shown("sent", heartbeat), shown("received", heartbeat)) == ("1024", "5")
    assert shown("sent", metrics(session="a-t1-press", sent_bytes={"lan": 7})) == ""
    assert shown("sent", metrics()) == ""


@pytest.mark.parametrize("prefix", ["", "/x", "x/", "a/+", "#", "$SYS"])
def test_a_prefix_that_is_none_is_refused(prefix: str) -> None:
    with pytest.raises(UsageError, match="is not a topic prefix"):
        check_prefix(prefix)


@pytest.mark.parametrize(
    ("words", "prefix"),
    [
        ([], ""),
        (["--home-assistant"], "homeassistant"),
        (["--home-assistant", "--threads=1"], "homeassistant"),
        (["--home-assistant", "ha/x"], "ha/x"),
        (["--home-assistant=ha"], "ha"),
    ],
)
def test_the_prefix_may_be_left_out(words: list[str], prefix: str) -> None:
    options = parse(AgentOptions, words, name="iotsplit edge", environment={})
    assert options.home_assistant == prefix
