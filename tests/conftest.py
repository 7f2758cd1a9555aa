"""What all tests need of this process."""

import signal

import pytest
from hypothesis import settings

# A shell starts what runs in the background with Ctrl-C switched off, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no bug.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture
def unmeasured_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start processes without coverage where others walk the same ways: it doubles the time they take."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
