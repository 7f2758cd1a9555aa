"""Turns what transformers reads (GGUF, pickled weights) into float32 safetensors."""

import contextlib
import functools
import importlib
import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from iotsplit.errors import UsageError


def write_float32(source: Path, target: Path) -> None:
    """Write config.json, safetensors in float32 and the tokenizer of a model.

    Args:
        source: a ``.gguf`` file, or a directory of pickled weights.
        target: an empty directory.

    Raises:
        UsageError: the source is damaged or of an unknown kind, or an extra is missing.
    """
    options: dict[str, Any] = {}
    if source.is_file():
        _need_gguf()
        options["gguf_file"] = source.name
    directory = source.parent if source.is_file() else source
    with _gguf_read_once() if options else contextlib.nullcontext():
        model, tokenizer = _load(directory, source, options)
    # What is saved is plain float32: loading must not look for a quantizer.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _load(directory: Path, source: Path, options: dict[str, Any]) -> tuple[Any, Any]:
    # Seconds to import, and a model that is already converted needs none of it.
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415
    from transformers.utils import logging  # noqa: PLC0415

    progress: Any = logging  # untyped
    progress.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # one of its bars is not switched off by the above
            model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **options)
            tokenizer = AutoTokenizer.from_pretrained(directory, **options)
    except Exception as error:
        # A damaged file shows in whatever way the reader of its format stumbles.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(
            f"{source} cannot be read as a language model ({reason})",
            fix="fetch it again, or name a decoder-only language model with its tokenizer",
        ) from error
    return model, tokenizer


@contextlib.contextmanager
def _gguf_read_once() -> Iterator[None]:
    """Let transformers find again what it has read of a file: it asks for all of it three times.

    It also makes the table of a model's names anew for each of its modules.
    """
    gguf = importlib.import_module("gguf")
    read = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, each in read.items():
        setattr(gguf, name, functools.cache(each))
    try:
        yield
    finally:
        for name, each in read.items():
            setattr(gguf, name, each)


def _need_gguf() -> None:
    if importlib.util.find_spec("gguf") is None or importlib.util.find_spec("accelerate") is None:
        raise UsageError("reading a .gguf file needs the gguf extra", fix="pip install 'iotsplit[gguf]'")
