"""Tensors of a tape as files that numpy reads."""

import re
from pathlib import Path

from iotsplit.errors import UsageError
from iotsplit.runtime.files import writing
from iotsplit.tape.letters import Letter
from iotsplit.tape.numbers import Tensor, can_unpack

_ODD = re.compile(r"[^A-Za-z0-9_.-]")
FREE = "free space there or choose another --extract"


class Extraction:
    """Writes each tensor into a file of its own, and an update's parameters into one .safetensors.

    Args:
        directory: made here; has to be new or empty.

    Raises:
        UsageError: there is something in it, or numpy and torch are not installed.
    """

    def __init__(self, directory: Path) -> None:
        if not can_unpack():
            raise UsageError("--extract needs numpy and torch", fix="pip install 'iotsplit[device]'")
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise UsageError(f"{directory} is not empty", fix="choose another --extract, or remove it")
        self.files = 0
        self._directory = directory
        self._parameters: dict[str, object] = {}
        self._update: Letter | None = None
        with writing(directory, fix=FREE):
            directory.mkdir(parents=True, exist_ok=True)

    def take(self, letter: Letter, tensor: Tensor) -> None:
        """Write a tensor, or keep it for the file of its update."""
        if tensor.codec == "safetensors":
            if self._update is not letter:
                self.close()
            self._update = letter
            self._parameters[tensor.name] = tensor.values
            return
        if tensor.values is None:
            return
        import numpy as np  # noqa: PLC0415 - not part of the base

        with writing(self._directory, fix=FREE):
            np.save(self._directory / f"{self._name(letter)}.{tensor.name}.npy", tensor.values)

    def close(self) -> None:
        """Write what is kept."""
        if self._update is None:
            return
        import safetensors.numpy  # noqa: PLC0415 - not part of the base

        with writing(self._directory, fix=FREE):
            safetensors.numpy.save_file(
                self._parameters,  # type: ignore[arg-type]  # arrays of numpy, which is not part of the base
                self._directory / f"{self._name(self._update)}.safetensors",
            )
        self._parameters, self._update = {}, None

    def _name(self, letter: Letter) -> str:
        """Number, session, step, micro-batch, kind and way: unique in a tape, and sorted as it was said."""
        head = letter.head
        assert head is not None  # noqa: S101 - only frames have tensors
        self.files += 1
        way = f"{head.tier}-{head.to_tier}"
        words = (letter.session, f"s{head.step:05}", f"m{head.micro_batch:03}", letter.kind, way)
        return _ODD.sub("_", ".".join((f"{self.files:06}", *words)))
