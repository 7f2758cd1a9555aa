"""What the encoding of LoRA updates costs in loss over several rounds, and saves in bytes.

    python benchmarks/update_codec.py --data plant --devices 3 --rounds 4 --seeds 0 1

The devices of the data set train one after the other in one process, from the same adapter version; what each
has trained of the layers below the second cut goes through the codec, and the mean is the next version.
Only the codec differs between the runs of a data set and seed. Prints the bytes of an update of device and edge
together, the held-out loss after the rounds, and its difference to the first codec's.
"""

import argparse
import functools
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from iotsplit.datasets import partition
from iotsplit.runtime import serve
from iotsplit.settings import TrainingSettings, UpdateCodec
from iotsplit.tensors import adapters, aggregation, updates
from iotsplit.tensors.models import resolve
from iotsplit_device.batches import Batches
from iotsplit_device.tokens import tokenize
from tests.flows.monolith import Monolith


def batches_by_device(data: str, directory: Path, settings: TrainingSettings, most: int) -> list[Batches]:
    """The first devices of a data set."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    length, size = settings.sequence_length, settings.batch_size
    found = []
    for name, records in sorted(partition.load(data).items())[:most]:
        train, held_out = tokenize(
            records, tokenizer, sequence_length=length, batch_size=size, seed=settings.seed
        )
        found.append(
            Batches(train, held_out, seed=settings.seed, device=name, batch_size=size, micro_batches=1)
        )
    return found


class Rounds(Monolith):
    """One model that stands for each device in turn."""

    def score(self, devices: list[Batches]) -> float:
        """Held-out loss over all devices."""
        with torch.no_grad():
            every = [batch for each in devices for batch in each.evaluation()]
            return sum(float(self.loss_sum(batch)) for batch in every) / sum(batch.tokens for batch in every)

    def values(self) -> dict[str, torch.Tensor]:
        """A copy of the parameters."""
        return {name: value.detach().clone() for name, value in self.parameters.items()}

    def put(self, values: dict[str, torch.Tensor]) -> None:
        """Begin with a version, and with an optimizer that knows nothing."""
        for name, parameter in self.parameters.items():
            parameter.data.copy_(values[name])
        self._optimizer = adapters.make_optimizer(self.parameters, self._settings)

    def round(self, number: int, devices: list[Batches], codec: UpdateCodec) -> int:
        """Train and average; gives the bytes of one device's update."""
        s, start, brought, size = self._settings, self.values(), [], 0
        below = [name for name in start if int(name.split(".layers.")[1].split(".")[0]) < s.cut[1]]
        base = {name: start[name] for name in below}
        for device in devices:
            self.put(start)
            for step in range(s.local_steps):
                self.step(device.step(number, step, local_steps=s.local_steps))
            values = self.values()
            data = updates.encode({name: values[name] for name in below}, base, codec)
            size = len(data)
            brought.append(values | updates.decode(data, base, codec))
        self.put(aggregation.fedavg(brought, [1.0] * len(brought)))
        return size


@functools.cache
def directory_of(model: str) -> Path:
    """Where the model is."""
    return resolve(model, serve.cache_directory())


def run(data: str, settings: TrainingSettings, options: argparse.Namespace) -> dict[str, Any]:
    """All rounds with one codec."""
    directory = directory_of(options.model)
    devices = batches_by_device(data, directory, settings, options.devices)
    model = Rounds(directory, settings)
    row: dict[str, Any] = {"data": Path(data).name, "seed": settings.seed, "codec": settings.update_codec}
    for number in range(1, settings.rounds + 1):
        row["bytes"] = model.round(number, devices, settings.update_codec)
    return row | {"after": model.score(devices)}


def main() -> None:
    """Run everything, a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", nargs="+", default=["plant"])
    parser.add_argument("--codecs", nargs="+", type=UpdateCodec, default=list(UpdateCodec))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--devices", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for data in options.data:
        for seed in options.seeds:
            exact = None
            for codec in options.codecs:
                settings = TrainingSettings(
                    seed=seed,
                    rounds=options.rounds,
                    local_steps=options.steps,
                    batch_size=options.batch,
                    micro_batches=1,
                    update_codec=codec,
                )
                row = run(data, settings, options)
                exact = row["after"] if exact is None else exact
                shown = [f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()]
                print("  ".join(shown), f" {row['after'] - exact:+.4f}", flush=True)


if __name__ == "__main__":
    main()
