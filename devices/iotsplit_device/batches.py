"""Which sequences a device trains on in which step, as tensors."""

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from iotsplit.errors import UsageError
from iotsplit.states import DataSummary
from iotsplit_device.tokens import NO_LOSS, Tokens, generator

DIGEST_BYTES = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """A sequence of the device's, as its ends remember it.

    Args:
        number: its place among the sequences to train on.
        digest: of its tokens; stays on the device.
    """

    number: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Sequences side by side, padded on the right to the longest.

    Args:
        ids: (batch, time) int64 token ids, 0 where padded.
        mask: (batch, time) int64, 1 where there is a token.
        labels: (batch, time) int64 next-token ids, -100 where there is no loss.
        tokens: positions with loss.
        samples: the sequences; none of those that are only scored.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor
    tokens: int
    samples: tuple[Sample, ...] = ()


def step_tokens(micro_batches: Iterable[MicroBatch]) -> int:
    """Loss tokens of all micro-batches of a step."""
    return sum(batch.tokens for batch in micro_batches)


def pad(sequences: Sequence[Tokens], samples: Sequence[Sample] = ()) -> MicroBatch:
    """Put sequences side by side."""
    shape = (len(sequences), max(len(tokens.ids) for tokens in sequences))
    ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)  # (batch, time)
    labels = np.full(shape, NO_LOSS, np.int64)
    for row, tokens in enumerate(sequences):
        time = len(tokens.ids)
        ids[row, :time], mask[row, :time], labels[row, :time] = tokens.ids, 1, tokens.labels
    return MicroBatch(
        ids=torch.from_numpy(ids),
        mask=torch.from_numpy(mask),
        labels=torch.from_numpy(labels),
        tokens=sum(tokens.loss_tokens for tokens in sequences),
        samples=tuple(samples),
    )


class Batches:
    """A device's data in the order in which it is trained on.

    The order is an endless row of shuffled epochs that depends on seed and device alone. A step's place in it
    follows from round and step, so a device that starts again finds the same batch without having kept any.

    Args:
        train: sequences to train on, at least a batch of them.
        held_out: sequences to score.
        seed: the fleet's seed.
        device: the device's id.
        batch_size: sequences of a step.
        micro_batches: pieces that a step's batch is cut into.
    """

    def __init__(
        self,
        train: Sequence[Tokens],
        held_out: Sequence[Tokens],
        *,
        seed: int,
        device: str,
        batch_size: int,
        micro_batches: int,
    ) -> None:
        if len(train) < batch_size:
            raise UsageError(
                f"{device} has {len(train)} training sequences, fewer than batch_size {batch_size}",
                fix="add data, or use a smaller batch_size or sequence_length",
            )
        if not 0 < micro_batches <= batch_size:
            raise UsageError(
                f"micro_batches {micro_batches} does not cut batch_size {batch_size}",
                fix="use fewer micro-batches or a larger batch",
            )
        self._train = tuple(train)
        self._held_out = tuple(held_out)
        self._names = (seed, device)
        self._batch_size = batch_size
        self._micro_batches = micro_batches
        self._epoch = (-1, np.zeros(0, np.int64))  # the epoch shuffled last, and its order

    def step(self, round_number: int, step: int, *, local_steps: int) -> list[MicroBatch]:
        """The micro-batches of a step: always as many as agreed.

        Args:
            round_number: counted from 1.
            step: within the round, counted from 0.
            local_steps: steps of every round.
        """
        place = ((round_number - 1) * local_steps + step) * self._batch_size
        numbers = [self._at(place + offset) for offset in range(self._batch_size)]
        samples = [Sample(number, _digest(self._train[number])) for number in numbers]
        batch = [self._train[number] for number in numbers]
        # Sequences of one length beside each other would pad less, but micro-batches then differ in weight.
        ends = [len(batch) * n // self._micro_batches for n in range(self._micro_batches + 1)]
        return [pad(batch[first:end], samples[first:end]) for first, end in itertools.pairwise(ends)]

    def evaluation(self) -> list[MicroBatch]:
        """All held-out sequences, in batches; the last may be smaller."""
        starts = range(0, len(self._held_out), self._batch_size)
        return [pad(self._held_out[start : start + self._batch_size]) for start in starts]

    def fingerprint(self) -> str:
        """SHA-256 of the tokenized data; says nothing of its content."""
        digest = hashlib.sha256()
        for part in (self._train, self._held_out):
            digest.update(len(part).to_bytes(8))
            for tokens in part:
                digest.update(len(tokens.ids).to_bytes(8))
                digest.update(np.array((tokens.ids, tokens.labels), "<i8").tobytes())
        return digest.hexdigest()

    def summary(self) -> DataSummary:
        """What the device tells others of its data."""
        return DataSummary(
            fingerprint=self.fingerprint(),
            train_sequences=len(self._train),
            eval_sequences=len(self._held_out),
            completions=sum(tokens.labels[0] == NO_LOSS for tokens in self._held_out),
        )

    def _at(self, place: int) -> int:
        """The number of the sequence at that place."""
        epoch, index = divmod(place, len(self._train))
        if epoch != self._epoch[0]:
            order = generator("batches", *self._names, epoch).permutation(len(self._train))
            self._epoch = (epoch, order)
        return int(self._epoch[1][index])


def _digest(tokens: Tokens) -> bytes:
    return hashlib.sha256(np.array(tokens.ids, "<i8").tobytes()).digest()[:DIGEST_BYTES]
