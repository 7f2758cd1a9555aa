"""Messages: what is encoded is decoded, and nothing else is."""

from typing import get_args

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotsplit.errors import MalformedMessageError
from iotsplit.messages import (
    Contents,
    Frame,
    Identity,
    Want,
    decode_content,
    encode_content,
    frame_of,
)
from iotsplit.plan import Tier
from iotsplit.settings import TrainingSettings
from iotsplit.states import (
    AdapterChunk,
    AdapterHead,
    Assignment,
    Birth,
    Command,
    Forget,
    Metrics,
    Reply,
    State,
    decode_state,
    encode_state,
)
from tests.unit.core.samples import CONTENTS, KINDS, STATES, contents, frame

NESTED = b"[" * 100_000

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


def test_there_is_a_sample_of_each_kind() -> None:
    assert set(get_args(Contents)) == KINDS
    assert {*get_args(State)} == {type(state) for state in STATES} | {Forget}


@pytest.mark.parametrize("content", CONTENTS, ids=lambda c: type(c).__name__)
def test_a_frames_content_comes_back(content: Contents) -> None:
    assert decode_content(encode_content(content)) == content


@given(contents)
def test_any_content_comes_back(content: Contents) -> None:
    assert decode_content(encode_content(content)) == content


@pytest.mark.parametrize("state", [s for s in STATES if not isinstance(s, AdapterChunk)], ids=repr)
def test_a_state_comes_back(state: State) -> None:
    assert decode_state(encode_state(state), type(state)) == state


def test_states_can_be_read_by_people() -> None:
    said = encode_state(Birth(agent="d1", role=Tier.DEVICE, online=True, incarnation=3)).decode()
    assert said.startswith('{"protocol":1,"agent":"d1","role":"device","online":true,"incarnation":3')


def test_a_heartbeat_says_only_what_there_is() -> None:
    assert encode_state(Metrics(agent="d1", role=Tier.DEVICE)) == b'{"agent":"d1","role":"device"}'


def test_fields_of_a_later_protocol_are_passed_over() -> None:
    assert decode_state(b'{"id":"x","ok":true,"colour":"red"}', Reply) == Reply(id="x", ok=True)


# --- what is refused


@given(st.binary(max_size=200) | plain.map(msgpack.packb))
def test_any_bytes_are_a_content_or_refused(body: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        decode_content(body)


@pytest.mark.parametrize("content", CONTENTS, ids=lambda c: type(c).__name__)
@given(data=st.data())
def test_a_content_with_any_other_field_is_read_or_refused(content: Contents, data: st.DataObject) -> None:
    fields = msgspec.to_builtins(content, builtin_types=(bytes,))
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(plain)
    try:
        assert type(decode_content(msgpack.packb(fields))) in KINDS
    except MalformedMessageError:
        return


@pytest.mark.parametrize("content", CONTENTS, ids=lambda c: type(c).__name__)
def test_a_content_that_was_cut_off_is_refused(content: Contents) -> None:
    body = encode_content(content)
    for end in range(len(body)):
        with pytest.raises(MalformedMessageError):
            decode_content(body[:end])


@pytest.mark.parametrize(
    "body",
    [
        b"\xd6\x01abcd",  # an extension type
        b"\xd6\xff\x00\x00\x00\x00",  # a timestamp
        b"\x81\xa4kind\xd6\x01abcd",
        b"\x81\x01\x02",  # a key that is a number
        b"\x91" * 100_000,
        b"\xdf\xff\xff\xff\xff",  # a map of 4 billion
    ],
    ids=["ext", "timestamp", "ext-kind", "int-key", "nested", "huge-map"],
)
def test_strange_msgpack_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        decode_content(body)


@pytest.mark.parametrize("kind", ["want", "device_rows", "cloud_rows"])
def test_a_number_that_no_disk_can_hold_is_refused(kind: str) -> None:
    plain = {"kind": kind, "wanted": "device_rows", "samples": [2**63 - 1], "rows": [b""]}
    assert decode_content(msgpack.packb(plain))
    with pytest.raises(MalformedMessageError):
        decode_content(msgpack.packb(plain | {"samples": [2**63]}))


@pytest.mark.parametrize("kind", [type(state) for state in STATES])
@given(payload=st.binary(max_size=100) | plain.filter(lambda p: not has_bytes(p)).map(encode_state))
def test_any_bytes_are_a_state_or_refused(kind: type[State], payload: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        decode_state(payload, kind)


def has_bytes(value: object) -> bool:
    return b"\\x" in repr(value).encode() or "b'" in repr(value) or 'b"' in repr(value)


@pytest.mark.parametrize("payload", [NESTED, b'{"peft":' + NESTED, b"\xff", b""])
def test_strange_json_is_refused(payload: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        decode_state(payload, AdapterHead)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (b'{"rounds":0}', "rounds 0 is too small"),
        (b'{"codec":"int5"}', "codec 'int5' is unknown"),
        (b'{"codec":"int4:int5"}', "codec 'int4:int5' is unknown"),
        (b'{"update_codec":"int4"}', "Invalid enum value 'int4'.*update_codec"),
    ],
)
def test_settings_that_cannot_work_are_a_malformed_assignment(settings: bytes, named: str) -> None:
    payload = b'{"device":"d1","task":"train","settings":' + settings + b"}"
    with pytest.raises(MalformedMessageError, match=named):
        decode_state(payload, Assignment)


@pytest.mark.parametrize("field", ["step_tokens", "steps"])
def test_counts_that_are_divided_by_are_above_zero(field: str) -> None:
    fields = msgspec.to_builtins(CONTENTS[1], builtin_types=(bytes,))
    fields[field] = 0
    with pytest.raises(MalformedMessageError):
        decode_content(msgpack.packb(fields))


@pytest.mark.parametrize("kind", ["score", "tail_gradient"])
@pytest.mark.parametrize(
    ("field", "value"),
    [("loss_sum", float("nan")), ("loss_sum", float("inf")), ("loss_sum", float("-inf")), ("tokens", -1)],
)
def test_numbers_that_would_spoil_every_sum_are_refused(kind: str, field: str, value: float) -> None:
    (content,) = [c for c in CONTENTS if c.__struct_config__.tag == kind]
    fields = msgspec.to_builtins(content, builtin_types=(bytes,))
    fields[field] = value
    with pytest.raises(MalformedMessageError):
        decode_content(msgpack.packb(fields))


def test_more_right_sequences_than_there_are_is_refused() -> None:
    with pytest.raises(MalformedMessageError, match="3 of 2"):
        decode_content(
            msgpack.packb({"kind": "score", "loss_sum": 1.0, "tokens": 5, "exact": 3, "sequences": 2})
        )


@pytest.mark.parametrize("name", ["a/b", "#", "+", "a\n", "ü", "x" * 65])
@pytest.mark.parametrize("field", ["device", "session", "edge", "cloud"])
def test_an_assignment_names_nothing_that_cannot_stand_in_a_topic(field: str, name: str) -> None:
    fields = {"device": "d1", "task": "train", field: name}
    with pytest.raises(MalformedMessageError):
        decode_state(encode_state(fields), Assignment)


@pytest.mark.parametrize("name", ["a/b", "#", "a\n", ""])
def test_a_command_has_an_id_that_its_reply_can_stand_under(name: str) -> None:
    with pytest.raises(MalformedMessageError):
        decode_state(encode_state({"id": name, "verb": "now"}), Command)


# --- frames


def test_an_identity_depends_on_neither_epoch_nor_route() -> None:
    one = frame(Want(wanted="x"), step=2, micro_batch=1)
    other = frame(Want(wanted="x"), step=2, micro_batch=1, epoch=9, sender="e2", to="cloud", tier=Tier.EDGE)
    assert one.identity == other.identity == Identity("r-t1-d1", 2, 1, "want")


@pytest.mark.parametrize("content", CONTENTS, ids=lambda c: type(c).__name__)
def test_kinds_at_the_same_step_are_different_frames(content: Contents) -> None:
    same = [other for other in CONTENTS if frame(other).identity == frame(content).identity]
    assert {type(other) for other in same} == {type(content)}


@pytest.mark.parametrize(
    ("way", "sender", "to"),
    [
        ((Tier.DEVICE, Tier.EDGE), "d1", "e1"),
        ((Tier.EDGE, Tier.CLOUD), "e1", "c"),
        ((Tier.CLOUD, Tier.EDGE), "c", "e1"),
        ((Tier.DEVICE, Tier.CLOUD), "d1", "c"),
    ],
)
def test_a_frame_of_an_assignment_names_its_agents(way: tuple[Tier, Tier], sender: str, to: str) -> None:
    assignment = Assignment(
        device="d1", task="train", session="s", epoch=4, edge="e1", cloud="c", settings=TrainingSettings()
    )
    assert frame_of(assignment, Want(wanted="x"), way=way, at=(2, 1)) == Frame(
        sender=sender,
        to=to,
        tier=way[0],
        to_tier=way[1],
        device="d1",
        session="s",
        epoch=4,
        step=2,
        micro_batch=1,
        content=Want(wanted="x"),
    )
