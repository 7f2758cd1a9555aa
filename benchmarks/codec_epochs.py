"""What differences to the last epoch cost in bits and loss: each side keeps what it last had of a sample.

    python -m benchmarks.codec_epochs --data plant --ways int8 cached:int2 d4k2:int2 --epochs 5 --seeds 0

A model is trained in one process for some epochs on the same samples, with its boundary tensors sent as named.
Beside the names of `codec_variants` there are ways that send the first time B bits (`int4` or `int8`), and
later an approximation of the difference to what the other side has; what it leaves stays in the next:

=======  =================================================================================================
cached   what `--codec int4 --codec-cache` sends (`iotsplit.tensors.changes`)
`dBkR`   of each sample the best one of rank R; rows of both factors have 8 bits, and a scale
`dBsR`   R coefficients of a token in a basis that samples share, 4 bits each; the basis has 8 bits, is that
         of the differences of the last four steps, and is sent with every fourth step
=======  =================================================================================================

Prints held-out loss, the bits of a value over all epochs, how much a tensor has changed since the epoch before,
and what the approximation leaves of that (medians).
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.codec_loss import Run, batches_of, bits, tell, way
from iotsplit.runtime import serve
from iotsplit.settings import Codec, TrainingSettings
from iotsplit.tensors import changes
from iotsplit.tensors.models import resolve
from iotsplit.tensors.remembered import STORED
from iotsplit_device.batches import MicroBatch

DIFFERENCES = re.compile(r"d([48])([ks])([0-9]+)")
SCALE_BITS = 16
FACTOR_BITS = 8
COEFFICIENT_BITS = 4
BASIS_STEPS = 4


class Differences:
    """Sends what has changed of a sample since it was sent last.

    Args:
        name: of the table.
        seed: of the first codec, if it needs one.
    """

    def __init__(self, name: str, seed: int) -> None:
        found = DIFFERENCES.fullmatch(name)
        assert found is not None
        self._first = f"int{found[1]}"
        rank = int(found[3])
        self._later: OfEach | Shared = OfEach(rank) if found[2] == "k" else Shared(rank)
        self._around = way(self._first, seed)
        self._held: dict[bytes, torch.Tensor] = {}
        self.sent_bits = 0.0
        self.values = 0
        self.ratios: list[float] = []  # norm of a difference, relative to the tensor's
        self.left: list[float] = []  # what of it the approximation leaves

    def __call__(self, tensor: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        out = torch.zeros_like(tensor)
        lengths = [int(length) for length in batch.mask.sum(dim=1)]
        samples = [batch.ids[row, :length].numpy().tobytes() for row, length in enumerate(lengths)]
        values = [tensor[row, :length].detach() for row, length in enumerate(lengths)]
        known = [row for row, sample in enumerate(samples) if sample in self._held]
        changes = {row: _scaled(values[row], self._held[samples[row]]) for row in known}
        steps, cost = self._later(changes)
        self.sent_bits += cost
        for row, (sample, value) in enumerate(zip(samples, values, strict=True)):
            read = self._read(value, self._held.get(sample), steps.get(row))
            out[row, : lengths[row]] = self._held[sample] = read
            self.values += value.numel()
        return out

    def _read(self, value: torch.Tensor, held: torch.Tensor | None, step: torch.Tensor | None) -> torch.Tensor:
        if held is None or step is None:
            self.sent_bits += bits(self._first) * value.numel()
            return self._around(value.unsqueeze(0)).squeeze(0)
        read = held + step * _norms(held)
        change = float((value - held).norm())
        self.ratios.append(change / max(1e-12, float(value.norm())))
        self.left.append(float((value - read).norm()) / max(1e-12, change))
        return read


def _norms(held: torch.Tensor) -> torch.Tensor:
    """Of each token: some are a thousand times longer than others, and would be all that counts."""
    norms: torch.Tensor = torch.linalg.vector_norm(held, dim=1, keepdim=True)
    return norms.clamp(min=1e-12)


def _scaled(value: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
    return (value - held) / _norms(held)


class OfEach:
    """The best approximation of each difference of a rank."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def __call__(self, changes: dict[int, torch.Tensor]) -> tuple[dict[int, torch.Tensor], float]:
        """What arrives of the differences, and its bits."""
        steps, cost = {}, 0.0
        for row, change in changes.items():
            rank = min(self._rank, *change.shape)
            u, s, vt = torch.linalg.svd(change, full_matrices=False)
            left, right = u[:, :rank] * s[:rank].sqrt(), vt[:rank] * s[:rank].sqrt().unsqueeze(1)
            steps[row] = _rounded(left.T, FACTOR_BITS).T @ _rounded(right, FACTOR_BITS)
            cost += rank * (sum(change.shape) * FACTOR_BITS + 2 * SCALE_BITS)
        return steps, cost


class Shared:
    """Coefficients in a basis of all differences of late."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._recent: list[torch.Tensor] = []
        self._basis = torch.zeros(0, 0)
        self._steps = 0

    def __call__(self, changes: dict[int, torch.Tensor]) -> tuple[dict[int, torch.Tensor], float]:
        """What arrives of the differences, and its bits."""
        if not changes:
            return {}, 0.0
        cost = 0.0
        self._recent = [*self._recent[1 - BASIS_STEPS :], torch.cat(list(changes.values()))]
        if self._steps % BASIS_STEPS == 0:
            directions = torch.linalg.svd(torch.cat(self._recent), full_matrices=False)[2][: self._rank]
            self._basis = _rounded(directions, FACTOR_BITS)  # (rank, width)
            cost += self._basis.numel() * FACTOR_BITS + len(self._basis) * SCALE_BITS
        self._steps += 1
        steps = {}
        for row, change in changes.items():
            coefficients = change @ self._basis.T  # (time, rank)
            steps[row] = _rounded(coefficients.T, COEFFICIENT_BITS).T @ self._basis
            cost += coefficients.numel() * COEFFICIENT_BITS + len(self._basis) * SCALE_BITS
        return steps, cost


def _rounded(rows: torch.Tensor, depth: int) -> torch.Tensor:
    largest = 2 ** (depth - 1) - 1
    scales: torch.Tensor = (rows.abs().amax(dim=1, keepdim=True) / largest).clamp(min=1e-30)
    return torch.round(rows / scales) * scales


class Cached:
    """What the fleet sends of samples that both ends remember."""

    def __init__(self) -> None:
        self._around = way("int4", 0)
        self._held: dict[bytes, bytes] = {}
        self.sent_bits, self.values = 0.0, 0
        self.ratios: list[float] = []
        self.left: list[float] = []

    def __call__(self, tensor: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        out = torch.zeros_like(tensor)
        for row, length in enumerate(int(each) for each in batch.mask.sum(dim=1)):
            sample, value = (
                batch.ids[row, :length].numpy().tobytes(),
                tensor[row, :length].detach().contiguous(),
            )
            read = self._read(value, self._held.get(sample))
            self._held[sample] = STORED.pack(read.contiguous())
            self.values += value.numel()
            out[row, :length] = read
        return out

    def _read(self, value: torch.Tensor, stored: bytes | None) -> torch.Tensor:
        if stored is None:
            self.sent_bits += bits("int4") * value.numel()
            return self._around(value)
        held = torch.from_numpy(STORED.unpack(stored, *value.shape))
        data = changes.pack(value, held)
        read = changes.unpack(data, held)
        self.sent_bits += 8 * len(data)
        change = float((value - held).norm())
        self.ratios.append(change / max(1e-12, float(value.norm())))
        self.left.append(float((value - read).norm()) / max(1e-12, change))
        return read


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


Sender = Differences | Cached | Stateless


def sender(name: str, seed: int) -> Sender:
    """What sends by that name."""
    if name == "cached":
        return Cached()
    return Differences(name, seed) if DIFFERENCES.fullmatch(name) else Stateless(name, seed)


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
