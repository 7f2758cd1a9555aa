"""LoRA on a part, under the names that PEFT gives it on the whole model.

Whatever leaves this module is named as in an ``adapter_model.safetensors`` of the whole model, for
instance ``base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight``, whichever part it is from.
"""

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors import SafetensorError
from safetensors.torch import load, save, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from iotsplit.errors import NotFiniteError, TensorRefusedError, UsageError
from iotsplit.plan import PartPlan
from iotsplit.settings import Optimizer, TrainingSettings
from iotsplit.tensors import frozen, skeleton
from iotsplit.tensors.bounds import BETAS
from iotsplit.tensors.parts import Part
from iotsplit.tensors.skeleton import Skeleton

ALL_LINEAR = "all-linear"

_PREFIX = "base_model.model."
_ADAPTER = "default"
_MATRICES = ("lora_A", "lora_B")


def inject(part: Part, settings: TrainingSettings) -> None:
    """Put LoRA matrices on a part's layers, and keep what is frozen of them in the fleet's base type.

    Values of the LoRA matrices are undefined until `attach`.

    Raises:
        UsageError: the target modules match nothing, or something outside of the layers.
    """
    if not part.plan.layers:
        part.requires_grad_(False)
        return  # of the head nothing is trained
    local = [name for name, _ in _wanted(part.layers, settings.target_modules)]
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # any number scales
        target_modules=local,
        fan_in_fan_out=_is_transposed(part.layers, local),
    )
    inject_adapter_in_model(config, part.layers)
    for name, parameter in part.named_parameters():
        parameter.requires_grad_(any(f".{matrix}." in name for matrix in _MATRICES))
    frozen.shrink(part.layers, settings.base_dtype)  # PEFT would give its matrices the type of the frozen one


def parameters(part: Part) -> dict[str, nn.Parameter]:
    """The part's LoRA parameters by global name, sorted."""
    return {name: module.get_parameter("weight") for name, module in sorted(_slots(part).items())}


def fresh(tensors: Mapping[str, torch.Tensor]) -> dict[str, nn.Parameter]:
    """Parameters of one session's own, with the values of `tensors`."""
    return {name: nn.Parameter(tensors[name].detach().clone()) for name in sorted(tensors)}


def attach(part: Part, own: Mapping[str, nn.Parameter]) -> None:
    """Make the part compute with a session's parameters.

    Only references change hands, so graphs of other sessions that wait for a gradient stay valid.

    Raises:
        TensorRefusedError: not the part's names or shapes.
    """
    slots = _slots(part)
    if own.keys() != slots.keys():
        raise TensorRefusedError(_difference(own.keys(), slots.keys()))
    for name, module in slots.items():
        if module.get_parameter("weight").shape != own[name].shape:
            raise TensorRefusedError(f"{name} has shape {tuple(own[name].shape)}")
        module.register_parameter("weight", own[name])


def initial(directory: Path, settings: TrainingSettings) -> dict[str, torch.Tensor]:
    """Version 0 of the whole model's adapter: A uniform as PEFT draws it, B zero, both float32.

    Each matrix has a generator of its own, seeded by the settings' seed and its name: the values
    depend on nothing else. No weight of the model is loaded.

    Raises:
        UsageError: the target modules match nothing, or something outside of the layers.
    """
    tensors = {}
    for name, shape in shapes(directory, settings).items():
        tensor = torch.zeros(shape)
        if ".lora_A." in name:
            seed = hashlib.sha256(f"{settings.seed} {name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(seed[:8], "big") >> 1)
            nn.init.kaiming_uniform_(tensor, a=math.sqrt(5), generator=generator)
        tensors[name] = tensor
    return tensors


def shapes(directory: Path, settings: TrainingSettings) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the whole model's LoRA matrices, sorted by name.

    Raises:
        UsageError: the target modules match nothing, or something outside of the layers.
    """
    whole = skeleton.build(directory)
    found: dict[str, tuple[int, ...]] = {}
    for name, module in _checked_targets(whole, settings):
        inner, outer = _sizes(module)
        stem = f"{_PREFIX}{whole.layers}.{name}"
        found[f"{stem}.lora_A.weight"] = (settings.rank, inner)
        found[f"{stem}.lora_B.weight"] = (outer, settings.rank)
    return dict(sorted(found.items()))


def to_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Tensors as safetensors; equal tensors give equal bytes."""
    data: bytes = save({name: tensors[name].detach().contiguous() for name in sorted(tensors)})
    return data


def from_bytes(
    data: bytes, like: Mapping[str, Sequence[int]], *, dtypes: Mapping[str, torch.dtype] | None = None
) -> dict[str, torch.Tensor]:
    """Read safetensors from the bus.

    Args:
        data: what came.
        like: names and shapes that must be in it.
        dtypes: of those that are not float32.

    Raises:
        TensorRefusedError: not safetensors, or other names, shapes or types.
        NotFiniteError: a value is NaN or infinite.
    """
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise TensorRefusedError(f"not safetensors: {error}") from None
    if tensors.keys() != like.keys():
        raise TensorRefusedError(_difference(tensors.keys(), like.keys()))
    for name, tensor in tensors.items():
        dtype = (dtypes or {}).get(name, torch.float32)
        if tensor.dtype != dtype or tuple(tensor.shape) != tuple(like[name]):
            raise TensorRefusedError(f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}")
        if not torch.isfinite(tensor).all():
            raise NotFiniteError(name)
    return dict(sorted(tensors.items()))


def select(tensors: Mapping[str, torch.Tensor], plan: PartPlan) -> dict[str, torch.Tensor]:
    """Those tensors of a whole adapter that belong to the layers of a part."""
    return {name: tensors[name] for name in sorted(tensors) if _layer(name) in plan.layers}


def peft_config(directory: Path, settings: TrainingSettings, *, base: str = "") -> dict[str, Any]:
    """The ``adapter_config.json`` of the fleet's adapters.

    Args:
        directory: of the model, or a part of it.
        settings: the fleet's.
        base: what the base model is called in it; default: the directory's name.
    """
    whole = skeleton.build(directory)
    targets = _checked_targets(whole, settings)
    suffixes = {name.partition(".")[2] for name, _ in targets}
    explicit = ALL_LINEAR not in settings.target_modules
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # any number scales
        target_modules=list(settings.target_modules) if explicit else sorted(suffixes),
        fan_in_fan_out=any(isinstance(module, Conv1D) for _, module in targets),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base or directory.name,
        inference_mode=True,
    )
    untyped: Any = config
    plain: dict[str, Any] = json.loads(json.dumps(untyped.to_dict(), default=_plain))
    return plain


def export(directory: Path, tensors: Mapping[str, torch.Tensor], config: dict[str, Any]) -> None:
    """Write an adapter directory that ``PeftModel.from_pretrained`` reads, whole or not at all.

    An adapter that is already there is replaced.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (draft / "adapter_config.json").write_text(text)
        content = {name: tensors[name].detach().contiguous() for name in sorted(tensors)}
        save_file(content, draft / "adapter_model.safetensors", metadata={"format": "pt"})
        draft.chmod(0o755)
        if directory.is_dir():
            shutil.rmtree(directory)
        draft.replace(directory)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def make_optimizer(own: Mapping[str, nn.Parameter], settings: TrainingSettings) -> torch.optim.Optimizer:
    """The fleet's optimizer over a session's parameters, in the order of their names."""
    ordered: list[dict[str, Any]] = [{"params": [own[name] for name in sorted(own)]}]  # there may be none
    if settings.optimizer is Optimizer.SGD:
        return torch.optim.SGD(ordered, lr=settings.learning_rate)
    return torch.optim.AdamW(ordered, lr=settings.learning_rate, betas=BETAS, weight_decay=0.0)


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def _slots(part: Part) -> dict[str, nn.Module]:
    """The modules that hold the part's LoRA matrices, by the global name of their weight."""
    slots: dict[str, nn.Module] = {}
    for name, module in part.layers.named_modules():
        stem, _, matrix = name.removesuffix(f".{_ADAPTER}").rpartition(".")
        if matrix in _MATRICES and name.endswith(f".{_ADAPTER}"):
            local, _, rest = stem.partition(".")
            layer = int(local) + part.plan.first
            slots[f"{_PREFIX}{part.layers_name}.{layer}.{rest}.{matrix}.weight"] = module
    return slots


def _targets(layers: nn.Module, wanted: Sequence[str]) -> list[tuple[str, nn.Module]]:
    """Linear modules of the layers that are wanted, by name from the list of layers on."""
    every = ALL_LINEAR in wanted
    return [
        (name, module)
        for name, module in layers.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and (every or _matches(name, wanted))
    ]


def _matches(name: str, wanted: Sequence[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in wanted)


def _wanted(layers: nn.Module, wanted: Sequence[str]) -> list[tuple[str, nn.Module]]:
    """As `_targets`; every one of the wanted names must be there."""
    targets = _targets(layers, wanted)
    for target in wanted:
        if target != ALL_LINEAR and not any(_matches(name, [target]) for name, _ in targets):
            raise _not_adaptable(target, layers)
    return targets


def _checked_targets(whole: Skeleton, settings: TrainingSettings) -> list[tuple[str, nn.Module]]:
    """The targets in the whole model, none of which may be outside of its layers."""
    layers = whole.causal.get_submodule(whole.layers)
    for name in (whole.embedding, whole.head, *whole.positions):
        if _matches(name, settings.target_modules):
            raise _not_adaptable(name, layers)
    return _wanted(layers, settings.target_modules)


def _not_adaptable(target: str, layers: nn.Module) -> UsageError:
    linear = {name.rpartition(".")[2] for name, _ in _targets(layers, [ALL_LINEAR])}
    return UsageError(
        f"target_modules {target}: not a linear module of the decoder's layers",
        fix=f"use {ALL_LINEAR} or some of {', '.join(sorted(linear))}",
    )


def _is_transposed(layers: nn.Module, names: Sequence[str]) -> bool:
    return any(isinstance(layers.get_submodule(name), Conv1D) for name in names)


def _sizes(module: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer."""
    outer, inner = module.get_parameter("weight").shape
    # GPT-2 keeps its matrices the other way round.
    return (outer, inner) if isinstance(module, Conv1D) else (inner, outer)


def _layer(name: str) -> int:
    """The global layer that a parameter belongs to: the first number among its words."""
    return next(int(word) for word in name.split(".") if word.isdigit())


def _difference(have: Any, want: Any) -> str:
    missing, extra = sorted(set(want) - set(have)), sorted(set(have) - set(want))
    return f"{len(missing)} names missing {missing[:1]}, {len(extra)} unknown {extra[:1]}"
