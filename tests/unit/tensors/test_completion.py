"""Texts written by a model with an adapter."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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


@pytest.mark.parametrize("end", [9, [8, 9]])
def test_a_text_ends_where_the_model_ends_it(model: Path, end: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)

    def generate(input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.cat([input_ids, torch.tensor([[3, 4, 9, 5], [9, 5, 5, 5], [3, 4, 5, 6]])], dim=1)

    ends: Any = SimpleNamespace(generate=generate, generation_config=SimpleNamespace(eos_token_id=end))
    written = completion._continue(ends, tokenizer, PROMPTS[:3], 4)
    assert written == tokenizer.batch_decode([[3, 4], [], [3, 4, 5, 6]])


def test_no_prompts_are_no_texts(model: Path) -> None:
    assert completion.complete(model, None, [], 12) == []
