"""The promises of the parts at the size of a real model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from iotsplit.plan import Labels, Tier, cut_model
from iotsplit.settings import TrainingSettings
from iotsplit.tensors import adapters
from iotsplit.tensors.boundary import Boundary
from iotsplit.tensors.completion import complete
from iotsplit.tensors.parts import load_part

pytestmark = pytest.mark.slow

TEXT = ["The pump on line three stopped at noon because its bearing", "All sensors are well."]


def _batch(directory: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    encoded = tokenizer(TEXT, return_tensors="pt", padding=True, padding_side="right")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    labels = torch.full_like(ids, -100)
    labels[:, :-1] = torch.where(mask[:, 1:] == 1, ids[:, 1:], -100)
    return ids, mask, labels


def test_a_step_of_the_split_model_is_the_step_of_peft(smollm2: Path, tmp_path: Path) -> None:
    settings = TrainingSettings()
    tensors = adapters.initial(smollm2, settings)
    adapters.export(tmp_path / "adapter", tensors, adapters.peft_config(smollm2, settings))
    ids, mask, labels = _batch(smollm2)

    base: Any = AutoModelForCausalLM.from_pretrained(smollm2)
    whole: Any = PeftModel.from_pretrained(base, str(tmp_path / "adapter"), is_trainable=True).eval()
    logits = whole(input_ids=ids, attention_mask=mask).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.autograd.backward(expected)
    reference = {name.replace(".default", ""): value for name, value in whole.named_parameters()}

    boundary, own = Boundary(), {}
    hidden: torch.Tensor = ids
    parts = {tier: load_part(smollm2, plan) for tier, plan in cut_model(30, settings.cut, Labels.CLOUD).items()}
    for tier, part in parts.items():
        adapters.inject(part, settings)
        own[tier] = adapters.fresh(adapters.select(tensors, part.plan))
        adapters.attach(part, own[tier])
        inputs = None if tier is Tier.DEVICE else hidden.requires_grad_()
        hidden = boundary.open((tier,), inputs, part(hidden, mask))
    tail = hidden.requires_grad_()
    loss, tokens = parts[Tier.CLOUD].loss(tail, labels)
    torch.autograd.backward(loss / tokens)
    gradient = tail.grad
    for tier in reversed(parts):
        assert gradient is not None
        gradient = boundary.close((tier,), gradient)

    # The head's matrix product rounds differently for another number of rows: relative, not 1e-6.
    assert loss.item() / tokens == pytest.approx(expected.item(), rel=1e-6)
    for parameters in own.values():
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            assert (parameter.grad - reference[name].grad).abs().max() <= 1e-6, name


def test_hidden_states_are_those_of_the_whole_model_to_the_bit(smollm2: Path) -> None:
    ids, mask, _ = _batch(smollm2)
    whole: Any = AutoModelForCausalLM.from_pretrained(smollm2)
    hidden: torch.Tensor = ids
    with torch.no_grad():
        for plan in cut_model(30, (4, 15), Labels.CLOUD).values():
            hidden = load_part(smollm2, plan)(hidden, mask)
        whole.model.norm = torch.nn.Identity()
        expected = whole.model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.equal(hidden, expected)


def test_completions_show_what_an_adapter_changes(smollm2: Path, tmp_path: Path) -> None:
    settings = TrainingSettings()
    tensors = adapters.initial(smollm2, settings)
    config = adapters.peft_config(smollm2, settings)
    adapters.export(tmp_path / "same", tensors, config)
    loud = {name: tensor + 0.5 for name, tensor in tensors.items()}
    adapters.export(tmp_path / "loud", loud, config)
    prompts = ["The capital of France is", "One, two,"]
    before = complete(smollm2, None, prompts, 4)
    assert "Paris" in before[0]
    assert "three" in before[1]
    assert complete(smollm2, tmp_path / "same", prompts, 4) == before
    assert complete(smollm2, tmp_path / "loud", prompts, 4) != before
