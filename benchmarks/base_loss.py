"""What a base type of fewer bits costs in loss: the same training in one process with rounded frozen matrices.

    python benchmarks/base_loss.py --data plant python-reference --seeds 0

Prints held-out loss before and after for each base type; nothing else differs between them.
"""

import argparse

import torch

from benchmarks.codec_loss import Run, batches_of
from iotsplit.runtime import serve
from iotsplit.settings import BaseDtype, TrainingSettings
from iotsplit.tensors.models import resolve


def main() -> None:
    """Run everything and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", nargs="+", default=["plant"])
    parser.add_argument("--base-dtypes", nargs="+", default=list(BaseDtype))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    directory = resolve(options.model, serve.cache_directory())
    for data in options.data:
        for seed in options.seeds:
            for dtype in map(BaseDtype, options.base_dtypes):
                settings = TrainingSettings(seed=seed, local_steps=options.steps, rounds=1, base_dtype=dtype)
                batches = batches_of(data, directory, settings)
                run = Run(directory, settings, "fp32", "fp32")
                before = run.score(batches.evaluation())
                for step in range(options.steps):
                    run.step(batches.step(1, step, local_steps=options.steps))
                after = run.score(batches.evaluation())
                print(f"{data}  seed {seed}  {dtype:5} before {before:.4f}  after {after:.4f}", flush=True)


if __name__ == "__main__":
    main()
