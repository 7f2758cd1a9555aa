"""Graphs that wait for a gradient."""

import pytest
import torch

from iotsplit.tensors.boundary import Boundary, run_backward


def test_a_chain_of_boundaries_gives_the_gradients_of_the_whole() -> None:
    weights = [torch.tensor(value, requires_grad=True) for value in (2.0, 3.0)]
    first, second = Boundary(), Boundary()
    hidden = first.open(("s", 1, 0), None, torch.tensor(5.0) * weights[0])
    assert not hidden.requires_grad
    hidden.requires_grad_()
    out = second.open(("s", 1, 0), hidden, hidden * weights[1])
    gradient = second.close(("s", 1, 0), torch.ones_like(out))
    assert gradient is not None
    assert first.close(("s", 1, 0), gradient) is None
    assert [weight.grad for weight in weights] == [torch.tensor(15.0), torch.tensor(10.0)]


def test_micro_batches_stay_apart_and_add_up_in_any_order() -> None:
    weight = torch.tensor(1.0, requires_grad=True)
    boundary = Boundary()
    for micro_batch in (0, 1):
        boundary.open(("s", 1, micro_batch), None, weight * (micro_batch + 2))
    assert len(boundary) == 2
    for micro_batch in (1, 0):
        boundary.close(("s", 1, micro_batch), torch.tensor(1.0))
    assert weight.grad is not None
    assert weight.grad.item() == 5.0
    assert len(boundary) == 0


def test_a_gradient_is_applied_once() -> None:
    boundary = Boundary()
    boundary.open(("k",), None, torch.tensor(1.0, requires_grad=True) * 2)
    boundary.close(("k",), torch.tensor(1.0))
    with pytest.raises(KeyError):
        boundary.close(("k",), torch.tensor(1.0))


def test_a_step_that_is_computed_again_replaces_the_one_before() -> None:
    weight = torch.tensor(1.0, requires_grad=True)
    boundary = Boundary()
    boundary.open(("k",), None, weight * 2)
    boundary.open(("k",), None, weight * 3)
    boundary.close(("k",), torch.tensor(1.0))
    assert weight.grad is not None
    assert weight.grad.item() == 3.0


def test_what_is_dropped_is_not_open() -> None:
    boundary = Boundary()
    for key in (("a",), ("b",), ("c",)):
        boundary.open(key, None, torch.tensor(1.0))
    boundary.drop(("a",))
    boundary.drop(("never",))
    assert ("a",) not in boundary
    assert ("b",) in boundary
    boundary.drop_all()
    assert len(boundary) == 0


def test_inputs_that_nothing_depends_on_have_a_gradient_of_zeros() -> None:
    boundary = Boundary()
    inputs = torch.ones(2, requires_grad=True)
    boundary.open(("k",), inputs, torch.ones(2))
    gradient = boundary.close(("k",), torch.ones(2))
    assert gradient is not None
    assert not gradient.any()


def test_a_backward_pass_gives_what_torch_gives_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(1)
    start, gradient = (torch.randn(3, 5, generator=generator) for _ in range(2))
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    run_backward(ours.exp() * ours, gradient)
    torch.autograd.backward(theirs.exp() * theirs, gradient)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)


def test_a_gradient_of_another_shape_is_refused() -> None:
    outputs = torch.ones(2, 3, requires_grad=True) * 2
    with pytest.raises(ValueError, match=r"\(3,\) by \(2, 3\)"):
        run_backward(outputs, torch.ones(3))
