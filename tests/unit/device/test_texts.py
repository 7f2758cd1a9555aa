"""What a tap takes for a text."""

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from iotsplit.errors import UsageError
from iotsplit.topics import DEPTHS, Topics
from iotsplit_device.texts import NotATextError, Reason, check_filters, deal, digest, normal, text_of

NOTE = "press 7 runs hot since noon"


def take(payload: bytes, field: str = "", longest: int = 1000) -> str:
    return text_of(payload, field, longest=longest)


# --- filters

OWN = ["#", "+/#", "iotsplit/#", "iotsplit/+/state/+", "+/default/metrics/+", "+/+/+", "$share/g/#"]


@pytest.mark.parametrize("pattern", [*OWN, "iotsplit/another/#"])
def test_filters_that_match_what_fleets_say_are_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="matches topics below iotsplit/, where fleets speak"):
        check_filters([pattern], Topics("default"))


@pytest.mark.parametrize("pattern", ["factory/+/log", "factory/#", "+", "+/log", "iotsplit", "$SYS/#"])
def test_filters_that_match_others_are_taken(pattern: str) -> None:
    check_filters([pattern], Topics("default"))


def test_the_prefix_of_the_fleet_counts() -> None:
    check_filters(["plant7/line4/#", "+/line3/log", "iotsplit/#"], Topics("default", "plant7/line3/"))
    for pattern in ("plant7/#", "+/line3/+/#", "plant7/+/iotsplit/default/events"):
        with pytest.raises(UsageError, match="plant7/line3/iotsplit/"):
            check_filters([pattern], Topics("default", "plant7/line3/"))


@pytest.mark.parametrize("pattern", ["", "a/#/b", "a+/b", "a/b#"])
def test_what_is_no_filter_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="is not one"):
        check_filters([pattern], Topics("default"))


words = st.sampled_from(["+", "#", "iotsplit", "default", "plant7", "state", "x"])


@given(st.lists(words, min_size=1, max_size=6), st.sampled_from(["", "plant7/", "plant7/x/"]))
def test_no_filter_that_is_taken_matches_a_topic_of_the_fleet(pattern: list[str], prefix: str) -> None:
    topics = Topics("default", prefix)
    try:
        check_filters(["/".join(pattern)], topics)
    except UsageError:
        return
    for first, depths in DEPTHS.items():
        for depth in depths:
            topic = topics.root + "/".join([first, *["x"] * depth])
            assert not topic_matches_sub("/".join(pattern), topic)


# --- fields


def test_the_payload_is_the_text() -> None:
    assert take(f"\ufeff {NOTE}\r\n".encode()) == NOTE


@pytest.mark.parametrize("field", ["text", "note.body.text"])
def test_the_text_is_in_a_field(field: str) -> None:
    message: object = NOTE
    for word in reversed(field.split(".")):
        message = {word: message, "other": 1}
    assert take(json.dumps(message).encode(), field) == NOTE


@pytest.mark.parametrize(
    ("payload", "field", "reason"),
    [
        (b"\xff" * 20, "", Reason.NOT_UTF8),
        (b"", "", Reason.TOO_SHORT),
        (b"short", "", Reason.TOO_SHORT),
        (b"x" * 1001, "", Reason.TOO_LARGE),
        (NOTE.encode(), "text", Reason.NOT_JSON),
        (b'{"text": "\xff"}', "text", Reason.NOT_JSON),
        (b'{"text": "\\ud800 a lone surrogate"}', "text", Reason.NOT_JSON),
        (b"[" * 999, "text", Reason.NOT_JSON),
        (b'{"txt": "x"}', "text", Reason.NO_FIELD),
        (b'["text"]', "text", Reason.NO_FIELD),
        (b'{"a": "b"}', "a.b", Reason.NO_FIELD),
        (b'{"text": 7}', "text", Reason.NOT_A_STRING),
        (b'{"text": null}', "text", Reason.NOT_A_STRING),
    ],
)
def test_what_is_no_text_says_why(payload: bytes, field: str, reason: Reason) -> None:
    with pytest.raises(NotATextError) as caught:
        take(payload, field)
    assert caught.value.reason is reason


@given(st.binary(max_size=60), st.sampled_from(["", "text", "a.b"]))
def test_whatever_comes_is_a_text_or_refused(payload: bytes, field: str) -> None:
    try:
        text = take(payload, field)
    except NotATextError:
        return
    assert text == normal(text)
    assert text.encode()


@given(st.text())
def test_the_normal_form_is_one(text: str) -> None:
    once = normal(text)
    assert normal(once) == once
    assert "\0" not in once


def test_texts_that_look_alike_are_the_same() -> None:
    assert normal("cafe\u0301  \r\nshut\x00 ") == normal("caf\u00e9\nshut")


# --- what is held out

texts = st.lists(st.text(min_size=1), min_size=2, max_size=30, unique=True)


@pytest.mark.slow
@given(texts, st.integers(1, 10))
def test_there_is_always_something_to_learn_and_something_to_score(found: list[str], limit: int) -> None:
    dealt = deal(found, eval_limit=limit)
    scored = [each.text for each in dealt if each.split == "eval"]
    learnt = [each.text for each in dealt if each.split == "train"]
    assert 1 <= len(scored) <= limit
    assert learnt
    assert not set(scored) & set(learnt)
    assert [each for each in found if each in learnt] == learnt


@pytest.mark.slow
@given(texts, st.integers(1, 4))
def test_what_is_scored_was_never_learnt_however_many_come(found: list[str], limit: int) -> None:
    assume(any(digest(text)[0] > 25 for text in found[:2]))  # else one has to be learnt all the same
    learnt: set[str] = set()
    for count in range(2, len(found) + 1):
        dealt = deal(found[:count], eval_limit=limit)
        scored = {each.text for each in dealt if each.split == "eval"}
        assert not scored & learnt
        learnt |= {each.text for each in dealt if each.split == "train"}


def test_of_nothing_nothing_is_dealt() -> None:
    assert deal([], eval_limit=3) == []
