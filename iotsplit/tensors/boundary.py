"""Where a tier's computation ends and the next one's begins: graphs that wait for a gradient."""

from typing import Any

import torch

Key = tuple[Any, ...]
"""What names an open step, such as (session, step, micro_batch)."""


class Boundary:
    """Keeps the autograd graphs of steps whose gradient has not come back yet."""

    def __init__(self) -> None:
        self._open: dict[Key, tuple[torch.Tensor | None, torch.Tensor]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, key: Key) -> bool:
        return key in self._open

    def open(self, key: Key, inputs: torch.Tensor | None, outputs: torch.Tensor) -> torch.Tensor:
        """Keep a graph; a key that is already open is replaced (the step is computed again).

        Args:
            key: names the step and its micro-batch.
            inputs: leaf that the gradient is wanted of, `requires_grad` set; `None` at the first tier.
            outputs: what was computed from it.

        Returns:
            `outputs` without graph, to be sent.
        """
        self._open[key] = (inputs, outputs)
        return outputs.detach()

    def close(self, key: Key, gradient: torch.Tensor) -> torch.Tensor | None:
        """Run the backward pass of a kept graph, once, and free it.

        Gradients of parameters are added to their `grad`.

        Returns:
            The gradient by the inputs, or `None` if there were none.

        Raises:
            KeyError: the key is not open.
        """
        inputs, outputs = self._open.pop(key)
        if outputs.requires_grad:
            run_backward(outputs, gradient)
        if inputs is None:
            return None
        return torch.zeros_like(inputs) if inputs.grad is None else inputs.grad

    def drop(self, key: Key) -> None:
        """Forget one graph, if it is open."""
        self._open.pop(key, None)

    def drop_all(self) -> None:
        """Forget all graphs: their gradients will not come."""
        self._open.clear()


def run_backward(outputs: torch.Tensor, gradient: torch.Tensor) -> None:
    """Run the backward pass from `outputs`, whose gradient is given; to the bit what `torch.autograd` does.

    That compares the two shapes by symbols, for which torch loads 30 MB that nothing else here needs.

    Raises:
        ValueError: the gradient has another shape.
    """
    if outputs.shape != gradient.shape:
        raise ValueError(f"a gradient of shape {tuple(gradient.shape)} by {tuple(outputs.shape)}")
    with torch.enable_grad():  # also in the midst of another backward pass
        end: torch.Tensor = _Given.apply(outputs, gradient)  # type: ignore[no-untyped-call]  # torch's own
    torch.autograd.backward(end)


class _Given(torch.autograd.Function):
    """A number, which nobody looks at, with a given gradient by its input."""

    @staticmethod
    def forward(ctx: Any, outputs: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        ctx.gradient = gradient
        return outputs.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.gradient, None
