"""One tier's part of a model: its layers in the architecture's own code, and nothing else in memory."""

import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from iotsplit.errors import MismatchError, UsageError
from iotsplit.plan import Labels, PartPlan, Tier, cut_model
from iotsplit.tensors import loss, skeleton
from iotsplit.tensors.embedding import RowsOfFile, can_stay
from iotsplit.tensors.models import PART_FILE, ModelInfo, describe
from iotsplit.tensors.skeleton import Skeleton
from iotsplit.tensors.weights import Weights

# Files beside the weights that make a tokenizer, as the libraries of the last years name them.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)

HEAD_OF_NEOX = "embed_out.weight"
"""What files of GPT-NeoX call the head, whatever transformers calls it."""


class Part(nn.Module):
    """The frozen layers ``plan.layers`` of a model, with embedding and head if the plan says so.

    Attributes:
        plan: which layers these are.
        width: size of a hidden state.
        vocabulary: number of token ids.
        layers_name: where the layers are in the whole model, such as `model.layers`.
    """

    def __init__(self, plan: PartPlan, whole: Skeleton) -> None:
        super().__init__()
        self.plan = plan
        self.width = int(whole.config.hidden_size)
        self.vocabulary = int(whole.config.vocab_size)
        self.layers_name = whole.layers
        norm = whole.causal.get_submodule(whole.norm)
        whole.keep(plan.first, plan.end)
        skeleton.replace(whole.causal, whole.norm, nn.Identity())
        if not plan.embedding:
            skeleton.replace(whole.causal, whole.embedding, nn.Identity())
            for name in whole.positions:
                skeleton.replace(whole.causal, name, _NoPositions())
        self._decoder = whole.stack
        self._tail: nn.Module | None = None
        if plan.head:
            # The model's own forward does what its architecture does to logits (soft caps, scales).
            skeleton.replace(whole.causal, whole.stack_name, _FinalNorm(norm))
            self._tail = whole.causal

    @property
    def layers(self) -> nn.ModuleList:
        """The part's layers, global index `plan.first` onwards."""
        layers: nn.ModuleList = getattr(self._decoder, self.layers_name.rpartition(".")[2])
        return layers

    def put_layers(self, layers: nn.ModuleList) -> None:
        """Make the decoder run other layers; a property's setter would be bypassed by `nn.Module`."""
        setattr(self._decoder, self.layers_name.rpartition(".")[2], layers)

    def forward(self, inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Run the part's layers.

        Args:
            inputs: (batch, time) token ids if the part owns the embedding, else (batch, time, width).
            mask: (batch, time) of 0 and 1, padded on the right.

        Returns:
            (batch, time, width), before the final norm.
        """
        key = "input_ids" if self.plan.embedding else "inputs_embeds"
        time = torch.arange(inputs.shape[1]).unsqueeze(0)  # (1, time)
        outputs = self._decoder(
            **{key: inputs}, attention_mask=mask.to(torch.int64), position_ids=time, use_cache=False
        )
        hidden: torch.Tensor = outputs.last_hidden_state
        return hidden

    def loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Summed cross entropy of the last layer's output and the number of labelled tokens.

        Args:
            hidden: (batch, time, width), before the final norm.
            labels: (batch, time), next-token ids, -100 where there is no loss.

        Returns:
            A float64 scalar, differentiable by `hidden`, and the number of tokens.
        """
        return loss.loss_sum(hidden, labels, self.logits, self.vocabulary)

    def score(self, hidden: torch.Tensor, labels: torch.Tensor) -> tuple[float, int, int, int]:
        """Summed loss, tokens, sequences that are right throughout, sequences that have labels."""
        return loss.score(hidden, labels, self.logits, self.vocabulary)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Final norm and head: (positions, width) to (positions, vocabulary), float32."""
        if self._tail is None:
            raise UsageError("this part owns no head", fix="compute the loss where the head is")
        logits: torch.Tensor = self._tail(inputs_embeds=hidden.unsqueeze(0)).logits
        return logits.squeeze(0).float()


class _FinalNorm(nn.Module):
    """Stands for the decoder inside of the whole model where only its final norm is left."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(
        self, *_: Any, inputs_embeds: torch.Tensor, **__: Any
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.norm(inputs_embeds))


class _NoPositions(nn.Module):
    """Stands for learned positions that the first part has already added."""

    def forward(self, *_: Any, **__: Any) -> torch.Tensor:
        return torch.zeros(())


def load_part(directory: Path, plan: PartPlan) -> Part:
    """Load a part: frozen, in float32, its weights memory-mapped, nothing of the other layers.

    Args:
        directory: of a whole model, or a part directory that `split` wrote.
        plan: what to load.

    Raises:
        MismatchError: the directory is a part with other layers.
        UsageError: the model cannot be cut, or tensors are missing.
    """
    _check_part_directory(directory, plan)
    whole = skeleton.build(directory)
    weights = Weights(directory)
    names = _file_names(whole, plan, weights)
    stays = _embedding_that_stays(whole, plan, names, weights)
    for key, tensor in weights.load(names):
        _assign(whole.causal, key, tensor if key == stays else tensor.to(torch.float32))
    if stays:
        rows = RowsOfFile(whole.causal.get_parameter(stays), weights.entries[names[stays]])
        skeleton.replace(whole.causal, whole.embedding, rows)
    if plan.head and plan.embedding and whole.config.tie_word_embeddings:
        table = whole.causal.get_submodule(whole.embedding).weight
        whole.causal.get_submodule(whole.head).register_parameter("weight", cast(nn.Parameter, table))
    part = Part(plan, whole).eval()
    if not plan.embedding:
        _check_transparent(part)
    return part


def sizes(part: nn.Module) -> tuple[int, int]:
    """Numbers of frozen and of trainable parameters."""
    frozen = sum(each.numel() for each in part.parameters() if not each.requires_grad)
    return frozen, sum(each.numel() for each in part.parameters() if each.requires_grad)


def split(directory: Path, cut: tuple[int, int], labels: Labels, output: Path) -> dict[Tier, Path]:
    """Write a model's parts as directories `device`, `edge`, `cloud` of `output`; none for a tier without one.

    Raises:
        UsageError: the model cannot be cut so, or a directory is already there.
    """
    info = describe(directory)
    if info.part is not None:
        raise UsageError(f"{directory} is itself a part", fix="split the whole model")
    plans = {tier: plan for tier, plan in cut_model(info.layers, cut, labels).items() if not plan.is_empty}
    targets = {tier: output / tier.value for tier in plans}
    for target in targets.values():
        if target.exists():
            raise UsageError(f"{target} exists", fix="remove it or choose another output")
    whole, weights = skeleton.build(directory), Weights(directory)
    output.mkdir(parents=True, exist_ok=True)
    for tier, plan in plans.items():
        draft = Path(tempfile.mkdtemp(prefix=f".{tier.value}-", dir=output))
        try:
            _write_part(draft, whole, weights, plan, info)
            draft.chmod(0o755)
            draft.replace(targets[tier])
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return targets


def _write_part(target: Path, whole: Skeleton, weights: Weights, plan: PartPlan, info: ModelInfo) -> None:
    shutil.copy(weights.directory / "config.json", target)
    names = {name: name for name in _file_names(whole, plan, weights).values()}
    save_file(dict(weights.load(names)), target / "model.safetensors", metadata={"format": "pt"})
    content = asdict(info) | {"part": asdict(plan)}
    (target / PART_FILE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    if plan.embedding:
        for name in _TOKENIZER_FILES:
            if (weights.directory / name).is_file():
                shutil.copy(weights.directory / name, target)


def _check_part_directory(directory: Path, plan: PartPlan) -> None:
    if not (directory / PART_FILE).is_file():
        return
    has = describe(directory).part
    fits = has is not None and (
        has.first <= plan.first
        and plan.end <= has.end
        and (has.embedding or not plan.embedding)
        and (has.head or not plan.head)
    )
    if not fits:
        raise MismatchError(
            f"{directory} holds layers {_named(has)}, but {_named(plan)} is wanted",
            fix="copy the part of this cut to the machine, or run the fleet with the part's cut",
        )


def _named(plan: PartPlan | None) -> str:
    if plan is None:
        return "none"
    return f"embedding + {plan}" if plan.embedding else str(plan)


def _file_names(whole: Skeleton, plan: PartPlan, weights: Weights) -> dict[str, str]:
    """For each tensor of the part its name in the files."""
    tied = bool(whole.config.tie_word_embeddings)
    names: dict[str, str] = {}
    for key in whole.keys_of(plan):
        source = key
        if tied and key == f"{whole.head}.weight":
            if plan.embedding:
                continue  # shared with the embedding, which is loaded
            source = f"{whole.embedding}.weight"
        # Checkpoints of a bare decoder lack the prefix of the whole model (GPT-2's do).
        known = [source, source.partition(".")[2]]
        if key == f"{whole.head}.weight":
            known.append(HEAD_OF_NEOX)
        found = [name for name in known if name in weights]
        if found:
            names[key] = found[0]
        elif key in dict(whole.causal.named_parameters(remove_duplicate=False)):
            raise UsageError(
                f"{weights.directory} lacks tensor {source}",
                fix="fetch the whole model again; mixtures of experts cannot be split",
            )
    return names


def _embedding_that_stays(whole: Skeleton, plan: PartPlan, names: dict[str, str], weights: Weights) -> str:
    """Name of an embedding table that is read row by row from its file; empty if it has to be in memory."""
    table = f"{whole.embedding}.weight"
    if plan.head or table not in names:  # a head that shares it multiplies with all of it
        return ""
    module = whole.causal.get_submodule(whole.embedding)
    return table if can_stay(module, weights.entries[names[table]]) else ""


def _assign(root: nn.Module, name: str, tensor: torch.Tensor) -> None:
    parent_name, _, leaf = name.rpartition(".")
    parent = root.get_submodule(parent_name)
    expected = getattr(parent, leaf).shape
    if tensor.shape != expected:
        raise UsageError(
            f"tensor {name} has shape {tuple(tensor.shape)}, config.json says {tuple(expected)}",
            fix="fetch the whole model again",
        )
    if leaf in dict(parent.named_parameters(recurse=False)):
        parent.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    else:
        parent.register_buffer(leaf, tensor)


def _check_transparent(part: Part) -> None:
    """Without its layers, a part in the middle must hand on what it gets, to the bit.

    Finds decoders that scale or normalise embeddings outside of the embedding module.
    """
    layers = part.layers
    hidden = torch.linspace(-1, 1, 2 * part.width).reshape(1, 2, part.width)
    part.put_layers(nn.ModuleList())
    try:
        with torch.no_grad():
            through = part(hidden, torch.ones(1, 2, dtype=torch.int64))
    finally:
        part.put_layers(layers)
    if not torch.equal(through, hidden):
        raise UsageError(
            "the architecture scales or normalises embeddings between embedding and layers",
            fix="use an architecture such as llama, qwen3, gemma3 or gpt2",
        )
