"""What the fixtures of these tests hand out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

LAYERS = 6
VOCABULARY = 97
WIDTH = 32
CUT = (2, 4)


@dataclass(frozen=True, kw_only=True)
class TinyModel:
    """A saved random model and which modules its LoRA goes to."""

    architecture: str
    directory: Path
    targets: tuple[str, ...]

    def load(self) -> Any:
        auto: Any = AutoModelForCausalLM
        return auto.from_pretrained(self.directory).eval()


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Token ids, mask and next-token labels, each (batch, time), padded on the right."""

    ids: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor
