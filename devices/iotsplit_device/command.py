"""``iotsplit device``: the agent beside the data."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from iotsplit.datasets import partition
from iotsplit.datasets.records import Record, read
from iotsplit.errors import UsageError
from iotsplit.options import AgentOptions, parse
from iotsplit.plan import Tier, cut_model
from iotsplit.runtime import serve
from iotsplit.runtime.address import address_of
from iotsplit.runtime.mqtt import MqttLink
from iotsplit.runtime.processes import trim_memory
from iotsplit.runtime.runner import new_birth
from iotsplit.settings import TrainingSettings
from iotsplit.tensors import adapters
from iotsplit.tensors.models import ModelInfo, describe, resolve
from iotsplit.tensors.parts import load_part
from iotsplit.tensors.recompute import recompute
from iotsplit.topics import Topics, check_agent_id
from iotsplit_device.batches import Batches
from iotsplit_device.role import DeviceRole
from iotsplit_device.store import DeviceStore
from iotsplit_device.tap import Tap
from iotsplit_device.tap_options import TapOptions
from iotsplit_device.tokens import Tokens, tokenize
from iotsplit_device.work import DeviceWork

EXAMPLES = (
    "iotsplit device --id press --broker mqtt://broker.local:1883 --data notes.jsonl",
    "iotsplit device --id press --broker mqtt://broker.local:1883 --tap 'factory/+/log' --tap-field text",
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
    tapping: TapOptions = field(default_factory=TapOptions)


def main(words: Sequence[str]) -> int:
    """Run a device until a signal ends it."""
    options = parse(DeviceOptions, words, name="iotsplit device", examples=EXAMPLES)
    serve.start_logging(options.log_level)
    torch.set_num_threads(options.threads)
    agent = check_agent_id(options.id or "device")
    directory = resolve(options.model, serve.cache_directory())
    info = describe(directory)
    options = dataclasses.replace(options, id=agent)
    state = serve.state_directory(options)
    tap = make_tap(options, state) if options.tapping.tap else None
    records = read_records(options, agent) if options.data or tap is None else []
    birth = new_birth(
        agent,
        Tier.DEVICE,
        model=info.fingerprint,
        part="all" if info.part is None else str(info.part),
        threads=options.threads,
    )
    corpus = Corpus(records=records, tokenizers=Tokenizers(directory), eval_limit=options.eval_limit, tap=tap)
    loader = make_loader(
        directory, info, corpus, device=agent, gradient_checkpointing=options.gradient_checkpointing
    )
    store = DeviceStore(state / "checkpoints", model=info.fingerprint)
    role = DeviceRole(birth=birth, load=loader, saved=store.load(), cached=store.cached(), gathering=tap)
    if tap is None:
        return serve.serve(role, options, sink=store.take)
    with contextlib.closing(tap):
        tap.open()
        return serve.serve(role, options, sink=store.take)


def make_tap(options: DeviceOptions, state: Path) -> Tap:
    """What gathers texts from the device's broker.

    Raises:
        UsageError: its filters or its store cannot be used.
        RunFailedError: the state directory cannot be written.
    """
    link = MqttLink(address_of(options), serve.client_id(options.fleet, "tap", options.id))
    topics = Topics(options.fleet, options.topic_prefix)
    return options.tapping.make(link, state, topics, eval_limit=options.eval_limit, waits=not options.data)


def read_records(options: DeviceOptions, agent: str) -> list[Record]:
    """A device's data: a file or folder, or its share of a built-in set.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    if not options.data:
        raise UsageError(
            "a device needs data", fix="name a file or folder with --data, or topics to learn from with --tap"
        )
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
        tap: gathers more of it.
    """

    records: Sequence[Record]
    tokenizers: "Tokenizers"
    eval_limit: int
    tap: Tap | None = None

    @property
    def digest(self) -> str:
        """Changes when the data does."""
        return self.tap.digest if self.tap is not None else ""

    def tokenized(self, settings: TrainingSettings) -> tuple[list[Tokens], list[Tokens]]:
        """Sequences to train on, and those that are held out.

        Raises:
            UsageError: there are too few, or none can be held out.
        """
        gathered = self.tap.records() if self.tap is not None else []
        tokenizer = self.tokenizers.take()
        train: list[Tokens] = []
        held_out: list[Tokens] = []
        for records in filter(None, (self.records, gathered)):
            learnt, scored = tokenize(
                records,
                tokenizer,
                sequence_length=settings.sequence_length,
                batch_size=settings.batch_size if records is self.records else 1,
                seed=settings.seed,
                eval_limit=self.eval_limit,
            )
            train += learnt
            held_out += scored
        apart = set(held_out)
        train = [tokens for tokens in train if tokens not in apart]
        # What has been gathered so far may not fill a batch: then some of it is in there twice.
        short = max(0, settings.batch_size - len(train))
        return [*train, *itertools.islice(itertools.cycle(train), short)], held_out


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
    digest = ""  # of the data that is in it

    def load(settings: TrainingSettings) -> DeviceWork:
        nonlocal digest
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
        elif digest != corpus.digest:
            made[settings].batches = _batches(settings)
            trim_memory()
        digest = corpus.digest
        return made[settings]

    def _batches(settings: TrainingSettings) -> Batches:
        train, held_out = corpus.tokenized(settings)
        return Batches(
            train,
            held_out,
            seed=settings.seed,
            device=device,
            batch_size=settings.batch_size,
            micro_batches=settings.micro_batches,
        )

    return load
