"""The runner on a real broker: what it tells a person when an agent cannot work there."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from iotsplit.agent import Agent
from iotsplit.errors import IotsplitError, RefusedError, UsageError
from iotsplit.mailbox import Mailbox
from iotsplit.messages import Message
from iotsplit.plan import Tier
from iotsplit.role import Output
from iotsplit.runtime import runner as module
from iotsplit.runtime.address import BrokerAddress
from iotsplit.runtime.mqtt import MqttLink
from iotsplit.runtime.runner import Runner
from iotsplit.states import Birth
from iotsplit.topics import Topics
from iotsplit_broker.process import Broker
from tests.broker.conftest import StartBroker
from tests.waiting import PATIENCE_S, comes_true

pytestmark = [pytest.mark.slow, pytest.mark.broker]

PROBE_BYTES = 61440


class Idle:
    """A role that only is there."""

    agent = "edge-1"
    tier = Tier.EDGE
    interests: frozenset[str] = frozenset()
    finished = False

    def __init__(self, incarnation: int) -> None:
        self.birth = Birth(
            agent=self.agent, role=self.tier, online=True, incarnation=incarnation, pid=incarnation
        )
        self.heard: list[Message] = []

    def handle(self, message: Message, now: float) -> Sequence[Output]:
        self.heard.append(message)
        return []

    def tick(self, now: float) -> Sequence[Output]:
        return []

    def reconnected(self, now: float) -> Sequence[Output]:
        return []

    def next_tick(self, now: float) -> float:
        return now + 60


class Running:
    """An agent in a thread, as a process of its own would run it."""

    def __init__(self, broker: Broker, incarnation: int) -> None:
        address = BrokerAddress.parse(f"mqtt://127.0.0.1:{broker.settings.port}")
        self.role = Idle(incarnation)
        agent = Agent(self.role, Mailbox(Topics("plant"), self.role.agent))
        link = MqttLink(address, "e-plant-edge-1", first_retry_s=0.05)
        self.runner = Runner(agent, link, largest_bytes=PROBE_BYTES)
        self.error: IotsplitError | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.runner.run()
        except IotsplitError as error:
            self.error = error

    def is_online(self) -> bool:
        """Whether its own state has come back to it."""
        return self.role.birth in self.role.heard

    def end(self) -> None:
        self.runner.stop()
        self.thread.join(PATIENCE_S)


@pytest.fixture
def start_agent() -> Iterator[Callable[[Broker, int], Running]]:
    started: list[Running] = []

    def begin(broker: Broker, incarnation: int) -> Running:
        started.append(Running(broker, incarnation))
        return started[-1]

    yield begin
    for agent in started:
        agent.end()


def test_of_two_agents_with_one_id_the_earlier_steps_back_and_says_why(
    start_mosquitto: StartBroker, start_agent: Callable[[Broker, int], Running]
) -> None:
    broker = start_mosquitto()
    earlier = start_agent(broker, 1)
    assert comes_true(earlier.is_online)
    later = start_agent(broker, 2)
    earlier.thread.join(PATIENCE_S)
    assert isinstance(earlier.error, RefusedError)
    assert "another agent named edge-1 has joined this fleet (process 2)" in earlier.error.message
    assert comes_true(later.is_online)
    assert later.thread.is_alive()


def test_a_broker_that_passes_only_smaller_messages_is_told(
    start_mosquitto: StartBroker,
    start_agent: Callable[[Broker, int], Running],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "GREETING_S", 0.5)
    agent = start_agent(start_mosquitto(max_message_bytes=20_000), 1)
    agent.thread.join(PATIENCE_S)
    assert isinstance(agent.error, UsageError)
    assert f"does not pass on a message of {PROBE_BYTES} bytes" in agent.error.message
    assert "--chunk-bytes" in agent.error.fix


def test_a_broker_that_passes_messages_of_just_that_size_is_good_enough(
    start_mosquitto: StartBroker, start_agent: Callable[[Broker, int], Running], tmp_path: Path
) -> None:
    assert comes_true(start_agent(start_mosquitto(max_message_bytes=PROBE_BYTES), 1).is_online)
