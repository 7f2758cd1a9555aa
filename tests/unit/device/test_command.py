"""What a device is started with."""

from pathlib import Path

import pytest

from iotsplit.errors import UsageError
from iotsplit_device.command import load_tokenizer


@pytest.mark.parametrize("files", [{}, {"tokenizer.json": '{"a":'}])
def test_a_model_without_a_tokenizer_is_told_in_one_line(tmp_path: Path, files: dict[str, str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=f"{tmp_path} holds no tokenizer") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
