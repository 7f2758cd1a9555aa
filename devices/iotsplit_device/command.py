"""``iotsplit device``: the agent beside the data."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from iotsplit.datasets import partition
from iotsplit.datasets.records import Record, read
from iotsplit.errors import UsageError
from iotsplit.options import AgentOptions, parse
from iotsplit.plan import Tier, cut_model
from iotsplit.runtime import serve
from iotsplit.runtime.processes import trim_memory
from iotsplit.runtime.runner import new_birth
from iotsplit.settings import TrainingSettings
from iotsplit.tensors import adapters
from iotsplit.tensors.models import ModelInfo, describe, resolve
from iotsplit.tensors.parts import load_part
from iotsplit.tensors.recompute import recompute
from iotsplit.topics import check_agent_id
from iotsplit_device.batches import Batches
from iotsplit_device.role import DeviceRole
from iotsplit_device.store import DeviceStore
from iotsplit_device.tokens import tokenize
from iotsplit_device.work import DeviceWork

EXAMPLES = (
    "iotsplit device --id press --broker mqtt://broker.local:1883 --data notes.jsonl",
    "iotsplit device --config device.toml",
)


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(AgentOptions):
    """The device's data.

    Runs a device: the first layers of the model, beside the data that never leaves it.

    Args:
        data: File or folder with this device's data, or a built-in set that has data for this id.
        columns: Columns or keys of the data: one of texts, or two of prompts and completions.
        eval_limit: Most held-out sequences to score.
    """

    data: str = ""
    columns: tuple[str, ...] = ()
    eval_limit: int = 24


def main(words: Sequence[str]) -> int:
    """Run a device until a signal ends it."""
    options = parse(DeviceOptions, words, name="iotsplit device", examples=EXAMPLES)
    serve.start_logging(options.log_level)
    torch.set_num_threads(options.threads)
    agent = check_agent_id(options.id or "device")
    directory = resolve(options.model, serve.cache_directory())
    info = describe(directory)
    records = read_records(options, agent)
    birth = new_birth(
        agent,
        Tier.DEVICE,
        model=info.fingerprint,
        part="all" if info.part is None else str(info.part),
        threads=options.threads,
    )
    corpus = Corpus(records=records, tokenizers=Tokenizers(directory), eval_limit=options.eval_limit)
    loader = make_loader(
        directory, info, corpus, device=agent, gradient_checkpointing=options.gradient_checkpointing
    )
    options = dataclasses.replace(options, id=agent)
    store = DeviceStore(serve.state_directory(options) / "checkpoints", model=info.fingerprint)
    role = DeviceRole(birth=birth, load=loader, saved=store.load())
    return serve.serve(role, options, sink=store.take)


def read_records(options: DeviceOptions, agent: str) -> list[Record]:
    """A device's data: a file or folder, or its share of a built-in set.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    if not options.data:
        raise UsageError("a device needs data", fix="name a file or folder with --data")
    if Path(options.data).exists():
        return read(Path(options.data), columns=options.columns)
    shares = partition.load(options.data)
    if agent not in shares:
        raise UsageError(
            f"{options.data} has no data for a device named {agent}",
            fix=f"use one of these as --id: {', '.join(shares)}",
        )
    return shares[agent]


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What a device learns from, before the cloud has said how.

    Args:
        records: its data.
        tokenizers: of the model.
        eval_limit: most held-out sequences.
    """

    records: Sequence[Record]
    tokenizers: "Tokenizers"
    eval_limit: int


class Tokenizers:
    """The model's tokenizer whenever it is needed, which is once for all sessions of the same settings.

    It takes about as much memory as a device's layers, so nobody keeps it.

    Args:
        directory: of the model.

    Raises:
        UsageError: it is missing or damaged.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._first: PreTrainedTokenizerBase | None = load_tokenizer(directory)  # what is wrong shows at once

    def take(self) -> PreTrainedTokenizerBase:
        """A tokenizer, to be used and let go."""
        first, self._first = self._first, None
        return load_tokenizer(self._directory) if first is None else first


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Raises:
        UsageError: it is missing or damaged.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory)
    except Exception as error:
        # Each kind of tokenizer stumbles in its own way.
        reason = " ".join(str(error).split())
        raise UsageError(
            f"{directory} holds no tokenizer that can be read ({reason})",
            fix="fetch the whole model again: a device needs its tokenizer files",
        ) from error
    return tokenizer


def make_loader(
    directory: Path, info: ModelInfo, corpus: Corpus, *, device: str, gradient_checkpointing: bool = False
) -> Callable[[TrainingSettings], DeviceWork]:
    """What makes a device's part and data ready; it keeps what it made for the settings last seen."""
    made: dict[TrainingSettings, DeviceWork] = {}

    def load(settings: TrainingSettings) -> DeviceWork:
        if settings not in made:
            made.clear()
            batches = _batches(settings)
            trim_memory()  # what the tokenizer has left
            plan = cut_model(info.layers, settings.cut, settings.labels)[Tier.DEVICE]
            part = load_part(directory, plan)
            adapters.inject(part, settings)
            if gradient_checkpointing:
                recompute(part.layers)
            made[settings] = DeviceWork(part, batches, settings)
        return made[settings]

    def _batches(settings: TrainingSettings) -> Batches:
        train, held_out = tokenize(
            corpus.records,
            corpus.tokenizers.take(),
            sequence_length=settings.sequence_length,
            batch_size=settings.batch_size,
            seed=settings.seed,
            eval_limit=corpus.eval_limit,
        )
        return Batches(
            train,
            held_out,
            seed=settings.seed,
            device=device,
            batch_size=settings.batch_size,
            micro_batches=settings.micro_batches,
        )

    return load
