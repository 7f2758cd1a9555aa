"""Tensors of safetensors files, mapped."""

import gc
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file

from iotsplit.errors import UsageError
from iotsplit.tensors import weights as module
from iotsplit.tensors.weights import DTYPES, Weights


def written(directory: Path, tensors: dict[str, torch.Tensor]) -> Weights:
    save_file(tensors, directory / "model.safetensors")
    return Weights(directory)


def loaded(weights: Weights) -> dict[str, torch.Tensor]:
    return dict(weights.load({name: name for name in weights.entries}))


def test_every_type_is_read_as_it_was_written(tmp_path: Path) -> None:
    tensors = {name: torch.arange(6).view(2, 3).to(dtype) for name, dtype in DTYPES.items()}
    found = loaded(written(tmp_path, tensors))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].to(torch.float64), tensor.to(torch.float64))


def test_tensors_are_found_wherever_they_begin(tmp_path: Path) -> None:
    sizes = (1, 4095, 4096, 0, 70_001, 3)
    tensors = {f"t{n}": torch.full((size,), n, dtype=torch.int16) for n, size in enumerate(sizes)}
    found = loaded(written(tmp_path, tensors))
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_writing_to_a_tensor_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    weights = written(tmp_path, {"t": torch.zeros(3)})
    loaded(weights)["t"].fill_(1)
    assert not loaded(weights)["t"].any()


def test_a_type_that_nothing_computes_with_is_named(tmp_path: Path) -> None:
    weights = written(tmp_path, {"t": torch.zeros(2, dtype=torch.complex64)})
    with pytest.raises(UsageError, match="C64"):
        loaded(weights)


def test_a_thousand_tensors_hold_few_file_descriptors(tmp_path: Path) -> None:
    tensors = {f"t{n}": torch.full((17_000,), n, dtype=torch.float32) for n in range(1000)}
    before = psutil.Process().num_fds()
    found = loaded(written(tmp_path, tensors))
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert psutil.Process().num_fds() - before <= 8


def test_large_neighbours_have_mappings_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAPPED_BYTES", 4096)
    tensors = {f"t{n}": torch.full((17_000,), n, dtype=torch.float32) for n in range(8)}
    weights = written(tmp_path, tensors)
    assert [len(each) for each in weights._neighbours({name: name for name in tensors})] == [1] * 8
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in loaded(weights).items())


def test_small_tensors_do_not_hold_the_pages_of_their_neighbours(tmp_path: Path) -> None:
    sizes = {"a": 17_000, "b": 5, "c": 17_000}
    weights = written(tmp_path, {name: torch.ones(size) for name, size in sizes.items()})
    maps = Path("/proc/self/maps")
    found = loaded(weights)
    assert str(tmp_path) in maps.read_text()
    kept = found["b"]
    found.clear()
    gc.collect()
    assert str(tmp_path) not in maps.read_text()
    assert kept.sum() == 5
