"""docs/PROTOCOL.md says what the code does."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import msgspec
import pytest

from iotsplit import chunks, mailbox, retained, states
from iotsplit.agent import STATE_EVERY, Agent
from iotsplit.chunks import Chunk, Head
from iotsplit.errors import MalformedMessageError, TensorRefusedError
from iotsplit.mailbox import AT_MOST_ONCE, RETAINED, Mailbox
from iotsplit.messages import (
    Cached,
    Contents,
    Frame,
    PackedTensor,
    Score,
    Update,
    Want,
)
from iotsplit.plan import Tier
from iotsplit.session import FIRST_PATIENCE_S, LEAST_PATIENCE_S, MAX_PATIENCE_S
from iotsplit.states import AdapterChunk, CheckpointChunk, Forget, State
from iotsplit.tensors.compression import SCHEMES, unpack_integers
from iotsplit.topics import DEPTHS, PATHS, Topics
from iotsplit_cloud.watch import REMIND_S
from iotsplit_edge.start import PATIENCE_S
from tests.unit.core.samples import frame

DOCUMENT = (Path(__file__).parents[3] / "docs" / "PROTOCOL.md").read_text("utf-8")


def table(first_column: str) -> list[dict[str, str]]:
    """The rows of the table whose first column has that name."""
    found = re.search(rf"^(\| {first_column} \|.*\n)\|[-|]+\n((?:\|.*\n)+)", DOCUMENT, re.MULTILINE)
    assert found is not None, first_column
    columns = cells(found[1])
    return [dict(zip(columns, cells(row), strict=True)) for row in found[2].splitlines()]


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split(" | ")]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


TOPICS = [row for row in table("topic") if row["message"] != "none"]
(PROBE,) = [row for row in table("topic") if row["message"] == "none"]
KINDS: dict[str, type[State | Frame]] = {kind.__name__: kind for kind in (*get_args(State), Frame)}


def test_every_message_has_its_rows() -> None:
    said = [row["message"] for row in TOPICS]
    assert set(said) == set(KINDS)
    assert sorted(said) == sorted([*KINDS, "Frame", "Frame"])


@pytest.mark.parametrize("row", [row for row in TOPICS if code(row["topic"])], ids=lambda row: row["topic"])
def test_the_table_has_the_topics_of_the_code(row: dict[str, str]) -> None:
    (topic,) = code(row["topic"])
    first, *rest = topic.split("/")
    assert len(rest) in DEPTHS[first]
    if row["message"] == "CheckpointHead":
        assert topic == "checkpoint/<device>/<name>/head"
    elif row["message"] != "Frame":
        assert topic == re.sub(r"\{message\.(\w+)\}", r"<\1>", PATHS[KINDS[row["message"]]])


def test_the_table_has_all_depths_of_all_first_words() -> None:
    shapes = {(topic.split("/")[0], topic.count("/")) for row in TOPICS for topic in code(row["topic"])}
    assert shapes == {(first, depth) for first, depths in DEPTHS.items() for depth in depths}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("lan", frame(Want(wanted="x"))),
        ("wan", frame(Want(wanted="x"), tier=Tier.EDGE, to_tier=Tier.CLOUD)),
        ("update", frame(Score(loss_sum=1.0, tokens=1, exact=0, sequences=1), to_tier=Tier.CLOUD)),
        ("update", frame(Update(tier=Tier.EDGE, tokens=1, tensors=b""), tier=Tier.EDGE)),
    ],
)
def test_frames_lie_where_the_table_says(row: str, message: Frame) -> None:
    (topic,) = [topic for r in TOPICS for topic in code(r["topic"]) if topic.startswith(row)]
    filled = re.sub(r"<(\w+)>", lambda found: str(getattr(message, found[1])), topic)
    assert Topics("plant").topic_of(message) == f"iotsplit/plant/{filled}"


def test_the_probe_lies_where_the_table_says_and_nobody_takes_it_for_a_message() -> None:
    (topic,) = code(PROBE["topic"])
    role: Any = SimpleNamespace(agent="<agent>")
    probe = Agent(role, Mailbox(Topics("plant"), "d1")).probe_topic
    assert probe == f"iotsplit/plant/{topic}"
    with pytest.raises(MalformedMessageError):
        Topics("plant").parse(probe)


@pytest.mark.parametrize("row", TOPICS, ids=lambda row: row["topic"])
def test_the_table_has_the_flags_of_the_code(row: dict[str, str]) -> None:
    kind = KINDS[row["message"]]
    assert row["retained"] == ("yes" if kind in RETAINED else "no")
    assert row["QoS"] == ("0" if kind in AT_MOST_ONCE else "1")


@pytest.mark.parametrize("row", TOPICS, ids=lambda row: row["topic"])
def test_the_table_has_the_fields_of_the_code(row: dict[str, str]) -> None:
    kind = KINDS[row["message"]]
    if kind not in (Frame, AdapterChunk, CheckpointChunk, Forget):
        assert tuple(code(row["fields"])) == kind.__struct_fields__


def test_the_chunk_table_has_the_fields_of_a_chunk() -> None:
    rows = table("place")
    assert [row["name"] for row in rows] == [*Head._fields, *Chunk._fields[1:-1], "bytes"]
    assert [int(row["place"]) for row in rows] == list(range(14))
    types = {"int": int, "str": str, "bin": memoryview}
    assert tuple(types[row["type"]] for row in rows) == chunks.FIELDS


def test_the_contents_table_has_all_kinds_and_their_fields() -> None:
    rows = {code(row["kind"])[0]: row["fields"] for row in table("kind")}
    kinds = {str(kind.__struct_config__.tag): kind for kind in get_args(Contents)}
    assert set(rows) == set(kinds)
    for tag, kind in kinds.items():
        named = [name for name in code(rows[tag]) if name in kind.__struct_fields__]
        assert tuple(named) == kind.__struct_fields__


def test_the_table_of_remembered_samples_has_its_fields() -> None:
    assert tuple(code(row["cached"])[0] for row in table("cached")) == Cached.__struct_fields__


def test_the_tensor_table_has_the_fields_of_a_tensor_and_all_schemes() -> None:
    assert PackedTensor.__struct_fields__ == ("scheme", "shape", "data")
    assert {code(row["scheme"])[0] for row in table("scheme")} == {*map(str, SCHEMES), "u8", "i32"}


@pytest.mark.parametrize("row", table("scheme"), ids=lambda row: row["scheme"])
def test_the_tensor_table_has_the_sizes_of_the_schemes(row: dict[str, str]) -> None:
    (scheme,) = code(row["scheme"])
    formula = row["bytes"].replace("·", "*").replace("product of the shape", "tokens * width")
    formula = formula.replace("⌈width / 64⌉", "-(-width // 64)")
    size = int(eval(formula, {"tokens": 6, "width": 5}))
    if scheme in SCHEMES:
        assert SCHEMES[next(codec for codec in SCHEMES if codec == scheme)].size_bytes(6, 5) == size
        return
    assert unpack_integers(PackedTensor(scheme=scheme, shape=(6, 5), data=bytes(size)), (6, 5)).shape == (6, 5)
    with pytest.raises(TensorRefusedError):
        unpack_integers(PackedTensor(scheme=scheme, shape=(6, 5), data=bytes(size + 1)), (6, 5))


def test_the_example_is_what_is_sent() -> None:
    example = re.search(r"^```\n(9e .*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert example is not None
    written = " ".join(line[:46] for line in example[1].splitlines())  # then come comments
    said = frame(Want(wanted="gradient"), step=4)
    (packet,) = Mailbox(Topics("plant"), "d1").outgoing(said)
    assert bytes.fromhex(written) == packet.payload


LIMITS = {row["what"]: row["limit"] for row in table("what")}


@pytest.mark.parametrize(
    ("what", "numbers"),
    [
        ("payload of a frame's chunk", [chunks.CHUNK_BYTES, mailbox.LEAST_CHUNK_BYTES]),
        ("JSON message", [mailbox.MAX_STATE_BYTES >> 10]),
        ("body of a frame", [mailbox.MAX_MESSAGE_BYTES >> 20]),
        ("unfinished frames of one agent", [mailbox.MAX_OPEN_BYTES >> 20, chunks.PIECE_BYTES]),
        ("LZ4", [chunks.MAX_RATIO]),
        ("section of an adapter version", [retained.MAX_SECTION_BYTES >> 30]),
        ("topics of one version or checkpoint at a time", [retained.WINDOW]),
        ("agents that one agent remembers", [states.MAX_AGENTS]),
    ],
)
def test_the_limits_are_those_of_the_code(what: str, numbers: list[int]) -> None:
    assert [int(number) for number in re.findall(r"(?<!LZ)\d+", LIMITS[what])] == numbers


def test_the_patience_is_that_of_the_code() -> None:
    said = f"within {LEAST_PATIENCE_S:.0f} s and {MAX_PATIENCE_S:.0f} s, at first {FIRST_PATIENCE_S:.0f} s"
    assert said in DOCUMENT


def test_the_times_of_recovery_are_those_of_the_code() -> None:
    assert f"for {retained.AGAIN_S:.0f} s" in DOCUMENT
    assert f"within {retained.LOOK_S:.0f} s" in DOCUMENT
    assert f"for {REMIND_S:.0f} s" in DOCUMENT
    assert f"for {PATIENCE_S:.0f} s" in DOCUMENT
    assert STATE_EVERY == 6
    assert "every sixth heartbeat" in DOCUMENT


def test_the_version_is_that_of_the_code() -> None:
    assert f"\nVersion {states.PROTOCOL_VERSION}. " in DOCUMENT


def test_the_head_of_an_adapter_names_its_sections_as_the_document_does() -> None:
    fields: Any = msgspec.structs.fields(states.AdapterSection)
    assert "{" + ", ".join(f'"{field.name}"' for field in fields) + "}" in DOCUMENT
