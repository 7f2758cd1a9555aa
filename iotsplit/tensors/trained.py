"""What a tier trains: LoRA parameters with their optimizer, and both as one body of safetensors."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from iotsplit.settings import Optimizer, TrainingSettings
from iotsplit.tensors import adapters
from iotsplit.tensors.bounds import check_gradients

QUANTITIES: dict[Optimizer, tuple[str, ...]] = {
    Optimizer.ADAMW: ("exp_avg", "exp_avg_sq", "step"),
    Optimizer.SGD: (),
}
"""What each optimizer knows of a parameter; `step` is a number, the others have the parameter's shape."""


class Trained:
    """LoRA parameters and their optimizer.

    Args:
        parameters: by global name.
        settings: the fleet's.
        names: of those that the optimizer trains; by default all.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        settings: TrainingSettings,
        names: Iterable[str] | None = None,
    ) -> None:
        self.parameters = dict(sorted(parameters.items()))
        self._settings = settings
        self._set_out(names)

    def _set_out(self, names: Iterable[str] | None) -> None:
        """Begin with an optimizer that knows nothing."""
        wanted = self.parameters if names is None else names
        self._in_training = {name: self.parameters[name] for name in sorted(wanted)}
        self._optimizer = adapters.make_optimizer(self._in_training, self._settings)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters by name."""
        return {name: tuple(value.shape) for name, value in self.parameters.items()}

    def values(self) -> dict[str, torch.Tensor]:
        """A copy of the parameters."""
        return {name: value.detach().clone() for name, value in self.parameters.items()}

    def start_over(self, adapter: bytes, names: Iterable[str] | None = None) -> None:
        """Take over an adapter's values, with an optimizer that knows nothing.

        Args:
            adapter: of all parameters.
            names: of those that it trains from now on; by default all.

        Raises:
            PeerError: not this part's adapter.
        """
        self._put(adapters.from_bytes(adapter, self.shapes))
        self._set_out(names)
        self.forget_gradients()

    def step(self) -> None:
        """One optimizer step with the gradients added up since the last."""
        self._optimizer.step()
        self.forget_gradients()

    def check_gradients(self) -> None:
        """Look whether the gradients added up since the last step may be stepped with.

        Raises:
            DivergedError: they are not finite, or too large.
        """
        found = {name: value.grad for name, value in self.parameters.items() if value.grad is not None}
        check_gradients(found, self._settings.norm_bound)

    def forget_gradients(self) -> None:
        """Drop gradients that no step has used."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def brought(self) -> dict[str, torch.Tensor]:
        """The parameters in training, as they are."""
        return {name: value.detach() for name, value in self._in_training.items()}

    def adapter(self) -> bytes:
        """The parameters as they are."""
        return adapters.to_bytes({name: value.detach() for name, value in self.parameters.items()})

    def checkpoint(self) -> bytes:
        """Parameters and optimizer together; equal states give equal bytes."""
        return adapters.to_bytes(dict(self.parameters) | self._state())

    def restore(self, body: bytes) -> None:
        """Take over a checkpoint, whole or not at all.

        Raises:
            PeerError: not a checkpoint of this part with these settings.
        """
        tensors = adapters.from_bytes(body, self._checkpoint_shapes())
        state = {name: tensors.pop(name) for name in list(tensors) if name not in self.parameters}
        self._put(tensors)
        self._put_state(state)
        self.forget_gradients()

    def _put(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, value in values.items():
            self.parameters[name].data.copy_(value)

    def _state(self) -> dict[str, torch.Tensor]:
        names = list(self._in_training)
        return {
            f"{names[index]}/{quantity}": value.detach().clone().contiguous()
            for index, values in self._optimizer.state_dict()["state"].items()
            for quantity, value in values.items()
            if isinstance(value, torch.Tensor)
        }

    def _put_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        place = {name: index for index, name in enumerate(self._in_training)}
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            name, quantity = key.rsplit("/", 1)
            state.setdefault(place[name], {})[quantity] = value
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})

    def _checkpoint_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = self.shapes
        for quantity in QUANTITIES[self._settings.optimizer]:
            shapes |= {
                f"{name}/{quantity}": () if quantity == "step" else tuple(value.shape)
                for name, value in self._in_training.items()
            }
        return shapes
