"""Messages become packets and packets messages; what contradicts its topic is refused."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotsplit import mailbox
from iotsplit.chunks import Head, cut
from iotsplit.errors import MalformedMessageError, PeerError, UsageError
from iotsplit.mailbox import RETAINED, Mailbox
from iotsplit.messages import (
    Contents,
    Frame,
    Message,
    Score,
    Stuck,
    Update,
    Want,
    encode_content,
)
from iotsplit.packet import Packet
from iotsplit.plan import Tier
from iotsplit.states import (
    PROTOCOL_VERSION,
    AdapterChunk,
    CheckpointChunk,
    Forget,
    Metrics,
    State,
    encode_state,
)
from iotsplit.topics import Topics
from tests.unit.core.samples import CONTENTS, STATES, contents, frame

TOPICS = Topics("plant")
ROOT = TOPICS.root


def box(agent: str = "e1", **changes: int) -> Mailbox:
    return Mailbox(TOPICS, agent, **changes)


def through(message: Message, agent: str = "e1", **changes: int) -> list[Message | None]:
    """What another agent makes of each packet of a message."""
    reader = box(agent)
    return [reader.incoming(packet) for packet in box("d1", **changes).outgoing(message)]


def incoming(path: str, payload: bytes) -> Message | None:
    return box().incoming(Packet(topic=ROOT + path, payload=payload))


@pytest.mark.parametrize("content", [c for c in CONTENTS if not isinstance(c, Update)], ids=repr)
def test_a_frame_arrives_as_it_was_sent(content: Contents) -> None:
    sent = frame(content, step=4, micro_batch=1, epoch=2)
    assert through(sent) == [sent]


@given(contents.filter(lambda c: not isinstance(c, Update)), st.integers(200, 400))
def test_any_frame_arrives_whole_with_its_last_chunk(content: Contents, chunk_bytes: int) -> None:
    *before, last = through(frame(content), chunk_bytes=chunk_bytes)
    assert before == [None] * len(before)
    assert last == frame(content)


def test_an_update_arrives_under_its_devices_name_at_whoever_reads_updates() -> None:
    update = Update(tier=Tier.EDGE, tokens=3, tensors=b"x")
    sent = frame(update, sender="e1", tier=Tier.EDGE, to="c", to_tier=Tier.CLOUD)
    (got,) = through(sent, agent="c")
    assert isinstance(got, Frame)
    assert (got.sender, got.to, got.tier, got.content) == ("d1", "c", Tier.EDGE, update)
    assert got.identity == sent.identity


@pytest.mark.parametrize("state", STATES, ids=lambda s: type(s).__name__)
def test_a_state_arrives_as_it_was_sent(state: State) -> None:
    assert through(state) == [state]


@pytest.mark.parametrize("state", STATES, ids=lambda s: type(s).__name__)
def test_states_are_retained_and_news_is_not(state: State) -> None:
    (packet,) = box().outgoing(state)
    assert packet.retain == isinstance(state, RETAINED)
    assert packet.qos == (0 if isinstance(state, Metrics) else 1)


@pytest.mark.parametrize("content", CONTENTS, ids=lambda c: type(c).__name__)
def test_frames_are_not_retained(content: Contents) -> None:
    assert [(p.qos, p.retain) for p in box().outgoing(frame(content))] == [(1, False)]


def test_forgetting_clears_a_retained_topic() -> None:
    (packet,) = box().outgoing(Forget(path="adapter/2/5"))
    assert packet == Packet(topic=ROOT + "adapter/2/5", payload=b"", retain=True)


@pytest.mark.parametrize(
    "path",
    [
        "state/d1",
        "assign/d1",
        "round",
        "adapter/latest",
        "adapter/1/head",
        "adapter/1/0",
        "checkpoint/d1/s.1.5/head",
        "checkpoint/d1/s.1.5/0",
    ],
)
def test_a_cleared_topic_says_nothing(path: str) -> None:
    assert incoming(path, b"") is None


def test_a_chunk_size_without_room_for_bytes_is_refused() -> None:
    with pytest.raises(UsageError, match="chunk_bytes 160"):
        box(chunk_bytes=160)


# --- what contradicts itself


@pytest.mark.parametrize(
    ("path", "state"),
    [
        ("state/other", STATES[0]),
        ("assign/other", STATES[1]),
        ("adapter/3/head", STATES[4]),
        ("checkpoint/other/4.2/head", STATES[7]),
        ("checkpoint/d1/r-t1-d1.5.10/head", STATES[7]),
        ("metrics/other", STATES[9]),
        ("command/other", STATES[12]),
    ],
)
def test_a_state_on_somebody_elses_topic_is_refused(path: str, state: State) -> None:
    with pytest.raises(MalformedMessageError):
        incoming(path, encode_state(state))


@pytest.mark.parametrize(
    "path", ["adapter/oldest", "adapter/x/head", "adapter/x/1", "adapter/1/x", "adapter/-1/0"]
)
def test_an_adapter_topic_without_numbers_is_refused(path: str) -> None:
    with pytest.raises(MalformedMessageError):
        incoming(path, b"{}")


@pytest.mark.parametrize("index", ["tail", "-1", "1.0"])
def test_a_piece_of_a_checkpoint_without_a_number_is_refused(index: str) -> None:
    with pytest.raises(MalformedMessageError):
        incoming(f"checkpoint/d1/s.1.5/{index}", b"x")


def test_a_piece_of_a_checkpoint_is_named_by_its_topic() -> None:
    piece = incoming("checkpoint/d1/s.1.5/7", b"\x00\xff")
    assert piece == CheckpointChunk(device="d1", name="s.1.5", index=7, data=b"\x00\xff")


def raw(content: Contents, head: Head) -> bytes:
    (payload,) = cut(encode_content(content), head)
    return payload


HEAD = Head(PROTOCOL_VERSION, "d1", "device", "cloud", 1, 0, 0)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("update/d2/s/device", CONTENTS[6]),
        ("update/d1/s/edge", CONTENTS[6]),
        ("update/d1/s/device", Want(wanted="x")),
    ],
)
def test_an_update_that_differs_from_its_topic_is_refused(path: str, content: Contents) -> None:
    with pytest.raises(MalformedMessageError, match="differs from its topic"):
        incoming(path, raw(content, HEAD))


@pytest.mark.parametrize(
    "content",
    [CONTENTS[6], Stuck(reason="no", unfit=True), Score(loss_sum=1.0, tokens=2, exact=0, sequences=1)],
)
def test_a_device_brings_what_it_has_to_the_cloud(content: Contents) -> None:
    frame = incoming("update/d1/s/device", raw(content, HEAD))
    assert isinstance(frame, Frame)
    assert (frame.sender, frame.content) == ("d1", content)


def test_another_protocol_version_is_named() -> None:
    with pytest.raises(MalformedMessageError, match="protocol version 99"):
        incoming("lan/e1/d1/s", raw(Want(wanted="x"), HEAD._replace(protocol=99)))


@pytest.mark.parametrize("head", [HEAD._replace(tier="fog"), HEAD._replace(to_tier="fog")])
def test_an_unknown_tier_is_refused(head: Head) -> None:
    with pytest.raises(MalformedMessageError, match="tier 'fog'"):
        incoming("lan/e1/d1/s", raw(Want(wanted="x"), head))


def test_a_state_that_is_too_large_is_not_even_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "decode_state", lambda *_: pytest.fail("parsed"))
    with pytest.raises(MalformedMessageError, match="bytes of state"):
        incoming("state/d1", b" " * (mailbox.MAX_STATE_BYTES + 1))


def test_a_head_that_is_too_large_is_not_even_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "decode_state", lambda *_: pytest.fail("parsed"))
    for path in ("adapter/1/head", "adapter/latest", "checkpoint/d1/s.1.5/head"):
        with pytest.raises(MalformedMessageError, match="bytes of a"):
            incoming(path, b" " * (mailbox.MAX_STATE_BYTES + 1))


paths = st.sampled_from(
    [
        "state/d1",
        "assign/d1",
        "round",
        "adapter/latest",
        "adapter/1/head",
        "adapter/1/2",
        "checkpoint/d1/s.1.5/head",
        "checkpoint/d1/s.1.5/2",
        "metrics/d1",
        "events",
        "command",
        "command/x",
        "lan/e1/d1/s",
        "wan/e1/c/s",
        "update/d1/s/device",
        "other",
    ]
)
values = st.recursive(st.none() | st.integers(0, 99) | st.text(max_size=5), lambda v: st.lists(v, max_size=3))


@given(paths, st.binary(max_size=80) | values.map(msgpack.packb) | values.map(encode_state))
def test_any_packet_is_a_message_or_refused(path: str, payload: bytes) -> None:
    try:
        message = incoming(path, payload)
    except PeerError:
        return
    assert message is None or isinstance(message, AdapterChunk | CheckpointChunk)
