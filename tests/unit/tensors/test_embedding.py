"""Embedding tables that are read row by row from the file of the model."""

import copy
import gc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from iotsplit.plan import PartPlan
from iotsplit.tensors.embedding import RowsOfFile
from iotsplit.tensors.parts import load_part
from tests.unit.tensors.tiny import VOCABULARY, WIDTH, TinyModel

PLAN = PartPlan(first=0, end=2, embedding=True)
TABLE = "model.embed_tokens.weight"


def embedding_of(directory: Path, plan: PartPlan = PLAN) -> nn.Embedding:
    return next(module for module in load_part(directory, plan).modules() if isinstance(module, nn.Embedding))


def stored_as(model: TinyModel, dtype: torch.dtype, target: Path) -> torch.Tensor:
    """Write the model in another type; gives its table."""
    tensors = {
        name: value.to(dtype) for name, value in load_file(model.directory / "model.safetensors").items()
    }
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text((model.directory / "config.json").read_text())
    return tensors[TABLE]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_those_of_the_table_in_float32(llama: TinyModel, tmp_path: Path, dtype: torch.dtype) -> None:
    table = stored_as(llama, dtype, tmp_path)
    embedding = embedding_of(tmp_path)
    ids = torch.tensor([[5, 0, 5], [VOCABULARY - 1, 7, 5]])
    assert isinstance(embedding, RowsOfFile)
    assert embedding.weight.dtype == dtype  # as stored: a copy in float32 would be twice as large
    assert torch.equal(embedding(ids), table.to(torch.float32)[ids])


@pytest.mark.parametrize("index", [-1, VOCABULARY])
def test_an_id_outside_of_the_table_is_refused(llama: TinyModel, index: int) -> None:
    with pytest.raises(IndexError, match="not below 97"):
        embedding_of(llama.directory)(torch.tensor([[0, index]]))


def test_the_file_may_be_replaced_while_it_is_in_use(llama: TinyModel, tmp_path: Path) -> None:
    table = stored_as(llama, torch.float32, tmp_path)
    embedding = embedding_of(tmp_path)
    other = tmp_path / "other"
    save_file({TABLE: torch.zeros(VOCABULARY, WIDTH)}, other)
    other.replace(tmp_path / "model.safetensors")
    assert torch.equal(embedding(torch.tensor([[3]])), table[torch.tensor([[3]])])


def test_a_copy_reads_on_when_the_first_is_gone(llama: TinyModel) -> None:
    embedding = embedding_of(llama.directory)
    ids = torch.tensor([[3, 4]])
    rows = embedding(ids)
    copied = copy.deepcopy(embedding)
    del embedding
    gc.collect()
    assert torch.equal(copied(ids), rows)


def test_a_part_with_the_head_that_shares_the_table_has_it_in_memory(llama: TinyModel) -> None:
    whole = embedding_of(llama.directory, PartPlan(first=0, end=2, embedding=True, head=True))
    assert not isinstance(whole, RowsOfFile)


def test_an_embedding_that_computes_keeps_its_own_code(tiny_models: dict[str, TinyModel]) -> None:
    assert not isinstance(embedding_of(tiny_models["gemma3_text"].directory), RowsOfFile)
