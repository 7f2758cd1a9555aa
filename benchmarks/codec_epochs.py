"""What differences to the last epoch cost in bits and loss: each side keeps what it last had of a sample.

    python -m benchmarks.codec_epochs --data plant --ways int8 cached:int2 d4k2:int2 --epochs 5 --seeds 0

A model is trained in one process for some epochs on the same samples, with its boundary tensors sent as named.
Beside the names of `codec_variants` there are ways that send the first time B bits (`int4` or `int8`), and
later an approximation of the difference to what the other side has; what it leaves stays in the next:

=======  =================================================================================================
cached   what `--codec int4 --codec-cache` sends (`iotsplit.tensors.changes`). `cached50`: signs of only the
         50 % of the blocks that have changed most; `cached25m16`: so, after a linear map of rank 16 that all
         samples share, and which is sent with every fourth step; `cached@50`: half of the samples have room
`dBkR`   of each sample the best one of rank R; rows of both factors have 8 bits, and a scale
`dBsR`   R coefficients of a token in a basis that samples share, 4 bits each; the basis has 8 bits, is that
         of the differences of the last four steps, and is sent with every fourth step
=======  =================================================================================================

Prints held-out loss, the bits of a value over all epochs, how much a tensor has changed since the epoch before,
and what the approximation leaves of that (medians).
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import codec_differences
from benchmarks.codec_loss import Run, batches_of, bits, tell, way
from iotsplit.runtime import serve
from iotsplit.settings import Codec, TrainingSettings
from iotsplit.tensors.models import resolve
from iotsplit_device.batches import MicroBatch


class Stateless:
    """One of the other ways."""

    def __init__(self, name: str, seed: int) -> None:
        self._around, self._bits = way(name, seed), bits(name)
        self.sent_bits, self.values = 0.0, 0
        self.ratios: list[float] = []
        self.left: list[float] = []

    def __call__(self, tensor: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        count = int(batch.mask.sum()) * tensor.shape[-1]
        self.sent_bits += self._bits * count
        self.values += count
        return self._around(tensor)


Sender = codec_differences.Differences | codec_differences.Cached | Stateless


def sender(name: str, seed: int) -> Sender:
    """What sends by that name."""
    return codec_differences.sender(name, seed) or Stateless(name, seed)


class Bus(torch.autograd.Function):
    """A boundary: activations one way, gradients the other."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, run: "EpochRun", at: int) -> torch.Tensor:
        ctx.run, ctx.at = run, at
        return run.up[at](hidden, run.batch) if run.training else run.evaluate(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return ctx.run.down[ctx.at](gradients[0], ctx.run.batch), None, None


class EpochRun(Run):
    """A model with LoRA and a bus with a memory at each cut."""

    def __init__(self, directory: Path, settings: TrainingSettings, up: str, down: str) -> None:
        super().__init__(directory, settings, "fp32", "fp32")
        self.batch: Any = None
        self.training = False
        plain = Codec.FP32 if up == "fp32" else Codec.INT8
        self.evaluate: Callable[[torch.Tensor], torch.Tensor] = way(plain, settings.seed)
        self.up = [sender(up, settings.seed) for _ in settings.cut]
        self.down = [sender(down, settings.seed) for _ in settings.cut]
        whole: Any = self.model.get_base_model()
        for at, cut in enumerate(settings.cut):
            whole.model.layers[cut].register_forward_pre_hook(self._hook(at))

    def loss_sum(self, batch: MicroBatch) -> torch.Tensor:
        self.batch = batch
        return super().loss_sum(batch)

    def _hook(self, at: int) -> Callable[[Any, tuple[Any, ...]], tuple[Any, ...]]:
        send: Any = Bus.apply
        return lambda _, inputs: (send(inputs[0], self, at), *inputs[1:])


def spent(senders: list[Sender]) -> float:
    """Bits for a value."""
    return sum(each.sent_bits for each in senders) / max(1, sum(each.values for each in senders))


def middle(values: list[float]) -> float:
    """The median; not a number of none."""
    return float(torch.tensor(values).median()) if values else float("nan")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", default="plant")
    parser.add_argument("--ways", nargs="+", default=["fp32", "int8", "int4", "d4k4:r3"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="a CSV file; rows come in one by one")
    return parser.parse_args()


def trained(options: argparse.Namespace, directory: Path, name: str, seed: int) -> dict[str, Any]:
    """What a run came to."""
    up, _, down = name.partition(":")
    steps = options.epochs * options.samples // 4
    settings = TrainingSettings(
        seed=seed,
        local_steps=steps,
        rounds=1,
        micro_batches=1,
        sequence_length=options.sequence_length,
        learning_rate=options.learning_rate,
    )
    batches = batches_of(options.data, directory, settings, most=options.samples)
    run = EpochRun(directory, settings, up, down or up)
    before = run.score(batches.evaluation())
    for step in range(steps):
        run.training = True
        run.step(batches.step(1, step, local_steps=steps))
        run.training = False
    return {
        "data": Path(options.data).name,
        "seed": seed,
        "way": name,
        "up_bits": spent(run.up),
        "down_bits": spent(run.down),
        "before": before,
        "after": run.score(batches.evaluation()),
        "changed": middle([ratio for each in run.up for ratio in each.ratios]),
        "left": middle([share for each in run.up for share in each.left]),
    }


def main() -> None:
    """Run everything and print a row for each."""
    options = parsed()
    torch.set_num_threads(options.threads)
    directory = resolve(options.model, serve.cache_directory())
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        for name in options.ways:
            rows.append(trained(options, directory, name, seed))
            tell(rows, options.output)


if __name__ == "__main__":
    main()
