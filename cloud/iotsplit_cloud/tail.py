"""The tensor side of the cloud: one tail model for all sessions, trained in lockstep."""

import math
from collections.abc import Mapping

import torch

from iotsplit.errors import NotFiniteError, TensorRefusedError
from iotsplit.messages import Activation, Gradient, PackedTensor, Score, TailGradient, TailHidden
from iotsplit.settings import TrainingSettings
from iotsplit.tensors import adapters, optimizer_state
from iotsplit.tensors.boundary import Boundary
from iotsplit.tensors.compression import pack, unpack, unpack_labels, unpack_mask
from iotsplit.tensors.parts import Part

Key = tuple[str, int, int]
"""Session, step, micro-batch."""


class Tail:
    """The cloud's layers, and with labels in the cloud the head and the loss.

    Each session's gradient by the cloud's LoRA parameters is kept apart until `step` adds them up in
    the order of their names: so the result does not depend on who came first.

    Args:
        part: the cloud's layers with LoRA injected.
        settings: the fleet's settings.
    """

    def __init__(self, part: Part, settings: TrainingSettings) -> None:
        self._part = part
        self._settings = settings
        self._parameters = adapters.parameters(part)
        self._optimizer = adapters.make_optimizer(self._parameters, settings)
        self._boundary = Boundary()
        self._shapes: dict[Key, tuple[int, ...]] = {}
        self._gradients: dict[str, dict[str, torch.Tensor]] = {}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the cloud's LoRA parameters by name."""
        return {name: tuple(value.shape) for name, value in self._parameters.items()}

    def load(self, adapter: bytes) -> None:
        """Take over the cloud's section of an adapter version; the optimizer goes on."""
        for name, value in adapters.from_bytes(adapter, self.shapes()).items():
            self._parameters[name].data.copy_(value)
        self._boundary.drop_all()
        self._gradients.clear()
        self._shapes.clear()

    def adapter(self) -> bytes:
        """The cloud's LoRA parameters as they are."""
        tensors: Mapping[str, torch.Tensor] = self._parameters
        return adapters.to_bytes({name: value.detach() for name, value in tensors.items()})

    def train(self, key: Key, content: Activation) -> tuple[Gradient, float]:
        """Forward, loss and backward of one micro-batch; gives the gradient below and the sum of losses."""
        hidden, mask, labels = self._inputs(content, with_labels=True)
        hidden.requires_grad_()
        loss_sum, _ = self._part.loss(self._part(hidden, mask), labels)
        below = self._accumulate(key[0], loss_sum / content.step_tokens, hidden)
        return below, float(loss_sum.detach())

    def open(self, key: Key, content: Activation) -> TailHidden:
        """Forward of one micro-batch whose loss is computed on the device."""
        hidden, mask, _ = self._inputs(content, with_labels=False)
        hidden.requires_grad_()
        self._shapes[key] = tuple(hidden.shape)
        out = self._boundary.open(key, hidden, self._part(hidden, mask))
        return TailHidden(hidden=pack(out, self._settings.codec))

    def close(self, key: Key, content: TailGradient) -> Gradient:
        """Backward of a micro-batch that `open` left waiting."""
        gradient = self._unpack(content.gradient, self._shapes[key])
        if not math.isfinite(content.loss_sum):
            raise NotFiniteError("loss of a micro-batch")
        del self._shapes[key]
        below = self._boundary.close(key, gradient)
        self._add(key[0])
        assert below is not None  # noqa: S101 - the cloud's inputs always carry a gradient
        return Gradient(gradient=pack(below, self._settings.codec))

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
            return TailHidden(hidden=pack(self._part(hidden, mask), self._settings.codec))

    def step(self, weights: Mapping[str, float]) -> None:
        """One optimizer step on the weighted sum of the sessions' gradients."""
        for name, parameter in self._parameters.items():
            total = torch.zeros_like(parameter)
            for session in sorted(weights):
                total.add_(self._gradients[session][name], alpha=weights[session])
            parameter.grad = total
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._gradients.clear()

    def drop(self, session: str) -> None:
        """Forget what a session has contributed to the step at hand."""
        self._gradients.pop(session, None)
        for key in [key for key in self._shapes if key[0] == session]:
            del self._shapes[key]
            self._boundary.drop(key)

    def optimizer_state(self) -> bytes:
        """The optimizer's state as safetensors."""
        return optimizer_state.to_bytes(self._optimizer, list(self._parameters))

    def load_optimizer(self, state: bytes) -> None:
        """Take over an optimizer's state."""
        optimizer_state.from_bytes(self._optimizer, list(self._parameters), state)

    def _accumulate(self, session: str, loss: torch.Tensor, hidden: torch.Tensor) -> Gradient:
        torch.autograd.backward(loss)
        assert hidden.grad is not None  # noqa: S101 - the loss depends on it
        try:
            below = Gradient(gradient=pack(hidden.grad, self._settings.codec))
        except NotFiniteError:
            # The micro-batch is refused and may come again: nothing of it may stay in the sum.
            self._optimizer.zero_grad(set_to_none=True)
            raise
        self._add(session)
        return below

    def _add(self, session: str) -> None:
        """Add the gradients of one backward pass to those of the session."""
        held = self._gradients.setdefault(session, {})
        for name, parameter in self._parameters.items():
            new = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            held[name] = held[name] + new if name in held else new
            parameter.grad = None

    def _inputs(
        self, content: Activation, *, with_labels: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        shape = content.hidden.shape
        most = (self._settings.batch_size, self._settings.sequence_length, self._part.width)
        fits = len(shape) == len(most) and all(0 < n <= m for n, m in zip(shape, most, strict=True))
        if not fits or shape[2] != self._part.width:
            raise TensorRefusedError(f"hidden states of shape {shape}, at most {most} expected")
        hidden = self._unpack(content.hidden, shape)  # (batch, time, width)
        mask = unpack_mask(content.mask, shape[:2])
        if not with_labels:
            return hidden, mask, mask
        labels = unpack_labels(content.labels, shape[:2], self._part.vocabulary, most=content.step_tokens)
        return hidden, mask, labels

    def _unpack(self, packed: PackedTensor, shape: tuple[int, ...]) -> torch.Tensor:
        return unpack(packed, shape=shape, codec=self._settings.codec)
