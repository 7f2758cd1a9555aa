"""LoRA on parts is the LoRA that PEFT puts on the whole model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save

from iotsplit.errors import NotFiniteError, TensorRefusedError, UsageError
from iotsplit.plan import Labels, PartPlan, Tier, cut_model
from iotsplit.settings import Optimizer, TrainingSettings
from iotsplit.tensors import adapters
from iotsplit.tensors.boundary import Boundary
from iotsplit.tensors.parts import load_part
from tests.unit.tensors.tiny import CUT, LAYERS, WIDTH, Batch, TinyModel


def _settings(targets: tuple[str, ...] = ("q_proj", "v_proj"), **changes: Any) -> TrainingSettings:
    plain: dict[str, Any] = {"rank": 4, "alpha": 8.0, "cut": CUT, "learning_rate": 1e-2} | changes
    return TrainingSettings(target_modules=targets, **plain)


def _start(directory: Path, settings: TrainingSettings) -> dict[str, torch.Tensor]:
    """An adapter in the middle of training: B is not zero any more."""
    tensors = adapters.initial(directory, settings)
    generator = torch.Generator().manual_seed(9)
    for name in tensors:
        if ".lora_B." in name:
            tensors[name] = torch.randn(tensors[name].shape, generator=generator) * 0.05
    return tensors


def _export(
    tiny: TinyModel,
    tensors: dict[str, torch.Tensor],
    settings: TrainingSettings,
    directory: Path,
) -> Path:
    adapters.export(directory, tensors, adapters.peft_config(tiny.directory, settings))
    return directory


def _reference(tiny: TinyModel, adapter: Path) -> tuple[Any, dict[str, torch.nn.Parameter]]:
    """The whole model in PEFT, and its LoRA parameters under the names that PEFT saves."""
    model: Any = PeftModel.from_pretrained(tiny.load(), str(adapter), is_trainable=True).eval()
    named = {
        name.replace(".default", ""): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    return model, named


def _reference_loss(model: Any, batch: Batch) -> torch.Tensor:
    logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits
    return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch.labels.reshape(-1))


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


class _Split:
    """Three parts in one process, with one session's parameters."""

    def __init__(
        self,
        directory: Path,
        settings: TrainingSettings,
        tensors: dict[str, torch.Tensor],
        labels: Labels = Labels.CLOUD,
    ) -> None:
        plans = cut_model(LAYERS, CUT, labels)
        self.parts = {tier: load_part(directory, plan) for tier, plan in plans.items()}
        self.headed = self.parts[Tier.CLOUD if labels is Labels.CLOUD else Tier.DEVICE]
        self.own: dict[Tier, dict[str, torch.nn.Parameter]] = {}
        for tier, part in self.parts.items():
            adapters.inject(part, settings)
            self.own[tier] = adapters.fresh(adapters.select(tensors, part.plan))
            adapters.attach(part, self.own[tier])

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return {name: value for own in self.own.values() for name, value in own.items()}

    def backward(self, batch: Batch) -> float:
        """Forward and backward through all tiers, detached at each boundary; the mean loss."""
        boundary = Boundary()
        hidden: torch.Tensor = batch.ids
        for tier, part in self.parts.items():
            inputs = None if tier is Tier.DEVICE else hidden.requires_grad_()
            hidden = boundary.open((tier, 1, 0), inputs, part(hidden, batch.mask))
        tail = hidden.requires_grad_()
        loss, tokens = self.headed.loss(tail, batch.labels)
        torch.autograd.backward(loss / tokens)
        gradient = tail.grad
        for tier in reversed(self.parts):
            assert gradient is not None
            gradient = boundary.close((tier, 1, 0), gradient)
        return loss.item() / tokens


@pytest.mark.slow
@pytest.mark.parametrize("labels", Labels)
@pytest.mark.parametrize("everywhere", [False, True])
def test_gradients_are_those_of_peft_on_the_whole_model(
    tiny: TinyModel, batch: Batch, tmp_path: Path, labels: Labels, everywhere: bool
) -> None:
    settings = _settings((adapters.ALL_LINEAR,) if everywhere else tiny.targets)
    tensors = _start(tiny.directory, settings)
    model, reference = _reference(tiny, _export(tiny, tensors, settings, tmp_path / "adapter"))
    expected = _reference_loss(model, batch)
    torch.autograd.backward(expected)
    split = _Split(tiny.directory, settings, tensors, labels)
    assert abs(split.backward(batch) - expected.item()) <= 1e-6
    assert split.parameters.keys() == reference.keys()
    for name, parameter in split.parameters.items():
        assert (_gradient(parameter) - _gradient(reference[name])).abs().max() <= 1e-6, name
        assert _gradient(reference[name]).any(), name


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", Optimizer)
def test_an_optimizer_step_of_each_tier_is_the_step_of_the_whole_model(
    tiny: TinyModel, batch: Batch, tmp_path: Path, optimizer: Optimizer
) -> None:
    settings = _settings(tiny.targets, optimizer=optimizer, learning_rate=1e-3)
    tensors = _start(tiny.directory, settings)
    model, reference = _reference(tiny, _export(tiny, tensors, settings, tmp_path / "adapter"))
    torch.autograd.backward(_reference_loss(model, batch))
    adapters.make_optimizer(reference, settings).step()
    split = _Split(tiny.directory, settings, tensors)
    split.backward(batch)
    for own in split.own.values():
        adapters.make_optimizer(own, settings).step()
    for name, parameter in split.parameters.items():
        off = (parameter - reference[name]).abs()
        # AdamW divides by the gradient's size: where that is nearly 0, its rounding errors grow.
        firm = _gradient(reference[name]).abs() > 1e-5
        assert off[firm].max() <= 1e-6, name
        assert off.max() <= 1e-5, name
        assert not torch.equal(parameter, tensors[name]), name


@pytest.mark.slow
def test_names_shapes_and_settings_are_those_that_peft_saves(tiny: TinyModel, tmp_path: Path) -> None:
    settings = _settings(tiny.targets)
    transposed = tiny.architecture == "gpt2"
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=list(tiny.targets),
        fan_in_fan_out=transposed,
        task_type="CAUSAL_LM",
    )
    get_peft_model(tiny.load(), config).save_pretrained(str(tmp_path))
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert adapters.shapes(tiny.directory, settings) == {
        name: tuple(saved[name].shape) for name in sorted(saved)
    }
    theirs = json.loads((tmp_path / "adapter_config.json").read_text())
    ours = adapters.peft_config(tiny.directory, settings)
    for key in ("r", "lora_alpha", "fan_in_fan_out", "peft_type", "task_type"):
        assert ours[key] == theirs[key]
    assert sorted(ours["target_modules"]) == sorted(theirs["target_modules"])


@pytest.mark.slow
def test_all_linear_is_what_peft_calls_all_linear(tiny: TinyModel, tmp_path: Path) -> None:
    config = LoraConfig(
        r=4,
        target_modules="all-linear",
        fan_in_fan_out=tiny.architecture == "gpt2",
        task_type="CAUSAL_LM",
    )
    get_peft_model(tiny.load(), config).save_pretrained(str(tmp_path))
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert list(adapters.shapes(tiny.directory, _settings((adapters.ALL_LINEAR,)))) == sorted(saved)


@pytest.mark.parametrize("optimizer", Optimizer)
def test_optimizers_have_no_weight_decay_and_the_rate_of_the_settings(optimizer: Optimizer) -> None:
    own = adapters.fresh({"b": torch.ones(2), "a": torch.zeros(1)})
    made = adapters.make_optimizer(own, _settings(optimizer=optimizer))
    (group,) = made.param_groups
    assert isinstance(made, torch.optim.AdamW if optimizer is Optimizer.ADAMW else torch.optim.SGD)
    assert (group["lr"], group["weight_decay"]) == (1e-2, 0)
    assert [id(value) for value in group["params"]] == [id(own["a"]), id(own["b"])]


def test_version_0_depends_on_seed_and_name_only_and_changes_nothing(llama: TinyModel) -> None:
    first = adapters.initial(llama.directory, _settings())
    wider = adapters.initial(llama.directory, _settings((adapters.ALL_LINEAR,)))
    other = adapters.initial(llama.directory, _settings(seed=1))
    for name, tensor in first.items():
        assert torch.equal(tensor, wider[name])
        if ".lora_B." in name:
            assert not tensor.any()
        else:
            assert not torch.equal(tensor, other[name])
            assert tensor.abs().max() <= 1 / WIDTH**0.5
            assert tensor.std() == pytest.approx((1 / 3) ** 0.5 / WIDTH**0.5, rel=0.2)


def test_an_edge_can_serve_a_session_while_the_graph_of_another_waits(llama: TinyModel, batch: Batch) -> None:
    settings = _settings()
    part = load_part(llama.directory, PartPlan(first=2, end=4))
    adapters.inject(part, settings)
    start = adapters.select(_start(llama.directory, settings), part.plan)
    changed = {name: tensor + 0.1 for name, tensor in start.items()}
    hidden = torch.randn(3, 11, WIDTH, generator=torch.Generator().manual_seed(4))

    def run(tensors: dict[str, torch.Tensor], between: Callable[[], None]) -> dict[str, torch.Tensor]:
        own = adapters.fresh(tensors)
        adapters.attach(part, own)
        outputs = part(hidden, batch.mask)
        between()
        torch.autograd.backward(outputs.sum())
        return {name: _gradient(value) for name, value in own.items()}

    def another_session_trains() -> None:
        own = adapters.fresh(changed)
        adapters.attach(part, own)
        torch.autograd.backward(part(hidden, batch.mask).sum())
        adapters.make_optimizer(own, settings).step()

    alone = run(start, lambda: None)
    shared = run(start, another_session_trains)
    assert all(torch.equal(alone[name], shared[name]) for name in alone)


def test_only_lora_is_trainable_and_fresh_parameters_are_copies(llama: TinyModel) -> None:
    settings = _settings()
    part = load_part(llama.directory, PartPlan(first=2, end=4))
    adapters.inject(part, settings)
    tensors = adapters.select(_start(llama.directory, settings), part.plan)
    own = adapters.fresh(tensors)
    adapters.attach(part, own)
    trainable = [value for value in part.parameters() if value.requires_grad]
    assert {id(value) for value in trainable} == {id(value) for value in own.values()}
    assert all(adapters.parameters(part)[name] is own[name] for name in own)
    with torch.no_grad():
        next(iter(own.values())).add_(1)
    name = next(iter(own))
    assert not torch.equal(own[name], tensors[name])


def test_a_part_takes_its_own_layers_of_an_adapter(llama: TinyModel) -> None:
    tensors = adapters.initial(llama.directory, _settings())
    tiers = [set(adapters.select(tensors, plan)) for plan in cut_model(LAYERS, CUT, Labels.CLOUD).values()]
    assert set.union(*tiers) == set(tensors)
    assert sum(map(len, tiers)) == len(tensors)
    assert all(".layers.2." in name or ".layers.3." in name for name in tiers[1])


def test_attaching_other_parameters_than_the_parts_is_refused(llama: TinyModel) -> None:
    settings = _settings()
    part = load_part(llama.directory, PartPlan(first=2, end=4))
    adapters.inject(part, settings)
    tensors = adapters.initial(llama.directory, settings)
    with pytest.raises(TensorRefusedError, match="unknown"):
        adapters.attach(part, adapters.fresh(tensors))
    wide = adapters.initial(llama.directory, _settings(rank=5))
    with pytest.raises(TensorRefusedError, match="shape"):
        adapters.attach(part, adapters.fresh(adapters.select(wide, part.plan)))


@pytest.mark.parametrize("target", ["q_projection", "embed_tokens", "lm_head", "norm"])
def test_targets_that_are_no_linear_layers_are_refused_with_those_there_are(
    llama: TinyModel, target: str
) -> None:
    settings = _settings(("q_proj", target))
    with pytest.raises(UsageError, match="down_proj, gate_proj, k_proj"):
        adapters.initial(llama.directory, settings)
    with pytest.raises(UsageError, match="down_proj, gate_proj, k_proj"):
        adapters.inject(load_part(llama.directory, PartPlan(first=2, end=4)), settings)


def test_bytes_of_an_adapter_are_the_same_whatever_the_order_of_its_tensors(llama: TinyModel) -> None:
    tensors = _start(llama.directory, _settings())
    backwards = dict(reversed(tensors.items()))
    data = adapters.to_bytes(tensors)
    assert data == adapters.to_bytes(backwards)
    like = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    read = adapters.from_bytes(data, like)
    assert list(read) == sorted(tensors)
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        b"\x08\0\0\0\0\0\0\0not json",
        save({"a": torch.zeros(2, 3), "b": torch.zeros(1)}),
        save({"c": torch.zeros(2, 3)}),
        save({"a": torch.zeros(3, 2)}),
        save({"a": torch.zeros(6)}),
        save({"a": torch.zeros(2, 3, dtype=torch.float64)}),
        save({"a": torch.zeros(2, 3)})[:-1],
        save({"a": torch.zeros(2, 3)}) + b"\0",
    ],
)
def test_bytes_that_are_not_the_expected_tensors_are_refused(data: bytes) -> None:
    with pytest.raises(TensorRefusedError):
        adapters.from_bytes(data, {"a": (2, 3)})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    data = save({"a": torch.tensor([1.0, value])})
    with pytest.raises(NotFiniteError):
        adapters.from_bytes(data, {"a": (2,)})


def test_an_export_replaces_the_one_before_and_leaves_nothing_else(llama: TinyModel, tmp_path: Path) -> None:
    settings = _settings()
    config = adapters.peft_config(llama.directory, settings)
    target = tmp_path / "adapter"
    for seed in (0, 1):
        tensors = adapters.initial(llama.directory, _settings(seed=seed))
        adapters.export(target, tensors, config)
        read = load_file(target / "adapter_model.safetensors")
        assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert sorted(path.name for path in target.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_the_published_settings_name_no_path_of_this_machine(llama: TinyModel) -> None:
    config = adapters.peft_config(llama.directory, _settings())
    assert str(llama.directory.parent) not in json.dumps(config)
    assert config["base_model_name_or_path"] == "llama"
