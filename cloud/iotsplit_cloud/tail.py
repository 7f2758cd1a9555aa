"""The tensor side of the cloud: one tail model for all sessions, trained in lockstep."""

import math
from collections.abc import Mapping

import torch

from iotsplit.cache import Cache
from iotsplit.errors import DivergedError, NotFiniteError, TensorRefusedError
from iotsplit.messages import (
    Activation,
    Gradient,
    Identity,
    Score,
    TailGradient,
    TailHidden,
)
from iotsplit.settings import TrainingSettings
from iotsplit.tensors import adapters, remembered
from iotsplit.tensors.aggregation import step_gradient
from iotsplit.tensors.boundary import Boundary
from iotsplit.tensors.compression import unpack_labels, unpack_mask
from iotsplit.tensors.exchange import CodecError, Exchange
from iotsplit.tensors.parts import Part
from iotsplit.tensors.trained import Trained

Key = tuple[str, int, int]
"""Session, step, micro-batch."""


class Tail:
    """The cloud's layers, and with labels in the cloud the head and the loss.

    Each session's gradient by the cloud's LoRA parameters is kept apart until `step` joins them in
    the order of their names: so the result does not depend on who came first.

    Args:
        part: the cloud's layers with LoRA injected.
        settings: the fleet's settings.
    """

    def __init__(self, part: Part, settings: TrainingSettings) -> None:
        self._part = part
        self._settings = settings
        self._exchange = Exchange(settings, part.width)
        self._trained = Trained(adapters.parameters(part), settings)
        self._boundary = Boundary()
        self._shapes: dict[Key, tuple[int, ...]] = {}
        self._gradients: dict[str, dict[str, torch.Tensor]] = {}
        self.caches: dict[str, Cache] = {}
        """What is remembered of samples, by the session that sends them."""

    def load(self, adapter: bytes) -> None:
        """Take over the cloud's section of an adapter version for a round; the optimizer starts anew."""
        self._trained.start_over(adapter)
        self.forget()

    def adapter(self) -> bytes:
        """The cloud's LoRA parameters as they are."""
        return self._trained.adapter()

    def checkpoint(self) -> bytes:
        """The cloud's LoRA parameters and optimizer as they are."""
        return self._trained.checkpoint()

    def restore(self, body: bytes) -> None:
        """Take over a checkpoint; of the step at hand nothing is left.

        Raises:
            PeerError: not a checkpoint of this part with these settings.
        """
        self._trained.restore(body)
        self.forget()

    def train(self, key: Key, content: Activation) -> tuple[Gradient, float]:
        """Forward, loss and backward of one micro-batch; gives the gradient below and the sum of losses."""
        hidden, mask, labels = self._inputs(content, key, with_labels=True)
        hidden.requires_grad_()
        loss_sum, _ = self._part.loss(self._part(hidden, mask), labels)
        torch.autograd.backward(loss_sum / content.step_tokens)
        return self._below(key, hidden.grad), float(loss_sum.detach())

    def open(self, key: Key, content: Activation) -> TailHidden:
        """Forward of one micro-batch whose loss is computed on the device."""
        hidden, mask, _ = self._inputs(content, key, with_labels=False)
        hidden.requires_grad_()
        self._shapes[key] = tuple(hidden.shape)
        out = self._boundary.open(key, hidden, self._part(hidden, mask))
        return TailHidden(hidden=self._exchange.pack_hidden(out, Identity(*key, "tail_hidden")))

    def close(self, key: Key, content: TailGradient) -> Gradient:
        """Backward of a micro-batch that `open` left waiting."""
        gradient = self._exchange.unpack_gradient(content.gradient, self._shapes[key])
        if not math.isfinite(content.loss_sum):
            raise NotFiniteError("loss of a micro-batch")
        del self._shapes[key]
        return self._below(key, self._boundary.close(key, gradient))

    def score(self, content: Activation) -> Score:
        """Score held-out data."""
        hidden, mask, labels = self._inputs(content, with_labels=True)
        with torch.no_grad():
            loss_sum, tokens, exact, sequences = self._part.score(self._part(hidden, mask), labels)
        return Score(loss_sum=loss_sum, tokens=tokens, exact=exact, sequences=sequences)

    def infer(self, content: Activation) -> TailHidden:
        """The last layer's output of held-out data, to be scored on the device."""
        hidden, mask, _ = self._inputs(content, with_labels=False)
        with torch.no_grad():
            return TailHidden(hidden=self._exchange.pack_hidden(self._part(hidden, mask)))

    def step(self, weights: Mapping[str, float]) -> None:
        """One optimizer step on the sessions' gradients, joined by the fleet's rule of aggregation."""
        sessions = sorted(weights)
        joined = step_gradient(
            [self._gradients[session] for session in sessions],
            [weights[session] for session in sessions],
            settings=self._settings,
        )
        for name, parameter in self._trained.parameters.items():
            parameter.grad = joined[name]
        self._trained.step()
        self._gradients.clear()

    def drop(self, session: str) -> None:
        """Forget what a session has contributed to the step at hand."""
        self._gradients.pop(session, None)
        for key in [key for key in self._shapes if key[0] == session]:
            del self._shapes[key]
            self._boundary.drop(key)

    def codec_errors(self) -> list[CodecError]:
        """What the codec has lost of tensors that were sent since the last call."""
        return self._exchange.take_errors()

    def largest_codec_error(self, kind: str) -> float:
        """Bound of what the fleet's codec loses of tensors of that kind, relative to their norm."""
        return self._exchange.largest_error(kind)

    def _below(self, key: Key, gradient: torch.Tensor | None) -> Gradient:
        """What goes down after a backward pass, whose own gradients join those of the session."""
        assert gradient is not None  # noqa: S101 - the cloud's inputs always carry a gradient
        try:
            self._trained.check_gradients()
            below = Gradient(gradient=self._exchange.pack_gradient(gradient, Identity(*key, "gradient")))
        except DivergedError:
            self._trained.forget_gradients()  # nothing of it may stay in the sum of another session
            raise
        self._add(key[0])
        return below

    def _add(self, session: str) -> None:
        """Add the gradients of one backward pass to those of the session."""
        held = self._gradients.setdefault(session, {})
        for name, parameter in self._trained.parameters.items():
            new = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            held[name] = held[name] + new if name in held else new
            parameter.grad = None

    def forget(self) -> None:
        """Forget what all sessions have contributed to the step at hand."""
        self._boundary.drop_all()
        self._gradients.clear()
        self._shapes.clear()

    def _inputs(
        self, content: Activation, key: Key | None = None, *, with_labels: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        shape = self._exchange.shape_of(content)
        mask = labels = unpack_mask(content.mask, shape[:2])
        if with_labels:
            labels = unpack_labels(content.labels, shape[:2], self._part.vocabulary, most=content.step_tokens)
        # At last: it is remembered once it is read.
        return self._hidden(content, shape, mask, key), mask, labels

    def _hidden(
        self, content: Activation, shape: tuple[int, ...], mask: torch.Tensor, key: Key | None
    ) -> torch.Tensor:
        of = remembered.of_activation(content, mask, key[1:] if key else (0, 0))
        cache = self.caches.get(key[0]) if key else None
        if (of is None) != (cache is None):
            raise TensorRefusedError("an activation that is remembered at one end only")
        if of is None or cache is None:
            return self._exchange.unpack_hidden(content.hidden, shape)
        return remembered.unpack(self._exchange, cache, content, of)
