"""Token ids of texts, the same where a model is trained and where it is asked."""

from transformers import PreTrainedTokenizerBase


def opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that the tokenizer puts in front of every text, mostly none or one."""
    ids = list(tokenizer("").input_ids)
    if ids and ids[-1] == tokenizer.eos_token_id != tokenizer.bos_token_id:
        ids.pop()  # some close every text as well
    return ids


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text, without an opening or an end."""
    # Not verbose: it would warn about texts longer than the model's window, which are cut here.
    return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
