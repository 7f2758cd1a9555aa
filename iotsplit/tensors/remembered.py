"""Hidden states of samples that both ends of a hop remember: only what has changed of them travels.

A row that is not remembered comes in the fleet's codec. Of one that is comes its change
(`iotsplit.tensors.changes`) since what its receiver read of it last, which its sender knows. What was read
becomes what is remembered: in eight bits, rotated (`iotsplit.tensors.rotated`), tokens without padding.
"""

import io
from dataclasses import dataclass

import torch

from iotsplit.cache import Cache, Row
from iotsplit.errors import DivergedError, NotFiniteError, TensorRefusedError
from iotsplit.messages import Activation, Cached, Identity, PackedTensor
from iotsplit.tensors import changes
from iotsplit.tensors.exchange import Exchange
from iotsplit.tensors.rotated import BLOCK, Rotated

SCHEME = "changes"
STORED = Rotated(bits=8, apart=0)


@dataclass(frozen=True, slots=True)
class Remembered:
    """Rows of a micro-batch, by the samples that they are of.

    Args:
        at: the step and the micro-batch.
        lengths: tokens of each row.
        samples: the number of each row's.
        known: of each row, whether both ends remember it.
        empty: nothing is remembered from before the session.
        digests: of each row's sample, for its owner.
    """

    at: tuple[int, int]
    lengths: tuple[int, ...]
    samples: tuple[int, ...]
    known: tuple[bool, ...]
    empty: bool
    digests: tuple[bytes, ...] = ()

    def rows(self, known: bool) -> list[int]:
        """Which rows are known, or not."""
        return [row for row, each in enumerate(self.known) if each is known]


def of_activation(content: Activation, mask: torch.Tensor, at: tuple[int, int]) -> Remembered | None:
    """What an activation is of; None if nothing is remembered.

    Raises:
        TensorRefusedError: its rows, or the tokens of its mask, do not fit.
    """
    cached = content.cached
    if cached is None:
        return None
    lengths = mask.sum(dim=1, keepdim=True)
    if not torch.equal(mask.bool(), torch.arange(mask.shape[1]) < lengths):
        raise TensorRefusedError("a mask with tokens behind padding")
    return Remembered(at, tuple(lengths.flatten().tolist()), cached.samples, cached.known, cached.empty)


def pack(
    exchange: Exchange, cache: Cache, hidden: torch.Tensor, of: Remembered, *, name: Identity | None = None
) -> tuple[PackedTensor, Cached]:
    """Pack hidden states (batch, time, width), and remember what their receiver will read.

    Args:
        exchange: packs what is not remembered.
        cache: the sender's.
        hidden: the values.
        of: what they are of; what is known is in the cache.
        name: the frame that they are for, if the codec's error may be measured there.

    Raises:
        DivergedError: they are not finite, or too large.
    """
    _forget_if(of, cache)
    whole = hidden[of.rows(known=False)]
    packed = exchange.pack_hidden(whole)
    read = torch.zeros(hidden.shape)
    read[of.rows(known=False)] = exchange.unpack_hidden(packed, tuple(whole.shape))
    tokens = [hidden[row, : of.lengths[row]] for row in of.rows(known=True)]
    held = _held(cache, of, hidden.shape[2])
    try:
        data = changes.pack(torch.cat([held[:0], *tokens]), held)
        _put_in(read, of, changes.unpack(data, held))
        exchange.check_hidden(read)
    except (NotFiniteError, TensorRefusedError) as error:
        raise DivergedError(str(error)) from None
    _remember(cache, of, read)
    if name is not None:
        exchange.measure(hidden, read, name)
    change = PackedTensor(scheme=SCHEME, shape=tuple(held.shape), data=data)
    return packed, Cached(samples=of.samples, known=of.known, change=change, empty=of.empty)


def unpack(exchange: Exchange, cache: Cache, content: Activation, of: Remembered) -> torch.Tensor:
    """Unpack hidden states, as float32 of (batch, time, width), and remember them.

    Raises:
        PeerError: they are not what was agreed, not finite, too large, or of samples that are not remembered.
    """
    cached = content.cached
    assert cached is not None  # noqa: S101 - else nothing is remembered
    shape = exchange.shape_of(content)
    known, others = of.rows(known=True), of.rows(known=False)
    missing = [of.samples[row] for row in known] if of.empty else missing_in(cache, of, shape[2])
    if missing:
        raise TensorRefusedError(f"changes of samples that are not remembered: {missing}")
    if content.hidden.shape[0] != len(others):
        raise TensorRefusedError(f"{content.hidden.shape[0]} rows of hidden states, not {len(others)}")
    read = torch.zeros(shape)
    read[others] = exchange.unpack_hidden(content.hidden, (len(others), *shape[1:]))
    change, size = cached.change, (sum(of.lengths[row] for row in known), shape[2])
    if (change.scheme, change.shape, len(change.data)) != (SCHEME, size, changes.size_bytes(*size)):
        raise TensorRefusedError(f"changes of another shape than {size}, or not packed as such")
    _put_in(read, of, changes.unpack(change.data, _held(cache, of, shape[2])))
    exchange.check_hidden(read)
    # Only now: what is refused leaves nothing behind.
    _forget_if(of, cache)
    _remember(cache, of, read)
    return read


def missing_in(cache: Cache, of: Remembered, width: int) -> list[int]:
    """Samples whose change has come and that are not remembered, or not with as many tokens."""
    return [
        of.samples[row]
        for row in of.rows(known=True)
        if of.samples[row] not in cache
        or len(cache[of.samples[row]]) != STORED.size_bytes(of.lengths[row], width)
    ]


def is_row(data: bytes, tokens: int, width: int) -> bool:
    """Whether that may be what is remembered of so many tokens."""
    if len(data) != STORED.size_bytes(tokens, width):
        return False
    try:
        STORED.unpack(data, tokens, width)
    except NotFiniteError:
        return False
    return True


def _held(cache: Cache, of: Remembered, width: int) -> torch.Tensor:
    """What is remembered of the tokens of known rows, read at once."""
    rows = [(cache[of.samples[row]], _scales_bytes(of.lengths[row], width)) for row in of.rows(known=True)]
    data = b"".join([data[:scales] for data, scales in rows] + [data[scales:] for data, scales in rows])
    tokens = sum(of.lengths[row] for row in of.rows(known=True))
    return torch.from_numpy(STORED.unpack(data, tokens, width))


def _forget_if(of: Remembered, cache: Cache) -> None:
    """The device remembers nothing: what is here is of no use any more."""
    if of.empty and len(cache):
        cache.empty()


def _put_in(read: torch.Tensor, of: Remembered, tokens: torch.Tensor) -> None:
    rows = of.rows(known=True)
    for row, values in zip(rows, torch.split(tokens, [of.lengths[row] for row in rows]), strict=True):
        read[row, : len(values)] = values


def _remember(cache: Cache, of: Remembered, read: torch.Tensor) -> None:
    """Pack all rows at once, and put each into the cache as if it had been packed alone."""
    width = read.shape[2]
    tokens = torch.cat([row[:length] for row, length in zip(read, of.lengths, strict=True)])
    data, split = STORED.pack(tokens), _scales_bytes(len(tokens), width)
    scales, values = io.BytesIO(data[:split]), io.BytesIO(data[split:])
    digests = of.digests or (b"",) * len(of.samples)
    for row, (sample, digest) in enumerate(zip(of.samples, digests, strict=True)):
        size = _scales_bytes(of.lengths[row], width)
        own = scales.read(size) + values.read(STORED.size_bytes(of.lengths[row], width) - size)
        cache.put(Row(sample=sample, place=(*of.at, row), data=own, digest=digest))


def _scales_bytes(tokens: int, width: int) -> int:
    """Of what is remembered, where the scales end and the values begin."""
    return 2 * tokens * -(-width // BLOCK)
