"""The same training on one machine, by PEFT alone: what the fleet has to equal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from iotsplit.settings import Aggregation, BaseDtype, Codec, TrainingSettings, UpdateCodec
from iotsplit.tensors import adapters
from iotsplit.tensors.frozen import FrozenLinear
from iotsplit_device.batches import Batches, MicroBatch


def settings(**changes: Any) -> TrainingSettings:
    """Small, and exact on the wire."""
    plain: dict[str, Any] = {
        "rounds": 1,
        "local_steps": 4,
        "batch_size": 3,
        "micro_batches": 1,
        "sequence_length": 16,
        "cut": (1, 3),
        "codec": Codec.FP32,
        "update_codec": UpdateCodec.FP32,
        "rank": 2,
        "alpha": 4.0,
        "learning_rate": 1e-2,
        "target_modules": ("q_proj", "v_proj", "down_proj"),
    }
    return TrainingSettings(**(plain | changes))


def difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest of any value."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


class Monolith:
    """A PEFT model that starts from the fleet's version 0."""

    def __init__(self, model: Path, settings: TrainingSettings) -> None:
        config = adapters.peft_config(model, settings, base=str(model)) | {"inference_mode": False}
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        _round_frozen(base, settings.base_dtype)
        self.model = get_peft_model(base, LoraConfig(**config))
        self.model.eval()
        names = {n.replace(".default", ""): p for n, p in self.model.named_parameters() if p.requires_grad}
        self.parameters = dict(sorted(names.items()))
        first = adapters.initial(model, settings)
        assert set(first) == set(self.parameters)
        for name, parameter in self.parameters.items():
            parameter.data.copy_(first[name])
        self._settings = settings
        self._optimizer = adapters.make_optimizer(self.parameters, settings)

    def loss_sum(self, batch: MicroBatch) -> torch.Tensor:
        logits = self.model(input_ids=batch.ids, attention_mask=batch.mask).logits
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch.labels.flatten(), ignore_index=-100, reduction="sum"
        )

    def step(self, batches: Sequence[MicroBatch], *, round_: int = 1) -> None:
        """One optimizer step on the mean over all loss tokens."""
        tokens = sum(batch.tokens for batch in batches)
        for batch in batches:
            torch.autograd.backward(self.loss_sum(batch) / tokens)
        for name in self._resting_in(round_):
            self.parameters[name].grad = None
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _resting_in(self, round_: int) -> list[str]:
        """What nobody trains in a round: with rolora A or B below the cloud."""
        if self._settings.aggregation is not Aggregation.ROLORA:
            return []
        resting = ".lora_A." if round_ % 2 else ".lora_B."
        below = [f".layers.{layer}." for layer in range(self._settings.cut[1])]
        return [name for name in self.parameters if resting in name and any(each in name for each in below)]

    def train(self, data: Sequence[Batches]) -> dict[str, torch.Tensor]:
        """All rounds and steps, each step on the union of the devices' batches."""
        s = self._settings
        for round_ in range(1, s.rounds + 1):
            self._optimizer = adapters.make_optimizer(self.parameters, s)  # begins anew with each round
            for step in range(s.local_steps):
                union = [m for each in data for m in each.step(round_, step, local_steps=s.local_steps)]
                self.step(union, round_=round_)
        return {name: value.detach() for name, value in self.parameters.items()}


def _round_frozen(base: torch.nn.Module, dtype: BaseDtype) -> None:
    """Give the layers the weights that the base type leaves of theirs, in float32."""
    for name, module in base.named_modules():
        if dtype is not BaseDtype.FP32 and isinstance(module, torch.nn.Linear) and ".layers." in name:
            module.weight.data = FrozenLinear(module, dtype).matrix()
