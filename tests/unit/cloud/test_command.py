"""What the cloud's command says while it runs."""

from structlog.testing import capture_logs

from iotsplit.states import Event
from iotsplit_cloud.command import tell


def test_what_happens_stands_in_the_log_with_its_figures() -> None:
    with capture_logs() as logs:
        tell(Event(kind="agent_joined", agent="press", detail=""))
        tell(Event(kind="round_finished", agent="cloud", detail='{"round":1,"loss":1.5}'))
        tell(Event(kind="session_dropped", agent="press", detail="{no figures"))
    joined, finished, dropped = logs
    assert joined == {"event": "agent_joined", "about": "press", "log_level": "info"}
    assert (finished["event"], finished["detail"]) == ("round_finished", {"round": 1, "loss": 1.5})
    assert dropped["detail"] == "{no figures"
