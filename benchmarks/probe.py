"""Runs an agent, or PEFT on a whole model, and writes down where its memory goes: see `benchmarks/memory.py`.

Imports are measured module by module, tensors by the pages of theirs that are resident, activations by what the
forward passes of a step add until its first backward pass.
"""

import functools
import importlib.abc
import importlib.machinery
import json
import mmap
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

MB = 1_000_000


@dataclass(kw_only=True)
class Facts:
    """What a probe has found, in bytes.

    Args:
        interpreter: resident before anything was imported.
        imports: by package.
        loading: largest before the first step: models and data are read, and the first version is evaluated.
        anonymous: the process's own memory before the last step.
        weights: resident of the layers' frozen matrices, norms and of the head.
        embedding: resident of the embedding, if it has one of its own.
        trained: LoRA parameters, their gradients and the optimizer's state, of one session.
        activations: what the forward passes of a step add to the process's own memory of before the first step.
        peak: largest of all.
    """

    interpreter: int = 0
    imports: dict[str, int] = field(default_factory=dict)
    loading: int = 0
    anonymous: int = 0
    weights: int = 0
    embedding: int = 0
    trained: int = 0
    activations: int = 0
    peak: int = 0

    @property
    def all_imports(self) -> int:
        """Interpreter and all packages."""
        return self.interpreter + sum(self.imports.values())

    @property
    def tensors(self) -> int:
        """All but imports."""
        return self.peak - self.all_imports

    def rows(self) -> dict[str, int]:
        """Contributors to the peak, which they add up to, and what else is of interest."""
        named = {
            "interpreter and imports": self.all_imports,
            "frozen weights": self.weights,
            "embedding rows": self.embedding,
            "LoRA, gradients, optimizer": self.trained,
            "activations": self.activations,
        }
        named["data, buffers, heap, backward pass"] = self.peak - sum(named.values())
        beside = {
            "peak": self.peak,
            "(peak while loading)": self.loading,
            "(anonymous between steps)": self.anonymous,
        }
        return named | beside

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def read(cls, file: Path) -> "Facts":
        """Read what a probe has written."""
        return cls(**json.loads(file.read_text()))


def status(name: str) -> int:
    """A field of this process's status, such as VmHWM, in bytes."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(text.partition(f"{name}:")[2].split(maxsplit=1)[0]) * 1024


def resident(tensor: Any) -> int:
    """Bytes of a tensor's pages that are in memory."""
    start = tensor.data_ptr() // mmap.PAGESIZE
    pages = -(-(tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE) - start
    with Path("/proc/self/pagemap").open("rb") as table:
        table.seek(start * 8)
        entries = struct.unpack(f"<{pages}Q", table.read(pages * 8))
    here: int = sum(entry >> 63 for entry in entries)
    return here * mmap.PAGESIZE


class Imports(importlib.abc.MetaPathFinder):
    """Measures what the execution of each module adds, less that of the modules it imports."""

    def __init__(self) -> None:
        self.own: Counter[str] = Counter()
        self._inner: list[int] = []

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    spec.loader = _Measured(spec.loader, self)
                return spec
        return None

    def measure(self, name: str, run: Callable[[], None]) -> None:
        before = status("VmRSS")
        self._inner.append(0)
        try:
            run()
        finally:
            added = status("VmRSS") - before
            self.own[name.partition(".")[0]] += added - self._inner.pop()
            if self._inner:
                self._inner[-1] += added


class _Measured(importlib.abc.Loader):
    def __init__(self, loader: Any, imports: Imports) -> None:
        self._loader, self._imports = loader, imports

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._imports.measure(module.__name__, lambda: self._loader.exec_module(module))


class Probe:
    """Watches a training."""

    def __init__(self) -> None:
        self.facts = Facts(interpreter=status("VmRSS"))
        self.imports = Imports()
        self._forwards = 0
        self._at_first = 0
        sys.meta_path.insert(0, self.imports)

    def before_forward(self) -> None:
        """A forward pass begins; it is the first of a step if no other waits for its gradient."""
        if not self._forwards:
            self.facts.loading = self.facts.loading or status("VmHWM")
            self.facts.anonymous = status("RssAnon")
            self._at_first = self._at_first or self.facts.anonymous
        self._forwards += 1

    def before_backward(self) -> None:
        """A backward pass begins."""
        if self._forwards:
            added = status("RssAnon") - self._at_first
            self.facts.activations = max(self.facts.activations, added)
            self._forwards = 0

    def finish(self, file: Path, weights: Sequence[Any], embedding: Any, trained: Iterator[Any]) -> None:
        """Write the facts."""
        facts = self.facts
        facts.imports = dict(self.imports.own)
        facts.weights = sum(resident(each) for each in weights)
        facts.embedding = 0 if embedding is None else resident(embedding)
        facts.trained = sum(each.nbytes for each in trained)
        facts.peak = status("VmHWM")
        file.write_text(json.dumps(facts.plain()))


def watch(owner: type, name: str, before: Callable[[], None]) -> None:
    """Call something before a method, unless the method is told that nothing is trained."""
    method = getattr(owner, name)

    @functools.wraps(method)
    def watched(*words: Any, **named: Any) -> Any:
        if named.get("training", True):
            before()
        return method(*words, **named)

    setattr(owner, name, watched)


def agent(probe: Probe, out: Path, words: Sequence[str]) -> int:
    """Run an agent as its command does."""
    tier = words[0]
    command: Any = importlib.import_module(f"iotsplit_{tier}.command")
    parts = kept(command, "load_part")
    trained: Any = importlib.import_module("iotsplit.tensors.trained").Trained
    made: list[Any] = []
    start = trained.__init__

    def remember(self: Any, *given: Any) -> None:
        start(self, *given)
        made.append(self)

    trained.__init__ = remember
    if tier == "cloud":
        tail = importlib.import_module("iotsplit_cloud.tail").Tail
        loss: Any = importlib.import_module("iotsplit.tensors.loss")
        watch(tail, "train", probe.before_forward)
        loss.loss_sum = _before(loss.loss_sum, probe.before_backward)
    else:
        work = importlib.import_module(f"iotsplit_{tier}.work")
        owner = work.DeviceWork if tier == "device" else work.EdgeWork
        watch(owner, "forward", probe.before_forward)
        watch(owner, "backward", probe.before_backward)
    code = int(command.main(words[1:]))
    embedding = next((each.weight for each in parts[-1].modules() if type(each).__name__ == "RowsOfFile"), None)
    frozen = [each for each in parts[-1].parameters() if not each.requires_grad and each is not embedding]
    own = made[-1]
    tensors = [*own.parameters.values(), *own.parameters.values(), *own._state().values()]  # noqa: SLF001 - no other way
    probe.finish(out, frozen, embedding, iter(tensors))
    return code


def kept(owner: Any, name: str) -> list[Any]:
    """Everything that a function will have returned."""
    function, returned = getattr(owner, name), list[Any]()

    def keeping(*given: Any) -> Any:
        returned.append(function(*given))
        return returned[-1]

    setattr(owner, name, keeping)
    return returned


def _before(function: Callable[..., Any], before: Callable[[], None]) -> Callable[..., Any]:
    def watched(*given: Any) -> Any:
        before()
        return function(*given)

    return watched


def single(probe: Probe, out: Path, words: Sequence[str]) -> int:
    """Train the whole model with PEFT."""
    torch: Any = importlib.import_module("torch")
    peft: Any = importlib.import_module("peft")
    transformers: Any = importlib.import_module("transformers")
    torch.set_num_threads(1)
    base = transformers.AutoModelForCausalLM.from_pretrained(words[0], dtype=torch.float32)
    tuned = peft.get_peft_model(base, peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    own = [each for each in tuned.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(own, lr=1e-3)
    for _ in range(int(words[1])):
        ids = torch.randint(0, base.config.vocab_size, (4, 128))
        probe.before_forward()
        loss = tuned(input_ids=ids, labels=ids).loss
        probe.before_backward()
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    frozen = [each for each in tuned.parameters() if not each.requires_grad]
    states = [each for state in optimizer.state.values() for each in state.values()]
    probe.finish(out, frozen, None, iter([*own, *own, *states]))
    return 0


def main() -> int:
    """Run what the command line says."""
    probe = Probe()
    out, kind, *words = sys.argv[1:]
    return single(probe, Path(out), words) if kind == "single" else agent(probe, Path(out), [kind, *words])


if __name__ == "__main__":
    sys.exit(main())
