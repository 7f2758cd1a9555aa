"""The tiny model of the golden tapes."""

from pathlib import Path

import pytest
import torch

from tests.support import letters_model


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return letters_model(tmp_path_factory.mktemp("golden") / "model")
