"""What a device is started with."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from iotsplit.errors import UsageError
from iotsplit_device.command import Tokenizers, load_tokenizer


@pytest.mark.parametrize("files", [{}, {"tokenizer.json": '{"a":'}])
def test_a_model_without_a_tokenizer_is_told_in_one_line(tmp_path: Path, files: dict[str, str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=f"{tmp_path} holds no tokenizer") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_is_not_kept_and_comes_again_when_it_is_needed_again(tmp_path: Path) -> None:
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a"))).save_pretrained(tmp_path)
    tokenizers = Tokenizers(tmp_path)
    first = tokenizers.take()
    kept = weakref.ref(first)
    del first
    gc.collect()
    assert kept() is None
    assert tokenizers.take()("a").input_ids == [0]
