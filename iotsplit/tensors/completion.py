"""Writes text with the whole model and an adapter: what training changed, for people to read."""

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from iotsplit.tensors.tokenizers import ids_of, opening

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
    tokenizer: Any = AutoTokenizer.from_pretrained(model_dir)
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    if adapter_dir is not None:
        model = PeftModel.from_pretrained(model, str(adapter_dir)).merge_and_unload()
    model.eval()
    written: list[str] = []
    for first in range(0, len(prompts), AT_ONCE):
        written += _continue(model, tokenizer, list(prompts[first : first + AT_ONCE]), max_new_tokens)
    return written


def _continue(model: Any, tokenizer: Any, prompts: list[str], max_new_tokens: int) -> list[str]:
    """The prompts are padded on the left, with what the mask hides: not all tokenizers have a token for it."""
    start = opening(tokenizer)
    encoded = [start + ids_of(tokenizer, prompt) for prompt in prompts]
    longest = max(map(len, encoded))
    with torch.no_grad():
        tokens = model.generate(
            input_ids=torch.tensor([[0] * (longest - len(ids)) + ids for ids in encoded]),
            attention_mask=torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in encoded]),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
    ends = _ends(model, tokenizer)
    new = [list(takewhile(lambda each: each not in ends, row)) for row in tokens[:, longest:].tolist()]
    return [str(text) for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def _ends(model: Any, tokenizer: Any) -> set[int | None]:
    """Ids that end a text; what is behind one is padding."""
    of_model = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(of_model if isinstance(of_model, list) else [of_model])}
