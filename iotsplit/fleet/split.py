"""``iotsplit split``: cut a model into a directory for each tier, so that a device gets only its part."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iotsplit.fleet.output import refuse_file
from iotsplit.options import CommonOptions, parse
from iotsplit.plan import Labels, cut_model
from iotsplit.runtime.files import writing

EXAMPLES = (
    "iotsplit split --model smollm2 --cut 4,15 --output parts",
    "iotsplit split --model ./my-model --cut 2,20 --labels device --output parts",
)


@dataclass(frozen=True, kw_only=True)
class SplitOptions(CommonOptions):
    """The model and its cut.

    Writes a directory for each tier, so that a board gets only its part.

    Args:
        model: Packaged name (smollm2), directory, .gguf file or hub id.
        cut: First layer of the edge and first layer of the cloud.
        labels: Where the loss will be computed; with device the head belongs to the device.
        output: Directory for the parts device, edge and cloud.
    """

    model: str
    cut: tuple[int, int]
    labels: Labels = Labels.CLOUD
    output: Path


def main(words: Sequence[str]) -> int:
    """Write a model's three parts."""
    options = parse(SplitOptions, words, name="iotsplit split", examples=EXAMPLES)
    from iotsplit.runtime.serve import cache_directory  # noqa: PLC0415 - keeps --help quick
    from iotsplit.tensors.models import describe, resolve  # noqa: PLC0415 - needs torch
    from iotsplit.tensors.parts import split  # noqa: PLC0415 - needs torch

    with writing(options.output):
        refuse_file(options.output)
        model = resolve(options.model, cache_directory())
        plans = cut_model(describe(model).layers, options.cut, options.labels)
        parts = split(model, options.cut, options.labels, options.output)
    rows: list[dict[str, Any]] = [
        {"tier": str(tier), "layers": str(plans[tier]), "path": str(path), "size_bytes": _size_bytes(path)}
        for tier, path in parts.items()
    ]
    if options.json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return 0
    for row in rows:
        size = f"{row['size_bytes'] / 1e6:.0f} MB"
        sys.stdout.write(f"{row['tier']:<8}layers {row['layers']:<16}{size:>9}  {row['path']}\n")
    return 0


def _size_bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
