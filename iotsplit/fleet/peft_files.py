"""Adapter directories of PEFT, written without torch or numpy: sections of safetensors become one file."""

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from iotsplit.errors import MalformedMessageError
from iotsplit.runtime.files import replace

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_LENGTH = struct.Struct("<Q")
_ALIGNMENT = 8


def merge(bodies: Iterable[bytes]) -> bytes:
    """One safetensors body with the tensors of several; of a name that comes twice the first one stays.

    Raises:
        MalformedMessageError: one of them is no safetensors body.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    pieces: list[bytes] = []
    end = 0
    for body in bodies:
        entries, data = _read(body)
        for name, entry in entries.items():
            if name in header:
                continue
            begin, stop = entry.data_offsets
            pieces.append(data[begin:stop])
            place = (end, end + stop - begin)
            header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": place}
            end += stop - begin
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    return _LENGTH.pack(len(encoded)) + encoded + b"".join(pieces)


def write(directory: Path, sections: Iterable[bytes], config: Mapping[str, Any]) -> None:
    """Write an adapter directory for ``PeftModel.from_pretrained``; each file is replaced as a whole."""
    directory.mkdir(parents=True, exist_ok=True)
    replace(directory / CONFIG, json.dumps(config, indent=2, sort_keys=True).encode() + b"\n")
    replace(directory / WEIGHTS, merge(sections))


class _Entry(msgspec.Struct):
    """Where a tensor lies in the data behind the header, in bytes."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def _read(body: bytes) -> tuple[dict[str, _Entry], bytes]:
    try:
        (length,) = _LENGTH.unpack_from(body)
        header = msgspec.json.decode(body[_LENGTH.size : _LENGTH.size + length], type=dict[str, msgspec.Raw])
        header.pop("__metadata__", None)
        entries = {name: msgspec.json.decode(entry, type=_Entry) for name, entry in header.items()}
    except (struct.error, msgspec.DecodeError, RecursionError) as error:
        raise MalformedMessageError(f"an adapter section is not safetensors: {error}") from None
    data = body[_LENGTH.size + length :]
    for name, entry in entries.items():
        begin, stop = entry.data_offsets
        if not 0 <= begin <= stop <= len(data):
            raise MalformedMessageError(f"tensor {name} of an adapter section lies outside its data")
    return entries, data
