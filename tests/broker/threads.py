"""Fleets whose agents are threads of this process, each with a link of its own to a real broker.

Processes take seconds each to start. What a link keeps to is seen without them.
"""

import threading
from collections.abc import Iterable

from iotsplit.options import AgentOptions, parse
from iotsplit.runtime import serve
from iotsplit.runtime.runner import Runner
from tests.flows.real import RealFleet


class ThreadedFleet:
    """The roles of a fleet in memory, on a broker.

    Args:
        fleet: whose roles; it keeps what they keep, and its words say where the broker is.
        names: who runs; by default all.
    """

    def __init__(self, fleet: RealFleet, names: Iterable[str] = ()) -> None:
        self._runners: dict[str, Runner] = {}
        self.errors: dict[str, Exception] = {}
        for name in names or fleet.agents:
            role = fleet.agents[name].role
            options = parse(AgentOptions, [f"--id={name}", *fleet.words], name="iotsplit")
            self._runners[name] = serve.runner_of(role, options, sink=fleet.sink_of(role))
        self._threads = {name: threading.Thread(target=self._run, args=[name]) for name in self._runners}
        for thread in self._threads.values():
            thread.start()

    def _run(self, name: str) -> None:
        try:
            self._runners[name].run()
        except Exception as error:  # noqa: BLE001 - for the test to see
            self.errors[name] = error

    @property
    def is_over(self) -> bool:
        """Whether the cloud has finished, or somebody has failed."""
        return bool(self.errors) or not self._threads["cloud"].is_alive()

    def close(self) -> None:
        """End whoever still runs."""
        for runner in self._runners.values():
            runner.stop()
        for thread in self._threads.values():
            thread.join()
