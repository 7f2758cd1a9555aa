"""One message of each kind, and strategies for any."""

from typing import Any

from hypothesis import strategies as st

from iotsplit.messages import (
    Activation,
    Cached,
    CloudRows,
    Content,
    Contents,
    DeviceRows,
    Frame,
    Gradient,
    PackedTensor,
    Resume,
    Score,
    Stuck,
    TailGradient,
    TailHidden,
    Update,
    Want,
)
from iotsplit.plan import Tier
from iotsplit.settings import TrainingSettings
from iotsplit.states import (
    AdapterChunk,
    AdapterHead,
    AdapterLatest,
    AdapterSection,
    Assignment,
    Birth,
    CheckpointChunk,
    CheckpointHead,
    Command,
    DataSummary,
    Event,
    Metrics,
    Reply,
    Round,
    State,
)

TENSOR = PackedTensor(scheme="int8", shape=(1, 2, 3), data=bytes(range(14)))

CONTENTS: list[Contents] = [
    Activation(hidden=TENSOR, mask=TENSOR, labels=TENSOR, step_tokens=5, steps=2),
    Activation(hidden=TENSOR, mask=TENSOR, step_tokens=5, steps=2),
    Gradient(gradient=TENSOR),
    TailHidden(hidden=TENSOR),
    TailGradient(gradient=TENSOR, loss_sum=1.5, tokens=3),
    Score(loss_sum=1.5, tokens=3, exact=1, sequences=2),
    Update(tier=Tier.EDGE, tokens=7, tensors=b"safetensors"),
    Activation(
        hidden=TENSOR,
        mask=TENSOR,
        step_tokens=5,
        steps=2,
        cached=Cached(samples=(4, 2), known=(True, False), change=TENSOR, empty=False),
    ),
    Want(wanted="gradient"),
    Want(wanted="device_rows", samples=(4, 7)),
    DeviceRows(samples=(4,), rows=(b"row",)),
    CloudRows(samples=(4, 7), rows=(b"row", b"")),
    Resume(step=3, turn=1 << 40),
    Stuck(reason="no checkpoint is left"),
]
KINDS: set[type[Content]] = {type(content) for content in CONTENTS}

STATES: list[State] = [
    Birth(
        agent="d1",
        role=Tier.DEVICE,
        online=True,
        incarnation=3,
        data=DataSummary(fingerprint="f", train_sequences=5, eval_sequences=1),
    ),
    Assignment(device="d1", task="train", session="r-t1-d1", epoch=1, edge="e1", settings=TrainingSettings()),
    Assignment(device="d1", task="idle", problem="no"),
    Round(round=1, phase="training", version=2, sessions=3),
    AdapterHead(
        version=2,
        round=1,
        model="m",
        sections={"edge": AdapterSection(first=0, chunks=1, size_bytes=3, sha256="0")},
        peft={"r": 8, "lora_alpha": 16.0, "target_modules": ["q_proj"], "bias": None},
    ),
    AdapterChunk(version=2, index=5, data=b"\x00\xff"),
    AdapterLatest(version=2),
    CheckpointHead(
        device="d1",
        session="r-t1-d1",
        epoch=4,
        step=10,
        slot=2,
        tokens=7,
        chunks=2,
        size_bytes=5,
        sha256="0",
    ),
    CheckpointChunk(device="d1", name="4.2", index=1, data=b"\x00\xff"),
    Metrics(agent="d1", role=Tier.DEVICE, session="r-t1-d1", step=1, loss=0.5, sent_bytes={"lan": 7}),
    Event(kind="agent_joined", agent="d1", detail="ü"),
    Command(id="x1", verb="rollback", version=1),
    Reply(id="x1", ok=True),
]


def frame(content: Contents, **changes: Any) -> Frame:
    """A frame of a session between device d1 and edge e1."""
    fields: dict[str, Any] = {
        "sender": "d1",
        "to": "e1",
        "tier": Tier.DEVICE,
        "to_tier": Tier.EDGE,
        "device": "d1",
        "session": "r-t1-d1",
        "epoch": 1,
        "content": content,
    }
    return Frame(**(fields | changes))


words = st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True)
ids = st.from_regex(r"[A-Za-z0-9_-]{1,23}", fullmatch=True)
counts = st.integers(1, 2**63 - 1)
at_least_0 = st.integers(0, 2**63 - 1)
finite = st.floats(-1e300, 1e300)
tensors = st.builds(
    PackedTensor, scheme=st.text(), shape=st.lists(at_least_0).map(tuple), data=st.binary(max_size=200)
)
contents: st.SearchStrategy[Contents] = st.one_of(
    st.builds(
        Activation,
        hidden=tensors,
        mask=tensors,
        labels=st.none() | tensors,
        step_tokens=counts,
        steps=counts,
    ),
    st.builds(Gradient, gradient=tensors),
    st.builds(TailHidden, hidden=tensors),
    st.builds(TailGradient, gradient=tensors, loss_sum=finite, tokens=at_least_0),
    st.builds(
        Score, loss_sum=finite, tokens=at_least_0, exact=st.integers(0, 9), sequences=st.integers(9, 2**63 - 1)
    ),
    st.builds(Update, tier=st.sampled_from(Tier), tokens=counts, tensors=st.binary(max_size=200)),
    st.builds(Want, wanted=st.text()),
    st.builds(Resume, step=at_least_0, turn=at_least_0),
    st.builds(Stuck, reason=st.text()),
)
