"""Agents do without torch's compiler and its distributed tensors, and get the first when they ask for it."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

TRAIN = """
import sys
import torch
import iotsplit_device.command
from iotsplit.settings import TrainingSettings
from iotsplit.tensors import adapters
own = adapters.fresh({"w": torch.ones(2)})
optimizer = adapters.make_optimizer(own, TrainingSettings())
own["w"].grad = torch.ones(2)
optimizer.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
print(sorted({"sympy", "torch._dynamo.utils", "torch.distributed.tensor"} & set(sys.modules)))
"""

COMPILE = """
import iotsplit.tensors
import torch
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item(), torch._dynamo.utils.__name__)
"""

MASK = """
import iotsplit.tensors
from transformers.masking_utils import TransformGetItemToIndex
with TransformGetItemToIndex() as context:
    print("entered")
"""


def said_by(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_a_device_that_steps_its_optimizer_has_loaded_neither() -> None:
    assert said_by(TRAIN) == "[]\n"


def test_the_compiler_comes_when_something_is_compiled() -> None:
    assert said_by(COMPILE) == "2.0 torch._dynamo.utils\n"


def test_the_context_of_unusual_masks_is_the_real_one() -> None:
    assert said_by(MASK) == "entered\n"
