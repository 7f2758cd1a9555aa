"""What the flows share: one tiny model, one thread, and parts that are loaded once."""

import functools
from collections.abc import Iterator
from pathlib import Path

import coverage
import pytest
import torch

from iotsplit.tensors import adapters
from iotsplit_cloud import command, store
from tests import support
from tests.flows import weather
from tests.support import tiny_model

_initial = functools.cache(adapters.initial)
_peft_config = functools.cache(adapters.peft_config)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def unmeasured() -> Iterator[None]:
    """Stop coverage where many fleets walk ways that other tests walk too: it costs half as much again."""
    measuring = coverage.Coverage.current()
    if measuring is not None:
        measuring.stop()
    yield
    if measuring is not None:
        measuring.start()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load each part once: fleets of the same model then start in a fraction of the time."""
    monkeypatch.setattr(support, "load_part", weather.quick_part)
    monkeypatch.setattr(command, "load_part", weather.quick_part)
    monkeypatch.setattr(store, "draw", lambda *_: None)
    monkeypatch.setattr(adapters, "initial", _initial)
    monkeypatch.setattr(adapters, "peft_config", _peft_config)


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer for each tier: where only messages matter, and many of them."""
    return tiny_model(tmp_path_factory.mktemp("small"), num_hidden_layers=3)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))
