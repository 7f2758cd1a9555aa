"""Records as token ids: what is learnt of each, and what is held out."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from iotsplit.datasets.records import Chat, ChatMessage, Pair, Record, Text
from iotsplit.errors import UsageError
from iotsplit.tensors.tokenizers import ids_of, opening

NO_LOSS = -100
"""Label of a position that is not learnt."""

_SHORTEST_TAIL = 8  # tokens; a shorter end of a text costs a row of padding and teaches little
_HELD_OUT_SHARE = 10

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Tokens:
    """A sequence: token ids, and at each position the next token's id or `NO_LOSS`."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def loss_tokens(self) -> int:
        """Positions that are learnt."""
        return sum(label != NO_LOSS for label in self.labels)


def tokenize(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    *,
    sequence_length: int,
    batch_size: int = 1,
    seed: int = 0,
    eval_limit: int = 16,
) -> tuple[list[Tokens], list[Tokens]]:
    """Turn records into training sequences and held-out ones, which share none.

    Held out are the records that say so; else a tenth of the sequences, at least one.

    Args:
        records: what a device has.
        tokenizer: of the model.
        sequence_length: tokens of the longest sequence; texts are cut, prompts lose their beginning.
        batch_size: least number of training sequences.
        seed: chooses what is held out.
        eval_limit: most sequences that are held out where the records do not say.

    Raises:
        UsageError: too few training sequences are left.
    """
    marked = any(record.split == "eval" for record in records)
    train: list[Tokens] = []
    held_out: list[Tokens] = []
    skipped = 0
    for record in records:
        made = sequences_of(record, tokenizer, sequence_length)
        usable = [tokens for tokens in made if tokens.loss_tokens]
        skipped += max(len(made), 1) - len(usable)
        (held_out if record.split == "eval" else train).extend(usable)
    if skipped:
        _log.warning("records without anything to learn are left out", count=skipped)
    if not marked:
        held_out = _hold_out(train, seed, eval_limit)
    apart = set(held_out)
    train = [tokens for tokens in train if tokens not in apart]
    if len(train) < batch_size:
        raise UsageError(
            f"{len(records)} records give {len(train)} training sequences "
            f"({len(held_out)} held out), fewer than batch_size {batch_size}",
            fix="add data, or use a smaller batch_size or sequence_length",
        )
    if not held_out:
        raise UsageError(
            f"{len(records)} records are all alike, so that none can be held out to score",
            fix='add different data, or mark some with "split": "eval"',
        )
    return train, held_out


def sequences_of(record: Record, tokenizer: PreTrainedTokenizerBase, sequence_length: int) -> list[Tokens]:
    """The sequences of one record; for a text as many as it is long."""
    if isinstance(record, Text):
        return _windows(opening(tokenizer) + ids_of(tokenizer, record.text), sequence_length)
    prompt, completion = _parts(record, tokenizer)
    return [_answer(opening(tokenizer), prompt, completion, sequence_length)]


def prompt_ids(record: Pair | Chat, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the model is given when it is to write the completion itself."""
    prompt, _ = _parts(record, tokenizer)
    return opening(tokenizer) + prompt


def _windows(ids: list[int], length: int) -> list[Tokens]:
    """Cut so that every token but the first is learnt exactly once."""
    last = len(ids) - 1  # nothing follows it
    windows = [
        Tokens(tuple(ids[start : min(start + length, last)]), tuple(ids[start + 1 : start + length + 1]))
        for start in range(0, last, length)
    ]
    if len(windows) > 1 and len(windows[-1].ids) < _SHORTEST_TAIL:
        windows.pop()
    return windows


def _parts(record: Pair | Chat, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Ids of the prompt, and of the completion with its end."""
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    if isinstance(record, Pair):
        # Tokens must not join the two: a prompt stands alone when the model is asked.
        prompt = ids_of(tokenizer, record.lead)
        return prompt, ids_of(tokenizer, record.completion) + end
    if tokenizer.chat_template is None:
        turns = [f"{message.role}: {message.content}\n" for message in record.prompt]
        prompt = ids_of(tokenizer, "".join(turns) + "assistant:")
        return prompt, ids_of(tokenizer, f" {record.completion}") + end
    return _templated(record, tokenizer, end)


def _templated(chat: Chat, tokenizer: PreTrainedTokenizerBase, end: list[int]) -> tuple[list[int], list[int]]:
    whole = _template(tokenizer, chat.messages, ask=False)
    prompt = _template(tokenizer, chat.prompt, ask=True) if chat.prompt else ""
    if whole.startswith(prompt):
        completion = ids_of(tokenizer, whole[len(prompt) :].rstrip("\n"))
    else:  # templates may rewrite earlier turns; then the answer just follows the question
        completion = ids_of(tokenizer, chat.completion) + end
    start = opening(tokenizer)
    asked = ids_of(tokenizer, prompt)
    # Templates may write the opening themselves.
    return asked[len(start) :] if start and asked[: len(start)] == start else asked, completion


def _template(tokenizer: PreTrainedTokenizerBase, messages: Sequence[ChatMessage], *, ask: bool) -> str:
    turns: list[dict[str, Any]] = [{"role": m.role, "content": m.content} for m in messages]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask))
    except TemplateError as error:
        raise UsageError(
            f"the model's chat template refuses a chat ({error})",
            fix="give roles as the model knows them, mostly user and assistant in turn",
        ) from None


def _answer(start: list[int], prompt: list[int], completion: list[int], length: int) -> Tokens:
    """Loss on the completion only; the prompt loses its beginning if both are too long."""
    room = length + 1 - len(start) - len(completion)  # the last id is only a label
    # At least one id of the prompt stays, so that the completion's first token can be learnt.
    kept = prompt[max(0, len(prompt) - max(room, 0 if start else 1)) :]
    before = start + kept
    ids = (before + completion)[: length + 1]
    labels = [NO_LOSS] * (len(before) - 1) + ids[max(len(before), 1) :]
    return Tokens(tuple(ids[:-1]), tuple(labels))


def _hold_out(sequences: list[Tokens], seed: int, limit: int) -> list[Tokens]:
    different = list(dict.fromkeys(sequences))
    if len(different) < 2:  # noqa: PLR2004 - one to learn, one to hold out
        return []
    count = min(max(1, len(different) // _HELD_OUT_SHARE), limit)
    chosen = generator("held out", seed).permutation(len(different))[:count]
    return [different[index] for index in sorted(chosen.tolist())]


def generator(*names: object) -> np.random.Generator:
    """Random numbers for these names: equal names give equal numbers, in every process."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16])))
