"""What one pass through the frozen weights for several sessions would gain, and what it costs in exactness.

    python -m benchmarks.batching --sessions 2 4 --threads 1 2

A part computes forward and backward of a micro-batch of each session, as it does: one after the other, each
with its own LoRA. Then all at once: the frozen weights see one long batch, LoRA is a grouped product with each
session's matrices. Prints medians of both, measured in turns, their ratio, and how far the results are apart.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from iotsplit.plan import Tier, cut_model
from iotsplit.runtime import serve
from iotsplit.settings import TrainingSettings
from iotsplit.tensors import adapters
from iotsplit.tensors.models import describe, resolve
from iotsplit.tensors.parts import Part, load_part

Result = tuple[torch.Tensor, list[torch.Tensor]]


class Grouped(nn.Module):
    """A LoRA matrix for each session, in place of one.

    Args:
        weights: (outer, inner) of each session; they are stacked.
    """

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.stacked = nn.Parameter(torch.stack([each.detach() for each in weights]))

    @property
    def weight(self) -> torch.Tensor:
        """PEFT looks at the type of it."""
        return self.stacked

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(sessions x batch, time, inner) to (sessions x batch, time, outer)."""
        sessions = len(self.stacked)
        rows = inputs.reshape(sessions, -1, inputs.shape[-1])
        return torch.bmm(rows, self.stacked.transpose(1, 2)).reshape(*inputs.shape[:-1], -1)


class Bench:
    """A micro-batch for each session.

    Args:
        part: with LoRA, whose matrices change hands.
        together: the same part, which gets those of all sessions.
        sessions: how many.
        shape: (batch, time, width) of a micro-batch.
    """

    def __init__(self, part: Part, together: Part, sessions: int, shape: tuple[int, int, int]) -> None:
        self._part, self._together = part, together
        self._inputs = [torch.randn(shape) for _ in range(sessions)]
        self._gradients = [torch.randn(shape) for _ in range(sessions)]
        self._mask = torch.ones(shape[:2], dtype=torch.int64)
        names = adapters.parameters(part)
        self._own = [
            {name: nn.Parameter(0.02 * torch.randn(each.shape)) for name, each in names.items()}
            for _ in range(sessions)
        ]
        self._grouped = self._group()

    def one_by_one(self) -> Result:
        """As the product does it."""
        outputs, found = [], []
        for own, inputs, gradient in zip(self._own, self._inputs, self._gradients, strict=True):
            adapters.attach(self._part, own)
            hidden = self._part(inputs.requires_grad_(), self._mask)
            torch.autograd.backward(hidden, gradient)
            outputs.append(hidden.detach())
            found.append(_taken(inputs, list(own.values())))
        together = [torch.stack(each) for each in zip(*found, strict=True)]
        return torch.cat(outputs), together

    def at_once(self) -> Result:
        """With the matrices of all sessions."""
        inputs = torch.cat([each.detach() for each in self._inputs]).requires_grad_()
        hidden = self._together(inputs, self._mask.repeat(len(self._own), 1))
        torch.autograd.backward(hidden, torch.cat(self._gradients))
        taken = _taken(inputs, [each.stacked for each in self._grouped])
        taken[0] = taken[0].reshape(len(self._own), *self._inputs[0].shape)
        return hidden.detach(), taken

    def _group(self) -> list[Grouped]:
        """Put a grouped matrix in place of each LoRA matrix; in the order of their names."""
        made = []
        for name in adapters.parameters(self._together):
            layer, _, rest = name.removeprefix(f"base_model.model.{self._part.layers_name}.").partition(".")
            # Such as self_attn.q_proj.lora_A, which PEFT keeps by the adapter's name, then weight.
            module = self._together.layers[int(layer) - self._part.plan.first]
            slots = module.get_submodule(rest.removesuffix(".weight"))
            made.append(Grouped([own[name] for own in self._own]))
            assert isinstance(slots, nn.ModuleDict)
            slots["default"] = made[-1]
        return made


def _taken(inputs: torch.Tensor, parameters: Sequence[nn.Parameter]) -> list[torch.Tensor]:
    """Gradients, which are forgotten."""
    leaves = [inputs, *parameters]
    found = [leaf.grad for leaf in leaves if leaf.grad is not None]
    for leaf in leaves:
        leaf.grad = None
    return found


def _apart(one: Result, other: Result) -> str:
    """Largest difference of outputs and of gradients, each relative to the largest value."""
    pairs = [(one[0], other[0]), *zip(one[1], other[1], strict=True)]
    found = [float((a - b).abs().max() / a.abs().max()) for a, b in pairs]
    return f"hidden {found[0]:.1e}, gradients {max(found[1:]):.1e}"


def _timed(work: Callable[[], Result]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--sessions", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batch", type=int, default=2, help="sequences of a micro-batch")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    settings = TrainingSettings()
    directory = resolve(options.model, serve.cache_directory())
    info = describe(directory)
    plan = cut_model(info.layers, settings.cut, settings.labels)[Tier.EDGE]
    print("sessions  threads  one by one, s  at once, s  gain (10th to 90th percentile)  apart")
    for sessions in options.sessions:
        for threads in options.threads:
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            apart, together = load_part(directory, plan), load_part(directory, plan)
            for part in (apart, together):
                adapters.inject(part, settings)
            shape = (options.batch, options.length, apart.width)
            bench = Bench(apart, together, sessions, shape)
            difference = _apart(bench.one_by_one(), bench.at_once())
            pairs = [(_timed(bench.one_by_one), _timed(bench.at_once)) for _ in range(options.repeats)]
            slow, quick = (statistics.median(each) for each in zip(*pairs, strict=True))
            gains = [one / other for one, other in pairs]
            tenths = statistics.quantiles(gains, n=10)
            spread = f"{statistics.median(gains):.2f} ({tenths[0]:.2f} to {tenths[-1]:.2f})"
            print(f"{sessions:8}{threads:9}{slow:15.2f}{quick:12.2f}  {spread:31}  {difference}", flush=True)


if __name__ == "__main__":
    main()
