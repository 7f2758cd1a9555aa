"""What a codec at the two cuts costs in loss: a model trained in one process, with its boundary tensors packed.

    python benchmarks/codec_loss.py --data plant ../logs --codecs fp32 int8 int4 int4:int8 --seeds 0 1

Only the codec differs between the runs of a data set and seed. Prints held-out loss before and after, the
difference to fp32, and the bits per value of each way. Beside the codecs, those of `codec_variants` are known.
"""

import argparse
import csv
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from benchmarks import codec_variants
from iotsplit.datasets import partition
from iotsplit.runtime import serve
from iotsplit.settings import Codec, TrainingSettings
from iotsplit.tensors.compression import SCHEMES, pack, unpack
from iotsplit.tensors.models import resolve
from iotsplit_device.batches import Batches, MicroBatch
from iotsplit_device.tokens import tokenize
from tests.flows.monolith import Monolith

WIDTH = 576


Way = Callable[[torch.Tensor], torch.Tensor]


def way(name: str, seed: int) -> Way:
    """What the other side of the bus gets of a tensor."""
    if codec_variants.is_variant(name):
        return codec_variants.make(name, seed=seed)
    codec = Codec(name)
    return lambda tensor: unpack(pack(tensor, codec), shape=tuple(tensor.shape), codec=codec)


class Bus(torch.autograd.Function):
    """A boundary: activations one way, gradients the other."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, up: Way, down: Way) -> torch.Tensor:
        ctx.down = down
        return up(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return ctx.down(gradients[0]), None, None


class Run(Monolith):
    """A model with LoRA and a bus at each cut."""

    def __init__(self, directory: Path, settings: TrainingSettings, up: str, down: str) -> None:
        super().__init__(directory, settings)
        whole: Any = self.model.get_base_model()
        for cut in settings.cut:
            whole.model.layers[cut].register_forward_pre_hook(
                bus(way(up, settings.seed), way(down, settings.seed))
            )

    def score(self, batches: Sequence[MicroBatch]) -> float:
        with torch.no_grad():
            total = sum(float(self.loss_sum(batch)) for batch in batches)
        return total / sum(batch.tokens for batch in batches)


def bus(up: Way, down: Way) -> Callable[[Any, tuple[Any, ...]], tuple[Any, ...]]:
    """A hook before a layer."""
    send: Any = Bus.apply
    return lambda _, inputs: (send(inputs[0], up, down), *inputs[1:])


def batches_of(data: str, directory: Path, settings: TrainingSettings, *, most: int | None = None) -> Batches:
    """All devices' records as one, or the first training sequences of them."""
    records = [record for share in partition.load(data).values() for record in share]
    length, size = settings.sequence_length, settings.batch_size
    tokenizer = AutoTokenizer.from_pretrained(directory)
    train, held_out = tokenize(records, tokenizer, sequence_length=length, batch_size=size, seed=settings.seed)
    return Batches(
        train[:most],
        held_out,
        seed=settings.seed,
        device="all",
        batch_size=size,
        micro_batches=settings.micro_batches,
    )


def bits(name: str) -> float:
    """Bits per value at this width."""
    if codec_variants.is_variant(name):
        return codec_variants.bits(name, WIDTH)
    return 8 * SCHEMES[Codec(name)].size_bytes(1000, WIDTH) / (1000 * WIDTH)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", nargs="+", default=["plant"])
    parser.add_argument("--codecs", nargs="+", default=["fp32", "int8", "int4", "int4:int8"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="a CSV file; rows come in one by one")
    return parser.parse_args()


def main() -> None:
    """Run everything and print a table."""
    options = parsed()
    torch.set_num_threads(options.threads)
    directory = resolve(options.model, serve.cache_directory())
    rows: list[dict[str, Any]] = []
    for data in options.data:
        for seed in options.seeds:
            for codec in options.codecs:
                settings = TrainingSettings(seed=seed, local_steps=options.steps, rounds=1)
                up, _, down = codec.partition(":")
                batches = batches_of(data, directory, settings)
                run = Run(directory, settings, up, down or up)
                before = run.score(batches.evaluation())
                for step in range(options.steps):
                    run.step(batches.step(1, step, local_steps=options.steps))
                row = {"data": Path(data).name, "seed": seed, "codec": codec}
                row |= {"up_bits": bits(up), "down_bits": bits(down or up)}
                row |= {"before": before, "after": run.score(batches.evaluation())}
                rows.append(row)
                tell(rows, options.output)
    summary(rows)


def tell(rows: Sequence[dict[str, Any]], path: Path | None) -> None:
    """Print the last row, and write all so far."""
    print("  ".join(f"{v:.4f}" if isinstance(v, float) else str(v) for v in rows[-1].values()), flush=True)
    if path is None:
        return
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def summary(rows: Sequence[dict[str, Any]]) -> None:
    """Differences to fp32 of the same data and seed."""
    exact = {(row["data"], row["seed"]): row["after"] for row in rows if row["codec"] == "fp32"}
    for codec in dict.fromkeys(row["codec"] for row in rows):
        gaps = [
            row["after"] - exact[row["data"], row["seed"]]
            for row in rows
            if row["codec"] == codec and (row["data"], row["seed"]) in exact
        ]
        if gaps:
            spread = f"{min(gaps):+.4f} to {max(gaps):+.4f}"
            print(f"{codec:12} loss - fp32: mean {statistics.mean(gaps):+.4f}, {spread}")


if __name__ == "__main__":
    main()
