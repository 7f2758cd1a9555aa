"""Writes text with the whole model and an adapter: what training changed, for people to read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

AT_ONCE = 16
"""Prompts in a batch: the weights are read once for all of them."""


def complete(
    model_dir: Path, adapter_dir: Path | None, prompts: Sequence[str], max_new_tokens: int
) -> list[str]:
    """Continue each prompt with the most probable tokens.

    Args:
        model_dir: of the whole model, with its tokenizer.
        adapter_dir: a PEFT adapter directory; `None` for the model as it is.
        prompts: taken as they are, without a chat template.
        max_new_tokens: of each continuation.

    Returns:
        The continuations, without their prompts and special tokens.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    if adapter_dir is not None:
        model = PeftModel.from_pretrained(model, str(adapter_dir)).merge_and_unload()
    model.eval()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    written: list[str] = []
    for first in range(0, len(prompts), AT_ONCE):
        written += _continue(model, tokenizer, list(prompts[first : first + AT_ONCE]), max_new_tokens)
    return written


def _continue(model: Any, tokenizer: Any, prompts: list[str], max_new_tokens: int) -> list[str]:
    encoded = tokenizer(prompts, return_tensors="pt", padding=True)
    with torch.no_grad():
        tokens = model.generate(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
    new = tokens[:, encoded["input_ids"].shape[1] :]
    return [str(text) for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
