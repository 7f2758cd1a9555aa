"""Layers that are computed again for the backward pass."""

import pytest
import torch
from torch import nn

from iotsplit.plan import PartPlan
from iotsplit.settings import TrainingSettings
from iotsplit.tensors import adapters
from iotsplit.tensors.boundary import run_backward
from iotsplit.tensors.parts import Part, load_part
from iotsplit.tensors.recompute import recompute
from tests.unit.tensors.tiny import WIDTH, Batch, TinyModel

Trained = tuple[torch.Tensor, dict[str, torch.Tensor], int]


def part_of(tiny: TinyModel, plan: PartPlan) -> Part:
    """A part with an adapter whose gradients are not zero."""
    settings = TrainingSettings(target_modules=tiny.targets)
    part = load_part(tiny.directory, plan)
    adapters.inject(part, settings)
    whole = adapters.initial(tiny.directory, settings)
    own = adapters.fresh(adapters.select(whole, plan))
    for parameter in own.values():
        parameter.data += 0.01
    adapters.attach(part, own)
    return part


def train(part: Part, inputs: torch.Tensor, mask: torch.Tensor) -> Trained:
    """Outputs, gradients, and how many bytes the graph keeps."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = part(inputs, mask)
    run_backward(outputs, torch.ones_like(outputs) / 7)
    gradients = {
        name: value.grad for name, value in adapters.parameters(part).items() if value.grad is not None
    }
    if inputs.grad is not None:
        gradients["inputs"] = inputs.grad
    return outputs.detach(), gradients, sum(kept.values())


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 2])
def test_outputs_and_gradients_are_the_same_and_less_is_kept(tiny: TinyModel, batch: Batch, first: int) -> None:
    plan = PartPlan(first=first, end=first + 2, embedding=first == 0)
    hidden = torch.randn(3, 11, WIDTH, generator=torch.Generator().manual_seed(2))
    found = []
    for again in (False, True):
        part = part_of(tiny, plan)
        if again:
            recompute(part.layers)
        inputs = hidden.clone().requires_grad_() if first else batch.ids
        found.append(train(part, inputs, batch.mask))
    (outputs, gradients, kept), (outputs_again, gradients_again, kept_again) = found
    assert torch.equal(outputs, outputs_again)
    assert gradients
    assert gradients.keys() == gradients_again.keys()
    assert all(torch.equal(gradients[name], gradients_again[name]) for name in gradients)
    assert kept_again < kept / 4


def test_without_a_gradient_nothing_is_kept(llama: TinyModel, batch: Batch) -> None:
    part = part_of(llama, PartPlan(first=0, end=2, embedding=True))
    plain = part(batch.ids, batch.mask).detach()
    recompute(part.layers)
    with torch.no_grad():
        again = part(batch.ids, batch.mask)
    assert not again.requires_grad
    assert torch.equal(again, plain)


class Pair(nn.Module):
    """A layer of an architecture whose layers return tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(3.0))

    def forward(self, hidden: torch.Tensor, *, more: torch.Tensor) -> tuple[torch.Tensor, None]:
        return hidden * self.factor + more, None


def test_layers_that_return_tuples_still_do() -> None:
    layers = nn.ModuleList([Pair()])
    recompute(layers)
    outputs = layers[0](torch.ones(2), more=torch.ones(2))
    assert isinstance(outputs, tuple)
    run_backward(outputs[0], torch.ones(2))
    factor = layers[0].get_parameter("factor")
    assert factor.grad is not None
    assert factor.grad.item() == 2.0
