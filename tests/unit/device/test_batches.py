"""From records to batches: what is learnt, what is held out, and which step sees what."""

import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from iotsplit.datasets.records import Chat, ChatMessage, Pair, Record, Split, Text
from iotsplit.errors import UsageError
from iotsplit.tensors.tokenizers import opening
from iotsplit_device.batches import Batches, MicroBatch, pad, step_tokens
from iotsplit_device.tokens import NO_LOSS, Tokens, generator, prompt_ids, sequences_of, tokenize

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}|\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
FORGETFUL = "{{ messages|length }}{{ messages[-1].content }}{% if add_generation_prompt %}?{% endif %}"


def bytes_tokenizer(*, bos: bool = False, template: str | None = None) -> PreTrainedTokenizerFast:
    """A token for each byte; ``^`` begins a text, ``|`` ends it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    if bos:
        ends = [(letter, alphabet.index(letter)) for letter in "^|"]
        inner.post_processor = processors.TemplateProcessing("^ $A |", special_tokens=ends)
    made: PreTrainedTokenizerFast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call] # untyped there
        tokenizer_object=inner, bos_token="^", eos_token="|"
    )
    made.chat_template = template
    return made


PLAIN = bytes_tokenizer()


def written(ids: Iterable[int]) -> str:
    """The text of some ids."""
    return str(PLAIN.decode(list(ids)))


def shown(tokens: Tokens) -> tuple[str, str]:
    """The input, and what is learnt with a dot where nothing is."""
    learnt = "".join("." if n == NO_LOSS else written([n]) for n in tokens.labels)
    return written(tokens.ids), learnt


def only(record: Record, tokenizer: PreTrainedTokenizerFast = PLAIN, length: int = 40) -> tuple[str, str]:
    (tokens,) = sequences_of(record, tokenizer, length)
    return shown(tokens)


def notes(count: int, split: Split | None = None) -> list[Record]:
    return [Pair(f"{split} note {n}", f"ticket {n}", split) for n in range(count)]


def batches(count: int = 10, **changes: Any) -> Batches:
    train, held_out = tokenize(notes(count) + notes(3, "eval"), PLAIN, sequence_length=32)
    chosen: dict[str, Any] = {"seed": 1, "device": "press", "batch_size": 4, "micro_batches": 2} | changes
    return Batches(train, held_out, **chosen)


def rows(micro_batches: Iterable[MicroBatch]) -> list[str]:
    """The sequences of micro-batches, without padding."""
    return [
        written(ids[: int(mask.sum())].tolist())
        for batch in micro_batches
        for ids, mask in zip(batch.ids, batch.mask, strict=True)
    ]


# --- records to sequences


def test_a_text_is_learnt_whole() -> None:
    assert only(Text("hello")) == ("hell", "ello")


def test_a_pair_learns_its_completion_and_the_end() -> None:
    assert only(Pair("ab:", " cd")) == ("ab: cd", ".. cd|")


def test_a_pair_that_touches_is_put_on_two_lines() -> None:
    assert only(Pair("ab", "cd")) == ("ab\ncd", "..cd|")


def test_a_long_prompt_loses_its_beginning() -> None:
    assert only(Pair("0123456789:", " cd"), length=6) == ("89: cd", ".. cd|")


def test_of_a_long_completion_the_beginning_is_learnt() -> None:
    assert only(Pair("ab:", " cdefgh"), length=4) == (": cd", " cde")


def test_an_empty_prompt_learns_from_the_second_token() -> None:
    assert only(Pair("", "cde")) == ("cde", "de|")


def test_the_opening_of_a_tokenizer_is_kept_and_its_end_is_not_doubled() -> None:
    tokenizer = bytes_tokenizer(bos=True)
    assert written(opening(tokenizer)) == "^"
    assert only(Text("hello"), tokenizer) == ("^hell", "hello")
    assert only(Pair("0123456789:", " cd"), tokenizer, 6) == ("^9: cd", ".. cd|")


def test_a_tokenizer_without_an_opening_adds_nothing() -> None:
    assert opening(PLAIN) == []


def test_the_model_is_asked_with_the_prompt_it_learnt() -> None:
    pair = Pair("ab", "cd")
    (tokens,) = sequences_of(pair, PLAIN, 40)
    asked = prompt_ids(pair, PLAIN)
    assert tuple(asked) == tokens.ids[: len(asked)]
    assert written(asked) == "ab\n"


CHAT = Chat((ChatMessage("user", "hi"), ChatMessage("assistant", "yo")))


def test_a_chat_follows_the_template_of_the_tokenizer() -> None:
    said, learnt = only(CHAT, bytes_tokenizer(template=TEMPLATE))
    assert said == "<user>hi|\n<assistant>yo"
    assert learnt.lstrip(".") == "yo|"


def test_a_template_that_opens_itself_does_not_open_twice() -> None:
    said, _ = only(CHAT, bytes_tokenizer(bos=True, template="^" + TEMPLATE))
    assert said.startswith("^<user>")


def test_a_template_that_rewrites_the_prompt_still_learns_the_answer() -> None:
    said, learnt = only(CHAT, bytes_tokenizer(template=FORGETFUL))
    assert (said, learnt.lstrip(".")) == ("1hi?yo", "yo|")


def test_without_a_template_a_chat_is_plain_text() -> None:
    said, learnt = only(CHAT)
    assert said == "user: hi\nassistant: yo"
    assert learnt.lstrip(".") == " yo|"


def test_a_chat_that_nobody_has_begun_is_learnt_as_a_whole() -> None:
    chat = Chat((ChatMessage("assistant", "yo"),))
    (tokens,) = sequences_of(chat, bytes_tokenizer(template=TEMPLATE), 40)
    assert shown(tokens) == ("<assistant>yo", "assistant>yo|")


def test_a_chat_that_the_template_refuses_names_the_reason() -> None:
    chat = Chat((ChatMessage("tool", "x"), ChatMessage("assistant", "y")))
    with pytest.raises(UsageError, match="no tools"):
        sequences_of(chat, bytes_tokenizer(template=TEMPLATE), 40)


@given(length=st.integers(2, 40), size=st.integers(0, 200))
def test_windows_learn_every_token_of_a_text_once(length: int, size: int) -> None:
    ids = PLAIN(text := "".join(itertools.islice(itertools.cycle("abcdefg"), size))).input_ids
    windows = sequences_of(Text(text), PLAIN, length)
    learnt = [label for tokens in windows for label in tokens.labels]
    assert learnt == ids[1 : len(learnt) + 1]
    assert 0 <= max(len(ids) - 1, 0) - len(learnt) < 8
    assert all(len(tokens.ids) == len(tokens.labels) <= length for tokens in windows)


@given(prompt=st.text(max_size=30), completion=st.text(max_size=30), length=st.integers(2, 40))
def test_a_pair_always_fits_and_always_has_something_to_learn(
    prompt: str, completion: str, length: int
) -> None:
    (tokens,) = sequences_of(Pair(f"{prompt}:", completion), PLAIN, length)
    assert len(tokens.ids) == len(tokens.labels) <= length
    assert tokens.loss_tokens


def test_a_short_tail_is_dropped_but_a_short_text_is_not() -> None:
    assert [len(t.ids) for t in sequences_of(Text("x" * 28), PLAIN, 20)] == [20]
    assert [len(t.ids) for t in sequences_of(Text("x" * 29), PLAIN, 20)] == [20, 8]
    assert [len(t.ids) for t in sequences_of(Text("x" * 5), PLAIN, 20)] == [4]


# --- what is held out


def test_records_that_say_so_are_held_out_all_of_them() -> None:
    train, held_out = tokenize(notes(5) + notes(30, "eval"), PLAIN, sequence_length=32)
    assert (len(train), len(held_out)) == (5, 30)
    assert all(shown(tokens)[0].startswith("eval") for tokens in held_out)


@pytest.mark.parametrize(("count", "expected"), [(2, 1), (9, 1), (50, 5), (400, 16)])
def test_else_a_tenth_is_held_out(count: int, expected: int) -> None:
    train, held_out = tokenize(notes(count), PLAIN, sequence_length=32)
    assert (len(train), len(held_out)) == (count - expected, expected)
    assert not set(train) & set(held_out)


def test_the_seed_chooses_what_is_held_out() -> None:
    chosen = [tokenize(notes(50), PLAIN, sequence_length=32, seed=seed)[1] for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_repeated_record_is_not_both_trained_on_and_held_out() -> None:
    train, held_out = tokenize(notes(20) * 3, PLAIN, sequence_length=32)
    assert not set(train) & set(held_out)
    assert (len(train), len(held_out)) == (54, 2)


def test_records_that_are_all_alike_leave_nothing_to_score() -> None:
    with pytest.raises(UsageError, match="5 records are all alike"):
        tokenize(notes(1) * 5, PLAIN, sequence_length=32)


def test_a_held_out_record_that_is_also_trained_on_leaves_training() -> None:
    same = Pair("a", "b")
    train, held_out = tokenize([same, Pair("c", "d"), Pair("a", "b", "eval")], PLAIN, sequence_length=32)
    assert (len(train), len(held_out)) == (1, 1)


def test_records_without_anything_to_learn_are_left_out_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    train, _ = tokenize([*notes(5), Text(""), Text("x")], PLAIN, sequence_length=32)
    assert len(train) == 4
    assert "count=2" in capsys.readouterr().out


def test_a_pair_without_anything_to_learn_is_left_out() -> None:
    endless = bytes_tokenizer()
    endless.eos_token = None
    train, _ = tokenize([*notes(5), Pair("a", "")], endless, sequence_length=32)
    assert len(train) == 4


def test_too_few_sequences_are_refused_with_the_numbers() -> None:
    with pytest.raises(UsageError, match=r"3 records give 2 .*1 held out.*batch_size 4"):
        tokenize(notes(3), PLAIN, sequence_length=32, batch_size=4)
    with pytest.raises(UsageError, match="0 training sequences"):
        tokenize([Text("")], PLAIN, sequence_length=32)


# --- batches


def test_padding_is_on_the_right_and_not_learnt() -> None:
    batch = pad([Tokens((1, 2, 3), (2, NO_LOSS, 4)), Tokens((7,), (8,))])
    assert batch.ids.tolist() == [[1, 2, 3], [7, 0, 0]]
    assert batch.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.labels.tolist() == [[2, -100, 4], [8, -100, -100]]
    assert batch.tokens == 3
    assert {batch.ids.dtype, batch.mask.dtype, batch.labels.dtype} == {torch.int64}


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 4])
def test_a_step_is_cut_into_as_many_micro_batches_as_agreed(micro_batches: int) -> None:
    made = batches(micro_batches=micro_batches).step(1, 0, local_steps=5)
    assert len(made) == micro_batches
    assert sum(len(batch.ids) for batch in made) == 4
    whole = batches(micro_batches=1).step(1, 0, local_steps=5)
    assert rows(made) == rows(whole)
    assert step_tokens(made) == whole[0].tokens > 0


def test_an_epoch_sees_every_sequence_once_across_rounds() -> None:
    data = batches(count=12)
    seen = [row for r in (1, 2, 3) for row in rows(data.step(r, 0, local_steps=1))]
    assert len(set(seen)) == 12
    again = [row for r in (4, 5, 6) for row in rows(data.step(r, 0, local_steps=1))]
    assert set(again) == set(seen)
    assert again != seen


def test_steps_go_on_where_the_round_before_ended() -> None:
    data = batches()
    by_rounds = [rows(data.step(r, s, local_steps=2)) for r in (1, 2, 3) for s in (0, 1)]
    assert by_rounds == [rows(data.step(1, s, local_steps=6)) for s in range(6)]


@settings(max_examples=15)
@given(order=st.permutations(list(range(8))))
def test_a_step_does_not_depend_on_what_was_asked_before(order: list[int]) -> None:
    data = batches()
    asked = {step: rows(data.step(1, step, local_steps=8)) for step in order}
    assert asked == {step: rows(batches().step(1, step, local_steps=8)) for step in range(8)}


@pytest.mark.parametrize("change", [{"seed": 2}, {"device": "pump"}])
def test_seed_and_device_decide_the_order(change: dict[str, Any]) -> None:
    def first(data: Batches) -> list[str]:
        return [row for step in range(3) for row in rows(data.step(1, step, local_steps=9))]

    assert first(batches(count=30)) != first(batches(count=30, **change))


@pytest.mark.slow
def test_the_order_is_the_same_in_another_process() -> None:
    code = (  # with a hash seed of its own, so the built-in hash() would give itself away
        "from iotsplit_device.tokens import generator;"
        "print(generator('batches', 1, 'press', 0).permutation(9).tolist())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = generator("batches", 1, "press", 0).permutation(9).tolist()
    assert ran.stdout.strip() == str(here)


def test_evaluation_is_all_that_is_held_out_in_batches() -> None:
    made = batches(batch_size=2, micro_batches=1).evaluation()
    assert [len(batch.ids) for batch in made] == [2, 1]
    assert Counter(row.split(" ")[0] for row in rows(made)) == {"eval": 3}


def test_the_summary_counts_and_never_quotes() -> None:
    summary = batches().summary()
    assert (summary.train_sequences, summary.eval_sequences) == (10, 3)
    assert len(summary.fingerprint) == 64


def test_the_fingerprint_changes_with_any_token_label_or_split() -> None:
    a, b = Tokens((1, 2), (2, 3)), Tokens((4,), (5,))
    kinds = [([a], [b]), ([b], [a]), ([a, b], []), ([a], [])]
    kinds += [([Tokens((1, 2), (2, 4))], [b]), ([Tokens((9, 2), (2, 3))], [b])]
    prints = [Batches(*kind, seed=0, device="d", batch_size=1, micro_batches=1).fingerprint() for kind in kinds]
    assert len(set(prints)) == len(kinds)
    assert batches().fingerprint() == batches(seed=9, device="x").fingerprint()


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(UsageError, match="press has 3 training sequences, fewer than batch_size 4"):
        batches(count=3)


@pytest.mark.parametrize("micro_batches", [0, 5])
def test_a_batch_that_cannot_be_cut_so_is_refused(micro_batches: int) -> None:
    with pytest.raises(UsageError, match=f"micro_batches {micro_batches}"):
        batches(micro_batches=micro_batches)
