"""A model so small that a whole fleet trains it in seconds: for tests, not for use."""

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

UNKNOWN = "?"
"""Stands for every other character, and for the end."""


def make(directory: Path, *, layers: int, seed: int) -> Path:
    """Write a random llama of width 32, and a tokenizer of single characters.

    Args:
        directory: where; made if it is not there.
        layers: of the model.
        seed: of its parameters; the same seed gives the same model.
    """
    characters = string.printable.replace(UNKNOWN, "")
    config = AutoConfig.for_model(
        "llama",
        vocab_size=1 + len(characters),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    new: Any = AutoModelForCausalLM.from_config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new(config).save_pretrained(directory)
    write_tokenizer(directory, characters)
    return directory


def write_tokenizer(directory: Path, characters: str) -> None:
    """Write a tokenizer of single characters; `UNKNOWN` is the first."""
    letters = {letter: place for place, letter in enumerate(UNKNOWN + characters)}
    words = Tokenizer(WordLevel(letters, unk_token=UNKNOWN))
    words.pre_tokenizer = Split("", "isolated")
    tokenizer: Any = PreTrainedTokenizerFast
    tokenizer(tokenizer_object=words, eos_token=UNKNOWN).save_pretrained(directory)
