"""What can be chosen of a comparison."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from iotsplit.bench.cells import ALL, NO_LIMIT, Cell, grid
from iotsplit.bench.schemes import Scheme
from iotsplit.datasets import partition
from iotsplit.errors import UsageError
from iotsplit.flags import suggest
from iotsplit.options import CommonOptions
from iotsplit.settings import TrainingSettings, at_least

QUICK_TRAINING = TrainingSettings(
    rounds=2, local_steps=4, target_modules=("all-linear",), learning_rate=1e-3, sequence_length=64
)


@dataclass(frozen=True, kw_only=True)
class BenchOptions(CommonOptions):
    """The comparison.

    Trains alike with several schemes, on real processes over MQTT, and shows what each takes and comes to.
    Every scheme trains on as many batches of the same data; the other training options hold for all of them.

    Args:
        quick: The defaults: one setting, minutes.
        paper: Instead, a paper's settings: four ways to deal data, three amounts, sizes and seeds; hours.
        model: Packaged name (smollm2), directory, .gguf file or hub id.
        data: Built-in set (plant, python-reference, fortunes), folder with a file per device, or a file.
        columns: Columns or keys of the data: one of texts, or two of prompts and completions.
        schemes: Which: splitllm, sfl, sl, fl, central.
        partitions: How data is dealt: files, iid, dirichlet:0.3.
        samples: Training records of each device: numbers, or all.
        devices: Numbers of devices.
        edges: Edges of splitllm.
        links: Rates of each device's link in Mbit/s up and down, or none for this machine's.
        seeds: Seeds; of several, medians are shown with least and most.
        held_out: Most held-out records of each device.
        prompts: Held-out prompts that are answered with each adapter; BLEU is shown of eight or more.
        threads: CPU threads of each agent.
        gradient_checkpointing: Compute layers again for the backward pass: same bits, less memory, slower.
        return_memory: Edges and cloud give freed memory back at once: same bits, less memory, slower.
        ignore_memory: Try what is expected to need more memory than is free.
        resume: Go on with the comparison that is in the output directory, whatever it is of.
        fresh: Start over in that directory.
        output: Directory for the page, pictures, table, and a directory for each run.
    """

    quick: bool = False
    paper: bool = False
    model: str = "smollm2"
    data: str = "plant"
    columns: tuple[str, ...] = ()
    schemes: tuple[str, ...] = tuple(Scheme)
    partitions: tuple[str, ...] = ("files",)
    samples: tuple[str, ...] = ("all",)
    devices: tuple[int, ...] = (4,)
    edges: int = 2
    links: tuple[str, ...] = ("none",)
    seeds: tuple[int, ...] = (0,)
    held_out: int = 6
    prompts: int = 1
    threads: int = 1
    gradient_checkpointing: bool = False
    return_memory: bool = False
    ignore_memory: bool = False
    resume: bool = False
    fresh: bool = False
    output: Path = Path("bench")
    training: TrainingSettings = field(default=QUICK_TRAINING)

    def __post_init__(self) -> None:
        """Refuse what cannot be run before anything begins.

        Raises:
            UsageError: a scheme or number is none.
        """
        for name, check in _CHECKS.items():
            for each in getattr(self, name):
                check(each)
        for name in ("schemes", "partitions", "samples", "devices", "links", "seeds"):
            if not getattr(self, name):
                raise UsageError(f"{name} is empty", fix=f"leave --{name} out, or name one")
        at_least("devices", min(self.devices), 1)
        at_least("seeds", min(self.seeds), 0)
        for name, least in {"edges": 1, "held_out": 1, "threads": 1, "prompts": 0}.items():
            at_least(name, getattr(self, name), least)
        if self.quick and self.paper:
            raise UsageError("--quick and --paper are two comparisons", fix="use one of them")
        if self.resume and self.fresh:
            raise UsageError("--resume goes on and --fresh starts over", fix="use one of them")

    @property
    def cells(self) -> list[Cell]:
        """All runs."""
        return grid(
            [Scheme(each) for each in self.schemes],
            partitions=self.partitions,
            samples=[ALL if each == "all" else int(each) for each in self.samples],
            devices=self.devices,
            links=[NO_LIMIT if each == "none" else float(each) for each in self.links],
            seeds=self.seeds,
        )


def _check_scheme(scheme: str) -> None:
    if scheme not in set(Scheme):
        raise UsageError(
            f"scheme {scheme!r} is unknown{suggest(scheme, list(Scheme))}",
            fix=f"use some of {', '.join(Scheme)}",
        )


def _check_amount(amount: str) -> None:
    if amount != "all" and not (amount.isdecimal() and int(amount) > 0):
        raise UsageError(f"samples {amount!r} is no number", fix="use numbers such as 32,128, or all")


def _check_link(link: str) -> None:
    if link == "none":
        return
    try:
        rate = float(link)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise UsageError(f"links {link!r} is no rate", fix="use Mbit/s such as 1,5,20, or none")


_CHECKS = {
    "schemes": _check_scheme,
    "partitions": partition.check,
    "samples": _check_amount,
    "links": _check_link,
}


@dataclass(frozen=True, kw_only=True)
class PaperOptions(BenchOptions):
    """The comparison, with a paper's settings.

    Args:
        partitions: How data is dealt.
        samples: Training records of each device: numbers, or all.
        devices: Numbers of devices.
        seeds: Seeds.
        held_out: Most held-out records of each device.
        prompts: Held-out prompts that are answered with each adapter.
    """

    partitions: tuple[str, ...] = ("files", "iid", "dirichlet:0.3", "dirichlet:0.1")
    samples: tuple[str, ...] = ("32", "128", "all")
    devices: tuple[int, ...] = (2, 4, 8)
    seeds: tuple[int, ...] = (0, 1, 2)
    held_out: int = 24
    prompts: int = 24
    training: TrainingSettings = field(
        default=replace(QUICK_TRAINING, rounds=5, local_steps=10, sequence_length=128)
    )
