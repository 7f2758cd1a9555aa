"""A run watches its processes: goes on where it can, ends with a reason where it cannot."""

import io
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest
from rich.console import Console

from iotsplit.errors import BrokerUnreachableError, MismatchError, RunFailedError, UsageError
from iotsplit.fleet import run as module
from iotsplit.fleet.launcher import Broker, Launcher
from iotsplit.fleet.output import Output
from iotsplit.fleet.progress import Progress
from iotsplit.fleet.run import Prepared, RunOptions
from iotsplit.options import AgentOptions, parse
from iotsplit.plan import Labels
from iotsplit.settings import TrainingSettings
from iotsplit.states import Event

if TYPE_CHECKING:
    from iotsplit.tensors.models import ModelInfo


class Info:
    """Stands in for a model's description."""

    name, layers = "tiny", 6


PREPARED = Prepared(
    model=Path("/models/tiny"),
    info=cast("ModelInfo", Info()),
    devices=("press", "pump"),
    edges=("edge-1",),
)


class Watched:
    """A progress that shows nothing."""

    def __init__(self, *, training: bool) -> None:
        self.training = training

    def poll(self) -> None:
        """Show nothing."""


@pytest.fixture
def launcher(tmp_path: Path) -> Any:
    made = Launcher(tmp_path, [sys.executable, "-c"])
    yield made
    made.stop()


WAIT = "import threading; threading.Event().wait()"


def watch(launcher: Launcher, *, training: bool, progress: type[Watched] = Watched) -> str:
    screen = io.StringIO()
    shown = cast("Progress", progress(training=training))
    module._watch(launcher, shown, PREPARED, Console(file=screen, width=200))
    return screen.getvalue()


def leave(code: int) -> list[str]:
    return [f"import sys; print('because'); sys.exit({code})"]


def start(launcher: Launcher, **codes: int) -> None:
    """Start agents; those with a code below zero stay."""
    for agent, code in codes.items():
        name = agent.replace("_", "-")
        launcher.start(name, leave(code) if code >= 0 else [WAIT])
        if code >= 0:
            launcher.wait(name, 20)


@pytest.mark.slow
def test_a_run_ends_when_the_cloud_is_done(launcher: Launcher) -> None:
    start(launcher, edge_1=-1, press=-1, pump=-1, cloud=0)
    assert watch(launcher, training=True) == ""


@pytest.mark.slow
def test_a_cloud_that_is_done_while_others_are_looked_at_is_no_loss(launcher: Launcher) -> None:
    class Slow(Watched):
        """A progress that takes until the cloud's end."""

        def poll(self) -> None:
            launcher.wait("cloud", 20)

    start(launcher, edge_1=-1, press=-1, pump=-1)
    launcher.start("cloud", ["import threading; threading.Event().wait(1)"])
    assert watch(launcher, training=True, progress=Slow) == ""


@pytest.mark.slow
def test_a_failed_cloud_ends_the_run_with_its_reason(launcher: Launcher) -> None:
    start(launcher, press=-1, cloud=6)
    with pytest.raises(MismatchError, match="cloud ended with exit code 6: because"):
        watch(launcher, training=True)


@pytest.mark.slow
def test_a_cloud_that_was_interrupted_interrupts_the_run(launcher: Launcher) -> None:
    start(launcher, press=-1, cloud=130)
    with pytest.raises(KeyboardInterrupt):
        watch(launcher, training=True)


@pytest.mark.slow
def test_an_agent_that_dies_before_training_ends_the_run(launcher: Launcher) -> None:
    start(launcher, edge_1=-1, press=1, pump=-1, cloud=-1)
    with pytest.raises(RunFailedError, match="press ended with exit code 1: because"):
        watch(launcher, training=False)


@pytest.mark.slow
def test_an_error_that_a_person_must_mend_ends_the_run_at_any_time(launcher: Launcher) -> None:
    start(launcher, edge_1=-1, press=2, pump=-1, cloud=-1)
    with pytest.raises(UsageError, match="press ended with exit code 2"):
        watch(launcher, training=True)


@pytest.mark.slow
@pytest.mark.parametrize("gone", [{"edge_1": 1}, {"press": 1, "pump": 1}, {"broker": 1}])
def test_a_fleet_without_a_tier_or_a_broker_is_ended(launcher: Launcher, gone: dict[str, int]) -> None:
    start(launcher, **{"edge_1": -1, "press": -1, "pump": -1, "cloud": -1, "broker": -1} | gone)
    with pytest.raises(RunFailedError):
        watch(launcher, training=True)


@pytest.mark.slow
def test_a_device_that_was_killed_is_started_again(launcher: Launcher) -> None:
    start(launcher, edge_1=-1, press=-1, pump=-1)
    launcher.start("cloud", ["import sys; sys.stdin.close(); import threading; threading.Event().wait(1.5)"])
    pump = launcher._children["pump"].process
    pump.send_signal(signal.SIGKILL)
    assert "pump was ended by SIGKILL; it is started again" in watch(launcher, training=True)
    again = launcher._children["pump"].process
    assert again.pid != pump.pid
    assert again.poll() is None


@pytest.mark.slow
def test_a_fleet_goes_on_without_a_device_that_is_killed_again_and_again(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_RESTARTS", 0)
    start(launcher, edge_1=-1, press=-1, pump=-1)
    launcher.start("cloud", ["import sys; sys.stdin.close(); import threading; threading.Event().wait(1.5)"])
    launcher._children["pump"].process.send_signal(signal.SIGKILL)
    assert "going on without pump was ended by SIGKILL" in watch(launcher, training=True)


@pytest.fixture
def output(tmp_path: Path) -> Output:
    made = Output(tmp_path / "out")
    made.root.mkdir()
    return made


@pytest.fixture
def logs(tmp_path: Path) -> str:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("press", "pump"):
        (folder / f"{name}.log").write_text("".join(f"{name} line {at}\n" for at in range(200)))
    return str(folder)


def test_data_is_dealt_once(output: Output, logs: str) -> None:
    options = RunOptions(data=logs, output=output.root)
    assert module._deal(options, output) == ["press", "pump"]
    (output.data / "press.jsonl").write_text('{"text": "kept"}\n')
    assert module._deal(options, output) == ["press", "pump"]
    assert (output.data / "press.jsonl").read_text() == '{"text": "kept"}\n'


def test_a_directory_of_other_data_is_not_gone_on_with(output: Output, logs: str) -> None:
    module._deal(RunOptions(data=logs), output)
    started = Event(kind="round_started", agent="cloud", detail="round 1, 2 devices")
    (output.root / "events.jsonl").write_bytes(msgspec.json.encode(started) + b"\n")
    with pytest.raises(UsageError, match="holds a run of other model, data or devices"):
        module._deal(RunOptions(data=logs, devices=1), output)


def test_a_run_that_failed_before_it_trained_does_not_bind_the_next_one(output: Output, logs: str) -> None:
    module._deal(RunOptions(data=logs), output)
    assert module._deal(RunOptions(data=logs, devices=1), output) == ["press"]


def test_a_broker_that_nobody_reaches_is_told_before_anything_is_written(tmp_path: Path) -> None:
    options = RunOptions(broker="mqtt://127.0.0.1:1", output=tmp_path / "out")
    with pytest.raises(BrokerUnreachableError, match="nobody listens at"):
        module.run(options, Console(file=io.StringIO()))
    assert not options.output.exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"edges": 0}, "edges 0"),
        ({"threads": 0}, "threads 0"),
        ({"devices": 0}, "devices 0"),
        ({"devices_per_edge": 0}, "devices_per_edge 0"),
        ({"fleet": "a/b"}, "fleet 'a/b'"),
        ({"topic_prefix": "a/#/"}, "topic prefix"),
    ],
)
def test_values_that_cannot_work_are_refused_at_once(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        RunOptions(**given)


@pytest.mark.parametrize("name", ["cloud", "broker", "edge-1"])
def test_a_device_cannot_take_the_name_of_another_agent(name: str) -> None:
    with pytest.raises(UsageError, match=f"would be named {name}"):
        module._check_names(["press", name], ["edge-1"])


@pytest.mark.parametrize("labels", list(Labels))
def test_the_first_line_says_what_runs_and_what_leaves_a_device(labels: Labels) -> None:
    options = RunOptions(training=TrainingSettings(cut=(1, 4), labels=labels))
    line = module.first_line(options, PREPARED, "iotsplit run")
    assert "device 0-0" in line
    assert "2 devices, 1 edge " in line
    assert ("token ids of its training text reach the cloud" in line) is (labels is Labels.CLOUD)
    assert "\n" not in line


def test_agents_get_only_what_was_given() -> None:
    words = module._agent_words("press", RunOptions(user="me", home_assistant="ha"), PREPARED, "mqtt://h:1")
    assert "--home-assistant=ha" in words
    assert "--gradient-checkpointing" not in words
    assert {"--id=press", "--broker=mqtt://h:1", "--user=me", "--model=/models/tiny"} <= set(words)
    assert not any(word.startswith(("--ca-file", "--topic-prefix", "--password")) for word in words)


def test_the_broker_is_entered_into_the_report_once(output: Output) -> None:
    broker = Broker(address="mqtt://h:1", pid=7, kind="mosquitto", notes=[])
    output.write_report({"agents": [{"id": "cloud", "role": "cloud"}]})
    for _ in range(2):
        report = module._finish(output, broker, 99, wall_s=5.0)
    assert [(each["id"], each.get("peak_rss_bytes")) for each in report["agents"]] == [
        ("cloud", None),
        ("broker", 99),
    ]
    assert report["wall_s"] == 5.0
    assert output.report() == report


def test_a_broker_that_is_not_ours_is_not_in_the_report(output: Output) -> None:
    output.write_report({"agents": [], "wall_s": 3.0})
    assert module._finish(output, None, 0, wall_s=5.0) == {"agents": [], "wall_s": 3.0}


def test_a_cloud_that_leaves_no_report_has_failed(output: Output) -> None:
    with pytest.raises(RunFailedError, match="without a report"):
        module._finish(output, None, 0, wall_s=5.0)


def test_what_the_broker_allows_is_told_to_each_agent() -> None:
    given = RunOptions(profile="aws", max_rate=("10/s", "500KB/s"), topic_prefix="plant7/")
    words = module._agent_words("press", given, PREPARED, "mqtt://h:1")
    assert {"--profile=aws", "--max-rate=10/s,500KB/s", "--topic-prefix=plant7/"} <= set(words)


@pytest.mark.parametrize("switch", ["gradient_checkpointing", "return_memory"])
def test_switches_of_a_run_are_those_of_each_agent(switch: str) -> None:
    changes: Any = {switch: True}
    words = module._agent_words("press", RunOptions(**changes), PREPARED, "mqtt://h:1")
    assert getattr(parse(AgentOptions, words, name="agent", environment={}), switch)
