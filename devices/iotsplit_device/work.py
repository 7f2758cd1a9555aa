"""The tensor side of a device's session: its part, its LoRA parameters, its data."""

import math
from collections.abc import Sequence

import torch

from iotsplit.cache import Cache, rows_of
from iotsplit.errors import DivergedError
from iotsplit.messages import (
    Activation,
    Cached,
    DeviceRows,
    Gradient,
    Identity,
    PackedTensor,
    Score,
    TailGradient,
    TailHidden,
)
from iotsplit.plan import Labels
from iotsplit.settings import TrainingSettings
from iotsplit.tensors import adapters, remembered, updates
from iotsplit.tensors.aggregation import trained_in
from iotsplit.tensors.boundary import Boundary
from iotsplit.tensors.compression import pack_integers
from iotsplit.tensors.exchange import CodecError, Exchange
from iotsplit.tensors.parts import Part, sizes
from iotsplit.tensors.remembered import Remembered
from iotsplit.tensors.trained import Trained
from iotsplit_device.batches import Batches, MicroBatch

Key = tuple[int, int]
"""Step and micro-batch."""


class DeviceWork:
    """What a device computes; knows nothing of the bus.

    Args:
        part: the device's layers, frozen, with LoRA injected.
        batches: the device's tokenized data.
        settings: the fleet's settings.
    """

    def __init__(self, part: Part, batches: Batches, settings: TrainingSettings) -> None:
        self.part = part
        self.batches = batches
        self.settings = settings
        self._exchange = Exchange(settings, part.width)
        self._trained = Trained(adapters.parameters(part), settings)
        self._boundary = Boundary()
        self._start = self._trained.values()
        self.session = ""
        """Name of the session at hand."""
        self.cache: Cache | None = None
        """What its edge remembers of the device's samples, if it remembers any."""

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers of frozen and of trainable parameters."""
        return sizes(self.part)

    def load(self, adapter: bytes, round_: int) -> None:
        """Take over an adapter version for a round; the optimizer starts anew."""
        self._trained.start_over(adapter, trained_in(round_, self._trained.parameters, self.settings))
        self._start = self._trained.values()
        self._boundary.drop_all()  # what a session that was dropped has left

    def checkpoint(self) -> bytes:
        """LoRA parameters and optimizer as they are."""
        return self._trained.checkpoint()

    def restore(self, body: bytes) -> None:
        """Take over a checkpoint.

        Raises:
            PeerError: not a checkpoint of this part with these settings.
        """
        self._trained.restore(body)
        self._boundary.drop_all()

    def forward(self, key: Key, batch: MicroBatch, *, step_tokens: int, steps: int) -> Activation:
        """Run a micro-batch through the part; its graph stays open until the gradient comes."""
        hidden = self.part(batch.ids, batch.mask)  # (batch, time, width)
        sent = self._boundary.open(key, None, hidden)
        name = self._at(key, "activation")
        if self.cache is None:
            return self._activation(self._exchange.pack_hidden(sent, name), batch, step_tokens, steps)
        packed, cached = remembered.pack(
            self._exchange, self.cache, sent, _rows(batch, self.cache, key), name=name
        )
        return self._activation(packed, batch, step_tokens, steps, cached=cached)

    def rows(self, samples: Sequence[int]) -> DeviceRows:
        """What is remembered of samples that the edge asks for.

        Raises:
            MalformedMessageError: it asks for more than a batch.
        """
        found = rows_of(self.cache, samples, most=self.settings.batch_size)
        return DeviceRows(samples=tuple(found), rows=tuple(found.values()))

    def infer(self, batch: MicroBatch, *, steps: int) -> Activation:
        """Run held-out data through the part, without a graph."""
        with torch.no_grad():
            hidden = self.part(batch.ids, batch.mask)  # (batch, time, width)
        return self._activation(self._exchange.pack_hidden(hidden), batch, batch.tokens, steps)

    def unpack_gradient(self, content: Gradient, batch: MicroBatch) -> torch.Tensor:
        """The gradient by the micro-batch's hidden states, checked."""
        return self._exchange.unpack_gradient(content.gradient, self._shape(batch))

    def backward(self, key: Key, gradient: torch.Tensor) -> None:
        """Take the gradient that came down, and add up the LoRA gradients."""
        self._boundary.close(key, gradient)

    def tail(self, key: Key, content: TailHidden, batch: MicroBatch, *, step_tokens: int) -> TailGradient:
        """Norm, head and loss on the device: the gradient that goes up, and the loss as a number."""
        hidden = self._exchange.unpack_hidden(content.hidden, self._shape(batch)).requires_grad_()
        loss_sum, tokens = self.part.loss(hidden, batch.labels)
        (gradient,) = torch.autograd.grad(loss_sum / step_tokens, hidden)
        return TailGradient(
            gradient=self._exchange.pack_gradient(gradient, self._at(key, "tail_gradient")),
            loss_sum=float(loss_sum.detach()),
            tokens=tokens,
        )

    def score(self, content: TailHidden, batch: MicroBatch) -> Score:
        """Score held-out data on the device."""
        hidden = self._exchange.unpack_hidden(content.hidden, self._shape(batch))
        loss_sum, tokens, exact, sequences = self.part.score(hidden, batch.labels)
        return Score(loss_sum=loss_sum, tokens=tokens, exact=exact, sequences=sequences)

    def train(self, batch: MicroBatch, *, step_tokens: int) -> float:
        """Forward, loss and backward through the whole model; gives the sum of losses.

        Raises:
            DivergedError: hidden states or loss cannot be used.
        """
        hidden = self.part(batch.ids, batch.mask)  # (batch, time, width)
        loss_sum, _ = self.part.loss(hidden, batch.labels)
        torch.autograd.backward(loss_sum / step_tokens)
        return self._checked(float(loss_sum.detach()))

    def score_whole(self, batch: MicroBatch) -> Score:
        """Score held-out data with the whole model.

        Raises:
            DivergedError: the loss cannot be used.
        """
        with torch.no_grad():
            hidden = self.part(batch.ids, batch.mask)  # (batch, time, width)
            loss_sum, tokens, exact, sequences = self.part.score(hidden, batch.labels)
        return Score(loss_sum=self._checked(loss_sum), tokens=tokens, exact=exact, sequences=sequences)

    def _checked(self, loss_sum: float) -> float:
        if not math.isfinite(loss_sum):
            raise DivergedError("the loss is not finite")
        return loss_sum

    def step(self) -> None:
        """One optimizer step with the gradients added up since the last.

        Raises:
            DivergedError: they cannot be used, and the session has to end.
        """
        self._trained.check_gradients()
        self._trained.step()

    def adapter(self) -> bytes:
        """The part's LoRA parameters as they are."""
        return self._trained.adapter()

    def update(self) -> bytes:
        """The part's LoRA parameters as the cloud gets them."""
        return updates.encode(self._trained.brought(), self._start, self.settings.update_codec)

    def codec_errors(self) -> list[CodecError]:
        """What the codec has lost of tensors that were sent since the last call."""
        return self._exchange.take_errors()

    def _at(self, key: Key, kind: str) -> Identity:
        return Identity(self.session, *key, kind)

    def _activation(
        self,
        hidden: PackedTensor,
        batch: MicroBatch,
        step_tokens: int,
        steps: int,
        *,
        cached: Cached | None = None,
    ) -> Activation:
        to_cloud = self.settings.labels is Labels.CLOUD
        return Activation(
            hidden=hidden,
            mask=pack_integers(batch.mask.to(torch.uint8)),
            labels=pack_integers(batch.labels.to(torch.int32)) if to_cloud else None,
            step_tokens=step_tokens,
            steps=steps,
            cached=cached,
        )

    def _shape(self, batch: MicroBatch) -> tuple[int, ...]:
        return (*batch.ids.shape, self.part.width)


def _rows(batch: MicroBatch, cache: Cache, at: Key) -> Remembered:
    """The micro-batch's samples, and which of them are remembered."""
    return Remembered(
        at,
        lengths=tuple(batch.mask.sum(dim=1).tolist()),
        samples=tuple(sample.number for sample in batch.samples),
        known=tuple(cache.holds(sample.number, sample.digest) for sample in batch.samples),
        empty=not len(cache),
        digests=tuple(sample.digest for sample in batch.samples),
    )
