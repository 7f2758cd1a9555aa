"""Fleets in memory of the roles that the commands make, from the files that a run left."""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

from iotsplit.datasets import partition
from iotsplit.datasets.records import Record, read, write_jsonl
from iotsplit.fleet.output import to_toml
from iotsplit.options import parse
from iotsplit.plan import Tier
from iotsplit.role import Local
from iotsplit.settings import FleetSettings, TrainingSettings
from iotsplit.states import Event, Metrics
from iotsplit.tensors import adapters
from iotsplit.tensors.models import describe
from iotsplit_cloud import command as cloud
from iotsplit_cloud.role import CloudRole
from iotsplit_cloud.store import Store
from iotsplit_device import command as device
from iotsplit_device.role import DeviceRole
from iotsplit_device.tokens import Tokens
from iotsplit_device.work import DeviceWork
from iotsplit_edge import command as edge
from iotsplit_edge.role import EdgeRole
from tests.support import Fleet

P = ParamSpec("P")
T = TypeVar("T")

EVAL_LIMIT = device.DeviceOptions(broker="").eval_limit


_loading = threading.Lock()


def one_at_a_time(load: Callable[P, T]) -> Callable[P, T]:
    """The same for agents that are threads: what loads a part changes torch for the whole process."""

    def alone(*args: P.args, **named: P.kwargs) -> T:
        with _loading:
            return load(*args, **named)

    return alone


def texts_of(directory: Path, devices: Sequence[str]) -> Mapping[str, Sequence[Record]]:
    """Records of made-up texts for each device."""
    directory.mkdir()
    for name in devices:
        (directory / f"{name}.txt").write_text(f"the {name} is too hot today\n" * 60)
    return partition.load(str(directory), devices=len(devices))


def lay_out(
    directory: Path,
    shares: Mapping[str, Sequence[Record]],
    training: TrainingSettings,
    members: FleetSettings,
) -> Path:
    """What a run leaves in its directory before it starts anybody: its data and its settings."""
    (directory / "data").mkdir(parents=True)
    for name, records in shares.items():
        write_jsonl(directory / "data" / f"{name}.jsonl", records)
    (directory / "fleet.toml").write_text(to_toml(training, members))
    return directory


class RealFleet(Fleet):
    """The fleet of a ``run`` again, in memory.

    Args:
        model: directory with a tokenizer.
        ran: output directory of the run: its data and its settings.
        output: where this fleet's cloud writes.
        words: options of every agent: where the broker is, and what it allows.
    """

    def __init__(
        self, model: Path, ran: Path, output: Path, words: Sequence[str] = ("--broker=mqtt://127.0.0.1",)
    ) -> None:
        self.words = words
        given = [f"--config={ran / 'fleet.toml'}", f"--output={output}", f"--model={model}"]
        self._options = parse(cloud.CloudOptions, [*given, *words], name="iotsplit cloud")
        self._data = ran / "data"
        self._peft = adapters.peft_config(model, self._options.training, base=str(model))
        self._store = Store(
            output,
            agent="cloud",
            settings=self._options.training,
            model=describe(model).fingerprint,
            peft=self._peft,
        )
        devices: dict[str, list[Tokens]] = {file.stem: [] for file in sorted(self._data.glob("*.jsonl"))}
        super().__init__(model, self._options.training, devices, edges=self._options.members.edges)

    @property
    def training(self) -> TrainingSettings:
        """The run's settings."""
        return self._options.training

    def make_cloud(self, fleet: FleetSettings, run: str = "") -> CloudRole:
        del fleet, run  # the run's own
        birth = self._birth("cloud", Tier.CLOUD)
        return cloud.make_role(
            birth, self._model, self._info, options=self._options, peft=self._peft, saved=self._store.load()
        )

    def make_edge(self, name: str) -> EdgeRole:
        loader = edge.make_loader(self._model, self._info)
        return EdgeRole(birth=self._birth(name, Tier.EDGE), load=one_at_a_time(loader))

    def make_device(self, name: str, train: list[Tokens]) -> DeviceRole:
        del train  # from the file
        return DeviceRole(birth=self._birth(name, Tier.DEVICE), load=one_at_a_time(self.loader(name)))

    def loader(self, name: str) -> Callable[[TrainingSettings], DeviceWork]:
        """What makes a device's part and data ready."""
        records = read(self._data / f"{name}.jsonl")
        corpus = device.Corpus(
            records=records, tokenizers=device.Tokenizers(self._model), eval_limit=EVAL_LIMIT
        )
        return device.make_loader(self._model, self._info, corpus, device=name)

    def close(self) -> None:
        self._store.close("done")

    def _keep(self, kept: Local | Metrics | Event) -> None:
        super()._keep(kept)
        self._store.take(kept)
