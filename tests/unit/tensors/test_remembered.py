"""Remembered samples: both ends read and keep the same, and nobody is made to read what does not fit."""

from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iotsplit.cache import Cache
from iotsplit.errors import DivergedError, TensorRefusedError
from iotsplit.messages import Activation, Identity
from iotsplit.settings import TrainingSettings
from iotsplit.tensors import remembered
from iotsplit.tensors.compression import pack_integers
from iotsplit.tensors.exchange import Exchange
from iotsplit.tensors.remembered import Remembered

WIDTH, TIME = 70, 5
SETTINGS = TrainingSettings(
    batch_size=3, sequence_length=TIME, codec="int4", codec_cache="1MB", codec_check=1.0
)
LENGTHS = (5, 2, 3)


def noise(seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(3, TIME, WIDTH, generator=torch.Generator().manual_seed(seed))


def cache(session: str = "s1", base: str = "") -> Cache:
    made = Cache("a", limit_bytes=10**6, each=3)
    made.begin(session, base)
    return made


def sent(exchange: Exchange, ours: Cache, hidden: torch.Tensor, known: tuple[bool, ...]) -> Activation:
    """What a device says of three samples."""
    of = Remembered((0, 0), LENGTHS, samples=(4, 7, 9), known=known, empty=not len(ours))
    packed, cached = remembered.pack(exchange, ours, hidden, of, name=Identity("s", 0, 0, "activation"))
    return Activation(hidden=packed, mask=pack_integers(mask()), step_tokens=3, steps=1, cached=cached)


def mask() -> torch.Tensor:
    return (torch.arange(TIME) < torch.tensor(LENGTHS).unsqueeze(1)).to(torch.int64)


def read(exchange: Exchange, theirs: Cache, content: Activation) -> torch.Tensor:
    of = remembered.of_activation(content, mask(), (0, 0))
    assert of is not None
    return remembered.unpack(exchange, theirs, content, of)


def ends() -> tuple[Exchange, Cache, Cache]:
    """Both ends of a hop, over which all samples have gone once."""
    exchange, ours, theirs = Exchange(SETTINGS, WIDTH), cache(), cache()
    read(exchange, theirs, sent(exchange, ours, noise(0), (False, False, False)))
    for end in (ours, theirs):
        end.begin("s2", "s1")
    return exchange, ours, theirs


@given(st.tuples(st.booleans(), st.booleans(), st.booleans()), st.integers(1, 100))
def test_both_ends_keep_the_same_and_it_is_near(known: tuple[bool, ...], seed: int) -> None:
    exchange, ours, theirs = ends()
    hidden = noise(0) + noise(seed, 0.1)
    content = sent(exchange, ours, hidden, known)
    got = read(exchange, theirs, content)
    for row, length in enumerate(LENGTHS):
        away = (got - hidden)[row, :length].norm() / hidden[row, :length].norm()
        assert away < (0.2 if known[row] else 0.15)
        assert not known[row] or not got[row, length:].any()
    for end in (ours, theirs):
        end.begin("s3", "s2")
    assert [ours[each] for each in (4, 7, 9)] == [theirs[each] for each in (4, 7, 9)]


def test_a_change_takes_a_third_of_the_bytes() -> None:
    exchange, ours, _ = ends()
    whole = sent(exchange, cache(), noise(1), (False, False, False))
    change = sent(exchange, ours, noise(1), (True, True, True))
    assert change.cached is not None
    assert change.hidden.shape == (0, TIME, WIDTH)
    assert len(change.cached.change.data) < len(whole.hidden.data) / 3


def test_what_is_lost_is_measured_over_all_rows() -> None:
    exchange, ours, _ = ends()
    exchange.take_errors()
    sent(exchange, ours, noise(0), (True, False, True))
    (error,) = exchange.take_errors()
    assert 0 < error.error < 1


def test_hidden_states_that_cannot_be_sent_are_a_matter_of_their_sender() -> None:
    exchange, ours, _ = ends()
    hidden = noise(0)
    hidden[0, 0, 0] = float("nan")
    with pytest.raises(DivergedError):
        sent(exchange, ours, hidden, (True, True, True))


def changed(content: Activation, **changes: Any) -> Activation:
    assert content.cached is not None
    return msgspec.structs.replace(content, cached=msgspec.structs.replace(content.cached, **changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"samples": (4, 7, 8)}, "not remembered"),
        ({"samples": (4, 9, 7)}, "not remembered"),  # of other lengths
        ({"empty": True}, "not remembered"),
        ({"known": (True, True, False)}, "rows of hidden states"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], reason: str) -> None:
    exchange, ours, theirs = ends()
    content = changed(sent(exchange, ours, noise(1), (True, True, True)), **changes)
    with pytest.raises(TensorRefusedError, match=reason):
        read(exchange, theirs, content)


def test_a_sample_twice_with_other_lengths_is_refused() -> None:
    exchange, ours, theirs = ends()
    content = changed(sent(exchange, ours, noise(1), (True, True, True)), samples=(9, 7, 9))
    with pytest.raises(TensorRefusedError, match="not remembered"):
        read(exchange, theirs, content)


def test_what_is_refused_leaves_nothing_behind() -> None:
    exchange, ours, theirs = ends()
    theirs.take_change()
    content = sent(exchange, ours, noise(0), (False, True, True))
    assert content.cached is not None
    bad = changed(content, change=msgspec.structs.replace(content.cached.change, data=b""), empty=False)
    with pytest.raises(TensorRefusedError):
        read(exchange, theirs, bad)
    with pytest.raises(TensorRefusedError):
        read(exchange, theirs, changed(content, empty=True))
    assert theirs.take_change() is None
    assert len(theirs) == 3


@pytest.mark.parametrize("changes", [{"scheme": "int4"}, {"shape": (1, WIDTH)}, {"data": b"short"}], ids=str)
def test_changes_that_are_packed_otherwise_are_refused(changes: dict[str, Any]) -> None:
    exchange, ours, theirs = ends()
    content = sent(exchange, ours, noise(1), (True, True, True))
    assert content.cached is not None
    change = msgspec.structs.replace(content.cached.change, **changes)
    with pytest.raises(TensorRefusedError, match="changes of another shape"):
        read(exchange, theirs, changed(content, change=change))


def test_more_rows_than_a_batch_has_are_refused() -> None:
    exchange, ours, theirs = ends()
    content = sent(exchange, ours, noise(1), (True, True, True))
    with pytest.raises(TensorRefusedError, match="at most"):
        read(exchange, theirs, changed(content, samples=(4, 7, 9, 9), known=(True,) * 4))


def test_tokens_behind_padding_are_refused() -> None:
    exchange, ours, _ = ends()
    content = sent(exchange, ours, noise(1), (True, True, True))
    holes = mask()
    holes[1, 0], holes[1, 4] = 0, 1
    with pytest.raises(TensorRefusedError, match="behind padding"):
        remembered.of_activation(content, holes, (0, 0))


def test_what_its_receiver_would_refuse_is_a_matter_of_its_sender() -> None:
    small = TrainingSettings(
        batch_size=3, sequence_length=TIME, codec="int4", codec_cache="1MB", norm_bound=1.2
    )
    _, ours, _ = ends()
    with pytest.raises(DivergedError, match="norm"):
        sent(Exchange(small, WIDTH), ours, noise(0, 3.0), (True, True, True))


def test_hidden_states_that_grow_too_large_are_refused() -> None:
    small = TrainingSettings(
        batch_size=3, sequence_length=TIME, codec="int4", codec_cache="1MB", norm_bound=1.2
    )
    exchange, ours, theirs = ends()
    content = sent(exchange, ours, noise(0, 3.0), (True, True, True))
    with pytest.raises(TensorRefusedError, match="norm"):
        read(Exchange(small, WIDTH), theirs, content)


def test_a_row_is_kept_as_if_it_were_alone() -> None:
    exchange, ours, theirs = ends()
    got = read(exchange, theirs, sent(exchange, ours, noise(1), (True, True, True)))
    theirs.begin("s3", "s2")
    for row, (sample, length) in enumerate(zip((4, 7, 9), LENGTHS, strict=True)):
        assert theirs[sample] == remembered.STORED.pack(got[row, :length].contiguous())


def test_only_rows_of_the_right_length_are_rows() -> None:
    data = remembered.STORED.pack(noise(0)[0, :2])
    assert remembered.is_row(data, 2, WIDTH)
    assert not remembered.is_row(data, 3, WIDTH)
    assert not remembered.is_row(b"\xff" * len(data), 2, WIDTH)
