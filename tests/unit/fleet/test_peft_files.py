"""Adapter files written without torch are what safetensors reads."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from iotsplit.errors import MalformedMessageError
from iotsplit.fleet import peft_files

Arrays = dict[str, np.ndarray]

tensors = hnp.arrays(
    st.sampled_from([np.float32, np.float16]),
    hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=5),
    elements=st.floats(-8, 8, width=16),
)
sections = st.dictionaries(st.text("abc.0123", min_size=1, max_size=8), tensors, max_size=4)


@given(parts=st.lists(sections, max_size=3))
def test_the_union_holds_every_tensor_of_every_section(parts: list[Arrays]) -> None:
    merged = safetensors.numpy.load(peft_files.merge(safetensors.numpy.save(part) for part in parts))
    expected: Arrays = {}
    for part in parts:
        expected = {**part, **expected}
    assert merged.keys() == expected.keys()
    for name, tensor in expected.items():
        assert merged[name].dtype == tensor.dtype
        np.testing.assert_array_equal(merged[name], tensor)


def test_the_merged_file_says_that_it_is_of_torch() -> None:
    body = peft_files.merge([safetensors.numpy.save({"a": np.zeros(1)})])
    length = int.from_bytes(body[:8], "little")
    assert length % 8 == 0
    assert json.loads(body[8 : 8 + length])["__metadata__"] == {"format": "pt"}


def _whole() -> bytes:
    return safetensors.numpy.save({"a": np.ones(3, np.float32)})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"1234567",
        _whole()[:20],
        _whole()[:-1],
        b"\xff" * 16,
        _whole().replace(b"[0,12]", b"[12,0]"),
        _whole().replace(b"[0,12]", b"[-2,0]"),
        (2).to_bytes(8, "little") + b"[]",
        (7).to_bytes(8, "little") + b'{"a":1}',
    ],
)
def test_a_section_that_is_no_safetensors_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        peft_files.merge([body])


@given(body=st.binary(max_size=60))
def test_garbage_never_ends_in_another_error(body: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        peft_files.merge([body + b"x"])


def test_an_adapter_directory_holds_weights_and_configuration(tmp_path: Path) -> None:
    peft_files.write(tmp_path / "adapter", [_whole()], {"r": 8, "peft_type": "LORA"})
    names = {file.name for file in (tmp_path / "adapter").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 8
    assert "a" in safetensors.numpy.load_file(tmp_path / "adapter" / "adapter_model.safetensors")
