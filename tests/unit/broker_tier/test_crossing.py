"""What a bridge makes of messages."""

from dataclasses import replace

from iotsplit_broker.checking.crossing import WAYS, Crossed, judge_crossing
from iotsplit_broker.checking.findings import Finding, Verdict

FINE = [
    Crossed(way=way, whole=way.wanted, qos=1 if way.wanted else None, kept=way.wanted and way.retained)
    for way in WAYS
]


def changed(name: str, **changes: object) -> list[Finding]:
    return judge_crossing(
        [replace(each, **changes) if each.way.name == name else each for each in FINE]  # type: ignore[arg-type]
    )


def test_a_bridge_that_carries_what_it_should_is_ok() -> None:
    assert [each.verdict for each in judge_crossing(FINE)] == [Verdict.OK, Verdict.OK]


def test_a_kind_that_does_not_cross_is_named() -> None:
    bridge, _ = changed("wan down", qos=None, whole=False)
    assert (bridge.verdict, bridge.fails, bridge.said) == (Verdict.ABSENT, True, "not across: wan down")


def test_a_message_that_is_cut_short_has_not_crossed() -> None:
    bridge, _ = changed("wan up", whole=False)
    assert bridge.verdict is Verdict.ABSENT


def test_flattened_qos_is_named() -> None:
    bridge, _ = changed("update up", qos=0)
    assert (bridge.verdict, bridge.fails, bridge.said) == (
        Verdict.FLATTENED,
        True,
        "QoS 1 becomes 0: update up",
    )
    assert "mqttv50" in bridge.fixes["mosquitto"]


def test_a_lost_retain_flag_is_named() -> None:
    bridge, _ = changed("state up", kept=False)
    assert (bridge.verdict, bridge.said) == (Verdict.FLATTENED, "not retained there: state up")
    assert bridge.measured["state_up_retained"] is False


def test_lan_on_the_other_side_is_pointed_out_but_no_failure() -> None:
    bridge, privacy = changed("lan up", qos=1, whole=True)
    assert bridge.verdict is Verdict.OK
    assert (privacy.verdict, privacy.fails) == (Verdict.CROSSES, False)
    assert "lan up" in privacy.said
