"""Writes text with the whole model and an adapter: what training changed, for people to read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


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
    tokenizer: Any = AutoTokenizer.from_pretrained(model_dir)
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    if adapter_dir is not None:
        model = PeftModel.from_pretrained(model, str(adapter_dir))
    model.eval()
    return [_continue(model, tokenizer, prompt, max_new_tokens) for prompt in prompts]


def _continue(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int) -> str:
    # One at a time: prompts of different lengths would need padding on the left.
    encoded = tokenizer(prompt, return_tensors="pt")
    end = model.config.eos_token_id
    with torch.no_grad():
        tokens = model.generate(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=end[0] if isinstance(end, list) else end,
        )
    new = tokens[0, encoded["input_ids"].shape[1] :]
    return str(tokenizer.decode(new, skip_special_tokens=True))
