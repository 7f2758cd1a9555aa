"""How large what is trained may become: an exploding run or a hostile peer is stopped before it spreads.

One setting, `norm_bound`, in three places:

============  ======================================================================================
what          bound
============  ======================================================================================
hidden state  root mean square of all values, so that neither batch nor width count
gradient      Euclidean norm of the whole: the loss is a mean over the step's tokens, so it does not
              grow with their number
LoRA update   what the fleet's optimizer can reach in `local_steps` steps from the adapter version
============  ======================================================================================

These are limits for what cannot be right, not for what is unusual: an outlier within them is a matter of
`aggregation`. The default is far from healthy training. The largest value published of a hidden state is 7e5
(Gemma3-27B, arXiv 2605.15572), in one channel of 5376 of one token: a root mean square of 9.5e3 if
there were no other token. SmolLM2 has 1e3 there, and 90 in a sequence of 128. Gradients have norms below 100.
"""

import math
from collections.abc import Mapping

import torch

from iotsplit.errors import DivergedError, TensorRefusedError
from iotsplit.settings import Optimizer, TrainingSettings

BETAS = (0.9, 0.999)
"""Decay of AdamW's running means, of the gradient and of its square."""

_ROUNDING = 1e-6
"""What float32 may add to a step, relative to the largest value; and to the whole way."""


def largest_hidden(values: int, norm_bound: float) -> float:
    """The largest norm of hidden states of so many values."""
    return norm_bound * math.sqrt(values)


def check_gradients(gradients: Mapping[str, torch.Tensor], norm_bound: float) -> None:
    """Look whether gradients by LoRA parameters may be stepped with.

    Raises:
        DivergedError: their norm is over the bound, or they are not finite.
    """
    norm = norm_of(gradients)
    if not norm <= norm_bound:  # so that NaN is refused too
        raise DivergedError(f"LoRA gradients have a norm of {norm:.3g}, at most {norm_bound:.3g} is allowed")


def check_update(
    start: Mapping[str, torch.Tensor],
    update: Mapping[str, torch.Tensor],
    settings: TrainingSettings,
    *,
    growth: float = 0.0,
) -> None:
    """Look whether the fleet's optimizer can have made an update from its adapter version.

    With AdamW no gradient moves a value by much more than the learning rate (Kingma and Ba, arXiv 1412.6980,
    section 2.1), so each value has a bound of its own. With SGD a step is a gradient, and those are bounded.

    Args:
        start: the section of the version that the round began with.
        update: finite tensors of the same names and shapes.
        settings: the fleet's.
        growth: by how much, relative to the way, the codec may have made it longer.

    Raises:
        TensorRefusedError: it is further away than that.
    """
    changes = {name: update[name] - start[name] for name in start}
    size = max((float(value.abs().max()) for value in start.values() if value.numel()), default=0.0)
    rounding = settings.local_steps * size * _ROUNDING
    if settings.optimizer is Optimizer.ADAMW:
        moved = max((float(change.abs().max()) for change in changes.values() if change.numel()), default=0.0)
        reach = settings.learning_rate * adamw_steps(settings.local_steps)
    else:
        moved = norm_of(changes)
        reach = settings.learning_rate * settings.local_steps * settings.norm_bound
        rounding *= math.sqrt(sum(change.numel() for change in changes.values()))
    if not moved <= reach * (1 + _ROUNDING + growth) + rounding:
        raise TensorRefusedError(
            f"an update that moves by {moved:.3g}, while {settings.local_steps} steps reach {reach:.3g}"
        )


def adamw_steps(steps: int) -> float:
    """How far so many steps of AdamW from a fresh state move a value at most, in learning rates.

    By Cauchy-Schwarz the running mean of the gradient is at most `sqrt(sum_i (b1^2/b2)^i) * (1 - b1) /
    sqrt(1 - b2)` times the root of that of its square; both with their bias corrections.
    """
    first, second = BETAS
    ratio = first**2 / second
    total = 0.0
    for step in range(1, steps + 1):
        seen = math.sqrt((1 - ratio**step) / (1 - ratio))
        corrected = math.sqrt(1 - second**step) / (1 - first**step)
        total += seen * (1 - first) / math.sqrt(1 - second) * corrected
    return total


def norm_of(tensors: Mapping[str, torch.Tensor]) -> float:
    """The Euclidean norm of all values together; NaN or infinity if one of them is."""
    return math.sqrt(sum(float(torch.linalg.vector_norm(tensors[name])) ** 2 for name in sorted(tensors)))
