"""What agents log."""

import pytest

from iotsplit.errors import UsageError
from iotsplit.runtime.serve import start_logging


def test_a_level_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(UsageError, match="'loud' is unknown; use one of debug, info, warning, error"):
        start_logging("loud")
