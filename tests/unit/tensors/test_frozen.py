"""Frozen matrices in fewer bits compute what their rounded values compute in float32."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from iotsplit.plan import PartPlan
from iotsplit.settings import BaseDtype, TrainingSettings
from iotsplit.tensors import adapters
from iotsplit.tensors.frozen import FrozenLinear
from iotsplit.tensors.parts import load_part, sizes
from tests.unit.tensors.tiny import TinyModel

SMALLER = [BaseDtype.BF16, BaseDtype.INT8]


def linear(*, bias: bool = True) -> nn.Linear:
    torch.manual_seed(4)
    return nn.Linear(24, 40, bias=bias).requires_grad_(requires_grad=False)


@pytest.mark.parametrize("dtype", SMALLER)
@pytest.mark.parametrize("bias", [True, False])
def test_forward_and_backward_are_those_of_the_rounded_matrix(dtype: BaseDtype, bias: bool) -> None:
    plain = linear(bias=bias)
    small = FrozenLinear(plain, dtype)
    plain.weight.data = small.matrix()
    ours, theirs = (torch.linspace(-1, 1, 2 * 5 * 24).view(2, 5, 24).requires_grad_() for _ in range(2))
    torch.autograd.backward(small(ours).square().sum())
    torch.autograd.backward(plain(theirs).square().sum())
    assert ours.grad is not None
    assert theirs.grad is not None
    assert (small(ours) - plain(theirs)).abs().max() <= 1e-6
    assert (ours.grad - theirs.grad).abs().max() <= 1e-5


@pytest.mark.parametrize(("dtype", "share"), [(BaseDtype.BF16, 2**-8), (BaseDtype.INT8, 0.5 / 127)])
def test_a_matrix_is_changed_by_no_more_than_its_bits_say(dtype: BaseDtype, share: float) -> None:
    plain = linear()
    off = (FrozenLinear(plain, dtype).matrix() - plain.weight).abs()
    assert off.max() > 0
    assert (off <= plain.weight.abs().amax(dim=1, keepdim=True) * share * 1.001).all()


@pytest.mark.parametrize("dtype", SMALLER)
def test_matrices_that_are_stored_the_other_way_round_are_turned(dtype: BaseDtype) -> None:
    make: Any = Conv1D
    turned = make(40, 24)
    turned.weight.data = linear().weight.T.contiguous()
    turned.bias.data = linear().bias.data
    inputs = torch.linspace(-1, 1, 3 * 24).view(3, 24)
    assert torch.equal(FrozenLinear(turned, dtype)(inputs), FrozenLinear(linear(), dtype)(inputs))


def test_a_row_of_zeros_stays_one() -> None:
    plain = linear()
    plain.weight.data[3] = 0
    assert not FrozenLinear(plain, BaseDtype.INT8).matrix()[3].any()


@pytest.mark.parametrize("dtype", SMALLER)
def test_a_graph_that_waits_keeps_no_matrix(dtype: BaseDtype) -> None:
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        FrozenLinear(linear(), dtype)(torch.ones(2, 24, requires_grad=True))
    assert kept == []


@pytest.mark.parametrize(
    ("dtype", "bytes_each"), [(BaseDtype.FP32, 4), (BaseDtype.BF16, 2), (BaseDtype.INT8, 1)]
)
def test_what_is_frozen_shrinks_and_lora_does_not(tiny: TinyModel, dtype: BaseDtype, bytes_each: int) -> None:
    part = load_part(tiny.directory, PartPlan(first=2, end=4))
    frozen = sizes(part)[0]
    adapters.inject(part, TrainingSettings(target_modules=tiny.targets, base_dtype=dtype))
    assert sizes(part)[0] == frozen
    found = {p.element_size() for p in part.parameters() if not p.requires_grad and p.dim() == 2}
    assert found == {bytes_each}
    assert {p.dtype for p in adapters.parameters(part).values()} == {torch.float32}
