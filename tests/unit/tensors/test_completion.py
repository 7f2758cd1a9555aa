"""Texts written by a model with an adapter."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from iotsplit.tensors import completion
from tests.support import letters_model

PROMPTS = ["press hot", "a", "the pump is loud and the belt is slow", "oil"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return letters_model(tmp_path_factory.mktemp("letters") / "model")


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    config = LoraConfig(r=2, lora_alpha=32, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    directory = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    get_peft_model(whole, config).save_pretrained(str(directory))
    return directory


def test_a_prompt_is_continued_as_if_it_were_alone(
    model: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = completion.complete(model, adapter, PROMPTS, 12)
    assert len(together) == len(PROMPTS)
    assert together != completion.complete(model, None, PROMPTS, 12)
    monkeypatch.setattr(completion, "AT_ONCE", 1)
    assert completion.complete(model, adapter, PROMPTS, 12) == together


def test_a_tokenizer_needs_no_token_for_padding(model: Path, adapter: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(model, tmp_path / "bare")
    for file in (bare / "tokenizer_config.json", bare / "special_tokens_map.json"):
        if file.exists():
            named = json.loads(file.read_text())
            file.write_text(json.dumps({key: named[key] for key in named.keys() - {"eos_token", "pad_token"}}))
    assert AutoTokenizer.from_pretrained(bare).pad_token is None
    assert completion.complete(bare, adapter, PROMPTS, 12) == completion.complete(model, adapter, PROMPTS, 12)


def test_no_prompts_are_no_texts(model: Path) -> None:
    assert completion.complete(model, None, [], 12) == []
