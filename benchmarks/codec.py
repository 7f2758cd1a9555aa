"""What codecs cost: time beside the part's own, and bytes on real hidden states and gradients.

    python benchmarks/codec.py --data plant ../logs --repeats 31

One thread. The model runs as its three parts, as in a fleet, on a batch of the data; what crosses the cuts is
encoded by each codec. Times are medians over `--repeats` with 10th and 90th percentile. `encode` is tensor to
bytes and `decode` back, `frame` is bytes to the broker's payloads and `unframe` back, as the mailbox does it,
with LZ4 and checksum; `lz4` is what trying LZ4 takes of it. `share` is the sum of the first four, relative to
forward + backward of the device's part in the same run. `bits` are per value, before LZ4 and on the wire;
`error` is what is lost, relative to the norm.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import lz4.frame
import torch

from benchmarks.codec_loss import batches_of
from iotsplit import chunks
from iotsplit.cache import Cache
from iotsplit.messages import Activation, Gradient, decode_content, encode_content
from iotsplit.plan import Tier, cut_model
from iotsplit.runtime import serve
from iotsplit.settings import Codec, TrainingSettings
from iotsplit.tensors import adapters, remembered
from iotsplit.tensors.compression import pack, pack_integers, relative_error, unpack
from iotsplit.tensors.exchange import Exchange
from iotsplit.tensors.models import describe, resolve
from iotsplit.tensors.parts import Part, load_part
from iotsplit.tensors.remembered import Remembered
from iotsplit_device.batches import MicroBatch

HEAD = chunks.Head(1, "device-1", "device", "edge", 1, 0, 0)


class Tiers:
    """The three parts with LoRA, in one process."""

    def __init__(self, directory: Path, settings: TrainingSettings) -> None:
        whole = adapters.initial(directory, settings)
        # B is zero at first: with something in it gradients are those of an adapter that is at work.
        whole = {n: t + 0.01 * torch.randn(t.shape) if ".lora_B." in n else t for n, t in whole.items()}
        self.parts: list[Part] = []
        for tier in (Tier.DEVICE, Tier.EDGE, Tier.CLOUD):
            plan = cut_model(describe(directory).layers, settings.cut, settings.labels)[tier]
            part = load_part(directory, plan)
            adapters.inject(part, settings)
            adapters.attach(part, adapters.fresh(adapters.select(whole, plan)))
            self.parts.append(part)

    def crossings(self, batch: MicroBatch) -> dict[str, torch.Tensor]:
        """Hidden states and gradients (batch, time, width) of both cuts."""
        device, edge, cloud = self.parts
        first = device(batch.ids, batch.mask).detach().requires_grad_()
        second = edge(first, batch.mask).detach().requires_grad_()
        loss, tokens = cloud.loss(cloud(second, batch.mask), batch.labels)
        torch.autograd.backward(loss / tokens)
        assert second.grad is not None
        torch.autograd.backward(edge(first, batch.mask), second.grad)
        assert first.grad is not None
        return {
            "hidden, device-edge": first.detach(),
            "hidden, edge-cloud": second.detach(),
            "gradient, edge-device": first.grad,
            "gradient, cloud-edge": second.grad,
        }

    def device_step(self, batch: MicroBatch, gradient: torch.Tensor) -> None:
        """Forward and backward of the device's part."""
        torch.autograd.backward(self.parts[0](batch.ids, batch.mask), gradient)


def times(work: Callable[[], object], repeats: int) -> list[float]:
    """Milliseconds of each of so many calls, after two that are not counted."""
    found = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        work()
        found.append(1e3 * (time.perf_counter() - began))
    return found[2:]


def shown(found: Sequence[float]) -> str:
    """Median, and most of the others."""
    tenths = statistics.quantiles(found, n=10)
    return f"{statistics.median(found):.2f} ({tenths[0]:.2f} to {tenths[-1]:.2f})"


def measure(tensor: torch.Tensor, codec: Codec, repeats: int, own_ms: float) -> str:
    """One line of the table."""
    shape = tuple(tensor.shape)
    packed = pack(tensor, codec)
    content = Gradient(gradient=packed)
    payloads = chunks.cut(encode_content(content), HEAD)

    def unframe() -> object:
        joined = chunks.Assembler(max_message_bytes=1 << 28, max_open_bytes=1 << 28)
        body = [joined.add("t", chunks.read(payload)) for payload in payloads][-1]
        return decode_content(body or b"")

    works: list[Callable[[], object]] = [
        lambda: pack(tensor, codec, largest_norm=1e9),
        lambda: unpack(packed, shape=shape, codec=codec, largest_norm=1e9),
        lambda: chunks.cut(encode_content(content), HEAD),
        unframe,
        lambda: lz4.frame.compress(packed.data, store_size=False),
    ]
    encode, decode, frame, back, tried = [times(work, repeats) for work in works]
    middle = [statistics.median(each) for each in (encode, decode, frame, back, tried)]
    before, after = (8 * size / tensor.numel() for size in (len(packed.data), sum(map(len, payloads))))
    share = sum(middle[:4]) / own_ms
    lost = relative_error(packed, tensor, codec)
    return (
        f"{codec:24}{lost:8.4f}{before:7.2f}{after:7.2f}  {shown(encode):22}{shown(decode):22}"
        f"{middle[2]:7.2f}{middle[3]:9.2f}{middle[4]:6.2f}{share:8.2%}"
    )


def measure_remembered(hidden: torch.Tensor, mask: torch.Tensor, repeats: int, own_ms: float) -> str:
    """One line for what `codec_cache` sends of samples that both ends remember."""
    count = len(hidden)
    settings = TrainingSettings(batch_size=count, micro_batches=1, codec="int4:int2", codec_cache="1GB")
    exchange = Exchange(settings, hidden.shape[2])
    lengths = tuple(mask.sum(dim=1).tolist())
    first = Remembered((0, 0), lengths, tuple(range(count)), (False,) * count, empty=True)
    ours, theirs = (Cache("a", limit_bytes=1 << 30, each=count) for _ in range(2))

    def said(of: Remembered, values: torch.Tensor) -> Activation:
        packed, cached = remembered.pack(exchange, ours, values, of)
        return Activation(hidden=packed, mask=pack_integers(mask), step_tokens=1, steps=1, cached=cached)

    ours.begin("s1", "")
    theirs.begin("s1", "")
    remembered.unpack(exchange, theirs, said(first, hidden), first)
    ours.begin("s2", "s1")
    theirs.begin("s2", "s1")
    again = Remembered((0, 0), lengths, first.samples, (True,) * count, empty=False)
    noise = torch.nn.functional.normalize(torch.randn(hidden.shape), dim=2)
    changed = hidden + 0.05 * hidden.norm(dim=2, keepdim=True) * noise
    content = said(again, changed)
    encode = times(lambda: said(again, changed), repeats)
    decode = times(lambda: remembered.unpack(exchange, theirs, content, again), repeats)
    assert content.cached is not None
    bits = 8 * len(content.cached.change.data) / (sum(lengths) * hidden.shape[2])
    share = (statistics.median(encode) + statistics.median(decode)) / own_ms
    return f"{'changes':32}{bits:7.2f}{'':9}{shown(encode):22}{shown(decode):22}{'':22}{share:8.2%}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", nargs="+", default=["plant"])
    parser.add_argument("--codecs", nargs="+", type=Codec, default=list(Codec))
    parser.add_argument("--repeats", type=int, default=31)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings = TrainingSettings(micro_batches=1)
    directory = resolve(options.model, serve.cache_directory())
    tiers = Tiers(directory, settings)
    titles = f"{'  error   bits on wire':24}{'encode ms':22}{'decode ms':22}  frame  unframe   lz4   share"
    for data in options.data:
        (batch,) = batches_of(data, directory, settings).step(1, 0, local_steps=1)
        crossings = tiers.crossings(batch)
        gradient = crossings["gradient, edge-device"]
        own = times(functools.partial(tiers.device_step, batch, gradient), options.repeats)
        print(f"\n{Path(data).name}: tensors of {'x'.join(map(str, gradient.shape))}; ", end="")
        print(f"forward + backward of the device's part: {shown(own)} ms")
        for name, tensor in crossings.items():
            print(f"{name:24}{titles}")
            for codec in options.codecs:
                print(measure(tensor, codec, options.repeats, statistics.median(own)))
            if name.startswith("hidden"):
                print(measure_remembered(tensor, batch.mask, options.repeats, statistics.median(own)))


if __name__ == "__main__":
    main()
