"""The tensor side of an edge: one frozen part, and LoRA parameters with their optimizer for each session."""

from collections.abc import Mapping, Sequence

import torch

from iotsplit.errors import TensorRefusedError
from iotsplit.messages import (
    Activation,
    Cached,
    CloudRows,
    DeviceRows,
    Gradient,
    Identity,
    TailGradient,
    TailHidden,
)
from iotsplit.plan import Labels
from iotsplit.settings import TrainingSettings
from iotsplit.tensors import adapters, remembered, updates
from iotsplit.tensors.aggregation import trained_in
from iotsplit.tensors.boundary import Boundary
from iotsplit.tensors.compression import unpack_labels, unpack_mask
from iotsplit.tensors.exchange import CodecError, Exchange
from iotsplit.tensors.parts import Part, sizes
from iotsplit.tensors.remembered import Remembered
from iotsplit.tensors.trained import Trained
from iotsplit_edge.remembering import Caches

Key = tuple[int, int]
"""Step and micro-batch."""


class EdgeWork:
    """What an edge computes for one session; sessions share the frozen part.

    Args:
        part: the edge's layers with LoRA injected; its LoRA parameters are swapped for the session's.
        settings: the fleet's settings.
        adapter: the edge's section of the adapter version to start from.
        round_: which the session belongs to.
    """

    def __init__(self, part: Part, settings: TrainingSettings, adapter: bytes, round_: int) -> None:
        self._part = part
        self._settings = settings
        self._exchange = Exchange(settings, part.width)
        shapes = {name: tuple(value.shape) for name, value in adapters.parameters(part).items()}
        self._start = adapters.from_bytes(adapter, shapes)
        names = trained_in(round_, self._start, settings)
        self._trained = Trained(adapters.fresh(self._start), settings, names)
        self._boundary = Boundary()
        self._shapes: dict[Key, tuple[int, ...]] = {}
        self.session = ""
        """Name of the session."""
        self.caches: Caches | None = None
        """What is remembered of the device's samples, if anything is."""

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers of frozen and, for one session, trainable parameters."""
        return sizes(self._part)

    def forward(self, key: Key, content: Activation, *, training: bool) -> Activation:
        """Run hidden states through the part; when training, the graph stays open for the gradient.

        Raises:
            PeerError: the activation cannot be used; a DivergedError if what was made of it cannot.
        """
        shape = self._exchange.shape_of(content)
        mask = unpack_mask(content.mask, shape[:2])
        of = remembered.of_activation(content, mask, key)
        caches = self.caches if training else None
        if (of is None) != (caches is None):
            raise TensorRefusedError("an activation that is remembered at one end only")
        if self._settings.labels is Labels.CLOUD:
            # What is passed on is not taken a second time: here garbage must not stand in the real one's way.
            unpack_labels(content.labels, shape[:2], self._part.vocabulary, most=content.step_tokens)
        if of is None or caches is None:
            hidden = self._exchange.unpack_hidden(content.hidden, shape)  # (batch, time, width)
        else:
            hidden = remembered.unpack(self._exchange, caches.below, content, of)
        adapters.attach(self._part, self._trained.parameters)
        with torch.set_grad_enabled(training):
            out: torch.Tensor = self._part(hidden.requires_grad_(training), mask)
        self._shapes[key] = shape
        if training:
            out = self._boundary.open(key, hidden, out)
        name = self._at(key, "activation") if training else None
        cached: Cached | None = None
        if of is None or caches is None:
            packed = self._exchange.pack_hidden(out, name)
        else:
            packed, cached = remembered.pack(self._exchange, caches.above, out, of, name=name)
        return Activation(
            hidden=packed,
            mask=content.mask,
            labels=content.labels,
            step_tokens=content.step_tokens,
            steps=content.steps,
            cached=cached,
        )

    def missing(self, key: Key, content: Activation) -> Mapping[str, Sequence[int]]:
        """Samples of which changes have come and that are lost, by the kind of frame that has them.

        Raises:
            PeerError: the activation cannot be used.
        """
        if self.caches is None:
            return {}
        of, width = self._of(key, content)
        return {} if of is None else self.caches.missing(of, width)

    def recall(self, key: Key, content: Activation, rows: DeviceRows | CloudRows) -> None:
        """Take in what a neighbour still remembers of an activation's samples.

        Raises:
            PeerError: it is not of them.
        """
        of, width = self._of(key, content)
        if of is not None and self.caches is not None:
            self.caches.recall(rows, of, width)

    def knows(self, key: Key) -> bool:
        """Whether the shape of what went up at `key` is known."""
        return key in self._shapes

    def check(self, key: Key, content: TailHidden | TailGradient) -> None:
        """Look whether a tensor that is only passed on fits what went up at `key`.

        Raises:
            PeerError: it is not what was agreed.
        """
        match content:
            case TailHidden(hidden=packed):
                self._exchange.unpack_hidden(packed, self._shapes[key])
            case TailGradient(gradient=packed):
                self._exchange.unpack_gradient(packed, self._shapes[key])

    def trim(self, before_step: int) -> None:
        """Forget the shapes of steps before that one."""
        self._shapes = {key: shape for key, shape in self._shapes.items() if key[0] >= before_step}

    def backward(self, key: Key, content: Gradient) -> Gradient:
        """Take a gradient from above, add up the session's LoRA gradients, and give the one below.

        Raises:
            DivergedError: what was made of the gradient cannot be used, and the session has to end.
            PeerError: the gradient cannot be used; it is as if it had not come.
        """
        gradient = self._exchange.unpack_gradient(content.gradient, self._shapes[key])
        adapters.attach(self._part, self._trained.parameters)  # layers that are computed again need them
        below = self._boundary.close(key, gradient)
        assert below is not None  # noqa: S101 - an edge's inputs always carry a gradient
        return Gradient(gradient=self._exchange.pack_gradient(below, self._at(key, "gradient")))

    def _of(self, key: Key, content: Activation) -> tuple[Remembered | None, int]:
        """What an activation is of, and its width."""
        shape = self._exchange.shape_of(content)
        return remembered.of_activation(content, unpack_mask(content.mask, shape[:2]), key), shape[2]

    def codec_errors(self) -> list[CodecError]:
        """What the codec has lost of tensors that were sent since the last call."""
        return self._exchange.take_errors()

    def _at(self, key: Key, kind: str) -> Identity:
        return Identity(self.session, *key, kind)

    def step(self) -> None:
        """One step of the session's optimizer.

        Raises:
            DivergedError: its gradients cannot be used, and the session has to end.
        """
        self._trained.check_gradients()
        self._trained.step()

    def checkpoint(self) -> bytes:
        """LoRA parameters and optimizer of the session as they are."""
        return self._trained.checkpoint()

    def restore(self, body: bytes) -> None:
        """Take over a checkpoint of the session.

        Raises:
            PeerError: not a checkpoint of this part with these settings.
        """
        self._trained.restore(body)

    def update(self) -> bytes:
        """The session's LoRA parameters as the cloud gets them."""
        return updates.encode(self._trained.brought(), self._start, self._settings.update_codec)
