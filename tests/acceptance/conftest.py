"""Models that commands are tried with."""

from pathlib import Path

import pytest

from tests.support import letters_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama of five layers that reads single letters."""
    return letters_model(tmp_path_factory.mktemp("models") / "tiny")
