"""The three parts compute what the whole model computes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BloomConfig, GPTNeoXConfig, GraniteConfig

from iotsplit.errors import MismatchError, UsageError
from iotsplit.plan import Labels, PartPlan, Tier, cut_model
from iotsplit.tensors.models import describe
from iotsplit.tensors.parts import Part, load_part, sizes, split
from tests.unit.tensors.tiny import CUT, LAYERS, VOCABULARY, WIDTH, Batch, TinyModel

Parts = dict[Tier, Part]


def _parts(directory: Path, labels: Labels) -> Parts:
    return {tier: load_part(directory, plan) for tier, plan in cut_model(LAYERS, CUT, labels).items()}


def _hidden(parts: Parts, batch: Batch) -> torch.Tensor:
    hidden: torch.Tensor = batch.ids
    with torch.no_grad():
        for part in parts.values():
            hidden = part(hidden, batch.mask)
    return hidden


def _headed(parts: Parts, labels: Labels) -> Part:
    return parts[Tier.CLOUD if labels is Labels.CLOUD else Tier.DEVICE]


@pytest.mark.slow
@pytest.mark.parametrize("labels", Labels)
def test_parts_give_the_logits_of_the_whole_model(tiny: TinyModel, batch: Batch, labels: Labels) -> None:
    parts = _parts(tiny.directory, labels)
    hidden = _hidden(parts, batch)
    counted = batch.mask.bool()
    with torch.no_grad():
        expected = tiny.load()(input_ids=batch.ids, attention_mask=batch.mask).logits[counted]
        logits = _headed(parts, labels).logits(hidden[counted])
    assert (logits - expected).abs().max() <= 1e-6


def test_a_head_that_files_call_otherwise_is_found(tmp_path: Path, batch: Batch) -> None:
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=9,
    )
    auto: Any = AutoModelForCausalLM
    auto.from_config(config).save_pretrained(tmp_path)
    assert "embed_out.weight" in load_file(tmp_path / "model.safetensors")
    neox = TinyModel(architecture="gpt_neox", directory=tmp_path, targets=("query_key_value",))
    test_parts_give_the_logits_of_the_whole_model(neox, batch, Labels.CLOUD)


@pytest.mark.slow
@pytest.mark.parametrize("labels", Labels)
def test_loss_and_its_gradient_are_those_of_the_whole_logits(
    tiny: TinyModel, batch: Batch, labels: Labels
) -> None:
    part = _headed(_parts(tiny.directory, labels), labels)
    hidden = torch.randn(3, 11, WIDTH, generator=torch.Generator().manual_seed(2))
    ours, whole = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    loss, tokens = part.loss(ours, batch.labels)
    torch.autograd.backward(loss / tokens)
    logits = part.logits(whole.reshape(-1, WIDTH))
    expected = torch.nn.functional.cross_entropy(logits, batch.labels.reshape(-1))
    torch.autograd.backward(expected)
    assert tokens == int((batch.labels != -100).sum())
    assert abs(loss.item() / tokens - expected.item()) <= 1e-6
    assert ours.grad is not None
    assert whole.grad is not None
    assert (ours.grad - whole.grad).abs().max() <= 1e-6


def test_the_loss_does_not_depend_on_how_many_positions_are_taken_at_once(
    llama: TinyModel, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = _headed(_parts(llama.directory, Labels.CLOUD), Labels.CLOUD)
    hidden = torch.randn(3, 11, WIDTH)
    results = []
    for rows in (1, 5, 1024):
        monkeypatch.setattr("iotsplit.tensors.loss.MOST_POSITIONS", rows)
        leaf = hidden.clone().requires_grad_()
        loss, _ = part.loss(leaf, batch.labels)
        torch.autograd.backward(loss)
        assert leaf.grad is not None
        results.append((loss.item(), leaf.grad, part.score(leaf, batch.labels)[0]))
    for summed, gradient, scored in results:
        assert summed == pytest.approx(results[0][0], abs=1e-5)
        assert scored == pytest.approx(results[0][0], abs=1e-5)
        assert (gradient - results[0][1]).abs().max() <= 1e-6


def test_a_batch_without_labels_has_no_loss_and_no_gradient(llama: TinyModel) -> None:
    part = load_part(llama.directory, PartPlan(first=4, end=6, head=True))
    hidden = torch.randn(1, 4, WIDTH, requires_grad=True)
    loss, tokens = part.loss(hidden, torch.full((1, 4), -100))
    torch.autograd.backward(loss)
    assert (loss.item(), tokens) == (0.0, 0)
    assert hidden.grad is not None
    assert not hidden.grad.any()
    assert part.score(hidden, torch.full((1, 4), -100)) == (0.0, 0, 0, 0)


def test_a_sequence_counts_as_exact_only_if_every_label_is_the_most_probable(llama: TinyModel) -> None:
    part = load_part(llama.directory, PartPlan(first=4, end=6, head=True))
    hidden = torch.randn(3, 4, WIDTH)
    with torch.no_grad():
        labels = part.logits(hidden.reshape(-1, WIDTH)).argmax(dim=-1).reshape(3, 4)
    labels[0, 1] = -100
    labels[1, 2] = (labels[1, 2] + 1) % 97
    labels[2, :] = -100
    loss_sum, tokens, exact, sequences = part.score(hidden, labels)
    assert (tokens, exact, sequences) == (7, 1, 2)
    assert loss_sum > 0


def test_a_part_without_head_refuses_a_loss(llama: TinyModel) -> None:
    part = load_part(llama.directory, PartPlan(first=2, end=4))
    with pytest.raises(UsageError):
        part.loss(torch.randn(1, 2, WIDTH), torch.zeros(1, 2, dtype=torch.int64))


def test_a_part_holds_its_own_tensors_only(tiny: TinyModel) -> None:
    edge = load_part(tiny.directory, PartPlan(first=2, end=4))
    layer = sum(parameter.numel() for parameter in edge.layers[0].parameters())
    assert sum(parameter.numel() for parameter in edge.parameters()) == 2 * layer


@pytest.mark.slow
def test_nothing_of_a_part_is_left_without_values_or_trainable(tiny: TinyModel) -> None:
    for labels in Labels:
        for part in _parts(tiny.directory, labels).values():
            assert not part.training
            for tensor in (*part.parameters(), *part.buffers()):
                assert not tensor.is_meta
                assert not tensor.requires_grad


def test_tied_embeddings_are_one_tensor_where_both_are_owned(llama: TinyModel) -> None:
    part = load_part(llama.directory, PartPlan(first=0, end=2, embedding=True, head=True))
    tables = [parameter for parameter in part.parameters() if parameter.shape == (97, WIDTH)]
    assert len(tables) == 1


@pytest.mark.slow
def test_written_parts_load_and_compute_the_same(tiny: TinyModel, batch: Batch, tmp_path: Path) -> None:
    for labels in Labels:
        directories = split(tiny.directory, CUT, labels, tmp_path / labels)
        plans = cut_model(LAYERS, CUT, labels)
        cut = {tier: load_part(directories[tier], plan) for tier, plan in plans.items()}
        whole = _parts(tiny.directory, labels)
        assert torch.equal(_hidden(cut, batch), _hidden(whole, batch))
        tail = _hidden(cut, batch)
        assert _headed(cut, labels).score(tail, batch.labels) == _headed(whole, labels).score(
            tail, batch.labels
        )


def test_a_written_part_describes_the_whole_model_and_itself(tiny: TinyModel, tmp_path: Path) -> None:
    whole = describe(tiny.directory)
    directories = split(tiny.directory, CUT, Labels.CLOUD, tmp_path)
    for tier, plan in cut_model(LAYERS, CUT, Labels.CLOUD).items():
        info = describe(directories[tier])
        assert (info.fingerprint, info.parameters) == (whole.fingerprint, whole.parameters)
        assert info.part == plan


def test_each_tensor_is_written_to_the_parts_that_own_it(llama: TinyModel, tmp_path: Path) -> None:
    directories = split(llama.directory, CUT, Labels.CLOUD, tmp_path)
    names = {tier: set(load_file(path / "model.safetensors")) for tier, path in directories.items()}
    everything = set(load_file(llama.directory / "model.safetensors"))
    assert set.union(*names.values()) == everything
    shared = names[Tier.DEVICE] & names[Tier.CLOUD]
    assert shared == {"model.embed_tokens.weight"}
    assert not names[Tier.EDGE] & (names[Tier.DEVICE] | names[Tier.CLOUD])


def test_a_part_directory_says_which_layers_it_has_when_others_are_asked_for(
    llama: TinyModel, tmp_path: Path
) -> None:
    directories = split(llama.directory, CUT, Labels.CLOUD, tmp_path)
    with pytest.raises(MismatchError, match="holds layers 2-3, but 2-4 is wanted"):
        load_part(directories[Tier.EDGE], PartPlan(first=2, end=5))
    with pytest.raises(MismatchError, match="embedding"):
        load_part(directories[Tier.EDGE], PartPlan(first=2, end=4, embedding=True))


def test_only_the_part_with_the_embedding_gets_the_tokenizer(llama: TinyModel, tmp_path: Path) -> None:
    shutil.copytree(llama.directory, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    directories = split(tmp_path / "model", CUT, Labels.CLOUD, tmp_path / "parts")
    assert (directories[Tier.DEVICE] / "tokenizer.json").is_file()
    assert not (directories[Tier.EDGE] / "tokenizer.json").exists()
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == [
        "cloud",
        "device",
        "edge",
    ]


def test_sizes_tell_frozen_from_trainable_parameters(llama: TinyModel) -> None:
    part = load_part(llama.directory, PartPlan(first=2, end=4))
    frozen, trainable = sizes(part)
    assert (frozen, trainable) == (sum(each.numel() for each in part.parameters()), 0)
    next(part.parameters()).requires_grad_()
    assert sum(sizes(part)) == frozen
    assert sizes(part)[1] > 0


def test_an_architecture_with_parameters_of_no_known_place_is_refused(tmp_path: Path) -> None:
    config = BloomConfig(vocab_size=97, hidden_size=WIDTH, n_layer=3, n_head=4)
    auto: Any = AutoModelForCausalLM
    auto.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="word_embeddings_layernorm"):
        load_part(tmp_path, PartPlan(first=1, end=2))


def test_split_overwrites_nothing_and_splits_no_part(llama: TinyModel, tmp_path: Path) -> None:
    directories = split(llama.directory, CUT, Labels.CLOUD, tmp_path)
    with pytest.raises(UsageError, match="exists"):
        split(llama.directory, CUT, Labels.CLOUD, tmp_path)
    with pytest.raises(UsageError, match="itself a part"):
        split(directories[Tier.EDGE], CUT, Labels.CLOUD, tmp_path / "again")


def test_a_checkpoint_of_the_bare_decoder_loads_too(tiny_models: dict[str, TinyModel], tmp_path: Path) -> None:
    gpt2 = tiny_models["gpt2"]
    tensors = load_file(gpt2.directory / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(bare, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = (gpt2.directory / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    plan = PartPlan(first=0, end=2, embedding=True)
    ids, mask = torch.arange(3, 8).unsqueeze(0), torch.ones(1, 5)
    assert torch.equal(load_part(tmp_path, plan)(ids, mask), load_part(gpt2.directory, plan)(ids, mask))


def test_sharded_checkpoints_load(llama: TinyModel, tmp_path: Path) -> None:
    llama.load().save_pretrained(tmp_path, max_shard_size="40KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    plan = PartPlan(first=1, end=4)
    hidden, mask = torch.randn(1, 5, WIDTH), torch.ones(1, 5)
    assert torch.equal(load_part(tmp_path, plan)(hidden, mask), load_part(llama.directory, plan)(hidden, mask))


def test_a_missing_tensor_is_named(llama: TinyModel, tmp_path: Path) -> None:
    tensors = load_file(llama.directory / "model.safetensors")
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((llama.directory / "config.json").read_text())
    with pytest.raises(UsageError, match=r"model\.layers\.3\.mlp\.up_proj"):
        load_part(tmp_path, PartPlan(first=2, end=4))


def test_a_tensor_of_another_shape_than_the_configuration_says_is_named(
    llama: TinyModel, tmp_path: Path
) -> None:
    config = json.loads((llama.directory / "config.json").read_text())
    config["intermediate_size"] = 40
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((llama.directory / "model.safetensors").read_bytes())
    with pytest.raises(UsageError, match="has shape"):
        load_part(tmp_path, PartPlan(first=2, end=4))


def test_an_architecture_that_scales_embeddings_on_its_way_is_refused(tmp_path: Path) -> None:
    config = GraniteConfig(
        vocab_size=97,
        hidden_size=WIDTH,
        intermediate_size=9,
        num_hidden_layers=3,
        num_attention_heads=4,
        embedding_multiplier=2.0,
    )
    auto: Any = AutoModelForCausalLM
    auto.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="embeddings"):
        load_part(tmp_path, PartPlan(first=1, end=2))
