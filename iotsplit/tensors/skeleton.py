"""A model without weights: where its layers, embedding, final norm and head are.

The skeleton is the architecture's own class, so that no modelling code is ours. It is built for *all*
layers, which costs no memory for their parameters (they are on the meta device), and cut afterwards:
so every layer knows its global index, on which attention type, rotary base or scaling may depend.
"""

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights

from iotsplit.errors import UsageError
from iotsplit.plan import PartPlan
from iotsplit.tensors.models import read_config

_FINAL_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "norm_f")
_POSITIONS = ("wpe", "embed_positions")

_patching = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """The pieces of a causal language model; names are relative to ``causal``.

    Args:
        causal: the whole model, embedding to logits.
        stack_name: where its decoder is, the module from embedding to final norm.
        layers: name of the list of layers, such as `model.layers`.
        norm: name of the final norm.
        embedding: name of the token embedding.
        head: name of the output projection.
        positions: names of learned position embeddings.
    """

    causal: nn.Module
    stack_name: str
    layers: str
    norm: str
    embedding: str
    head: str
    positions: tuple[str, ...]

    @property
    def config(self) -> Any:
        """The whole model's configuration."""
        return self.causal.config

    @property
    def stack(self) -> Any:
        """The decoder: holds embedding, layers and final norm."""
        return self.causal.get_submodule(self.stack_name)

    def keys_of(self, plan: PartPlan) -> list[str]:
        """Names of the tensors (parameters and stored buffers) of a part."""
        places = [f"{self.layers}.{layer}." for layer in plan.layers]
        if plan.embedding:
            places += [f"{name}." for name in (self.embedding, *self.positions)]
        if plan.head:
            places += [f"{self.norm}.", f"{self.head}."]
        return [key for key in self.causal.state_dict() if key.startswith(tuple(places))]

    def keep(self, first: int, end: int) -> None:
        """Drop every layer but ``[first, end)``."""
        kept = list(self.causal.get_submodule(self.layers).children())[first:end]
        # The decoder's loop walks its own configuration; the layers keep the one with all layers.
        self.stack.config = cut_config(self.config, first, end)
        replace(self.causal, self.layers, nn.ModuleList(kept))


def build(directory: Path) -> Skeleton:
    """Build the skeleton of the model in a directory.

    Raises:
        UsageError: an architecture that cannot be cut.
    """
    config = read_config(directory)
    with _parameters_on_meta(), no_init_weights():  # there is nothing to draw numbers for
        auto: Any = AutoModelForCausalLM  # its from_config is untyped
        causal = auto.from_config(config, dtype=torch.float32)
    causal.requires_grad_(requires_grad=False)
    causal.eval()
    return _find(causal, int(config.num_hidden_layers))


def replace(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where ``name`` is in ``root``."""
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module)


def cut_config(config: Any, first: int, end: int) -> Any:
    """A copy of a configuration for layers ``[first, end)``.

    Of the per-layer lists the decoder's loop reads only the attention types.
    """
    cut = copy.deepcopy(config)
    cut.num_hidden_layers = end - first
    if getattr(config, "layer_types", None) is not None:
        cut.layer_types = config.layer_types[first:end]
    return cut


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Create parameters without memory, but buffers (rotary frequencies, scales) with their values."""
    register: Any = nn.Module.register_parameter

    def register_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None:
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(module, name, param)

    with _patching:
        _set_register(register_meta)
        try:
            yield
        finally:
            _set_register(register)


def _set_register(method: Any) -> None:
    nn.Module.register_parameter = method  # type: ignore[method-assign]  # torch has no hook for it


def _find(causal: Any, total: int) -> Skeleton:
    names = {id(module): name for name, module in causal.named_modules()}
    layers = [
        name
        for name, module in causal.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == total and name.count(".") <= 2  # noqa: PLR2004 - deeper lists are inside of layers
    ]
    if not layers:
        raise _unknown(causal, "no list of decoder layers")
    stack_name = layers[0].rpartition(".")[0]
    stack = causal.get_submodule(stack_name)
    norms = [name for name in _FINAL_NORMS if getattr(stack, name, None) is not None]
    if len(norms) != 1:
        raise _unknown(causal, "no final norm")
    positions = tuple(f"{stack_name}.{name}" for name in _POSITIONS if hasattr(stack, name))
    skeleton = Skeleton(
        causal=causal,
        stack_name=stack_name,
        layers=layers[0],
        norm=f"{stack_name}.{norms[0]}",
        embedding=names[id(causal.get_input_embeddings())],
        head=names[id(causal.get_output_embeddings())],
        positions=positions,
    )
    _check_complete(skeleton)
    return skeleton


def _check_complete(skeleton: Skeleton) -> None:
    """Refuse parameters of which nobody knows to which tier they belong."""
    places = (skeleton.layers, skeleton.norm, skeleton.embedding, skeleton.head)
    known = tuple(f"{place}." for place in (*places, *skeleton.positions))
    for name, _ in skeleton.causal.named_parameters():
        if not name.startswith(known):
            raise _unknown(skeleton.causal, f"parameter {name}")


def _unknown(causal: nn.Module, reason: str) -> UsageError:
    return UsageError(
        f"{type(causal).__name__} cannot be cut into parts: {reason}",
        fix="use an architecture such as llama, qwen3, gemma3 or gpt2",
    )
