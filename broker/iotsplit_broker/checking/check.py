"""``iotsplit broker check``: whether a broker that exists is fit for fleets, and which setting to change."""

import json
import secrets
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from iotsplit.mailbox import LEAST_CHUNK_BYTES
from iotsplit.options import BrokerOptions, CommonOptions, parse
from iotsplit.runtime import clock
from iotsplit.runtime.address import address_of
from iotsplit.runtime.processes import signals_handled
from iotsplit.settings import at_least
from iotsplit.topics import AGENT_ID, Topics, check_agent_id
from iotsplit_broker.checking.findings import Finding
from iotsplit_broker.checking.report import as_object, conclusion, is_fit, lines_of
from iotsplit_broker.checking.rights import Role

if TYPE_CHECKING:
    from iotsplit_broker.checking.bench import Bench

EXAMPLES = (
    "iotsplit broker check mqtt://broker.plant7",
    "iotsplit broker check mqtts://broker.plant7 --user press-3 --password-file secret --role device --json",
    "iotsplit broker check mqtt://shop-floor --remote mqtt://cloud --remote-topic-prefix plant7/",
)
NOT_FIT = 7
ENDINGS = (signal.SIGINT, signal.SIGTERM)
SHOWN_TOPICS = 3


@dataclass(frozen=True, kw_only=True)
class CheckOptions(BrokerOptions, CommonOptions):
    """The check.

    Tries at a broker what fleets rely on, below probe/ID/ of the fleet's topics, and clears what it left.
    It takes at most two minutes and sends at most 60 MiB.

    Args:
        url: Address of the broker, as in --broker.
        id: Name that stands in the topics; by default the user's, else one of its own.
        role: Whose rights the user should have: device, edge, cloud, or any if those of one of them are enough.
        chunk_bytes: Largest MQTT payload that agents are to send; by default as theirs.
        quick: Try less: at most a minute and 10 MiB.
        remote: Address of the broker at the other end of a bridge, to see what becomes of messages on the way.
        remote_topic_prefix: What stands before the topics there; by default the same.
        remote_user: User name there; the password comes from a file or from IOTSPLIT_PASSWORD.
        remote_password_file: File with the password there, alone on its first line.
        remote_ca_file: Certificate authority that signed the certificate there.
        remote_cert_file: Certificate to show there.
        remote_key_file: Private key of that certificate.
    """

    url: str | None = None
    id: str | None = None
    role: Role = Role.ANY
    chunk_bytes: int | None = None
    quick: bool = False
    remote: str | None = None
    remote_topic_prefix: str | None = None
    remote_user: str | None = None
    remote_password_file: Path | None = None
    remote_ca_file: Path | None = None
    remote_cert_file: Path | None = None
    remote_key_file: Path | None = None

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the setting.

        Raises:
            UsageError: a value is out of its range.
        """
        super().__post_init__()
        at_least("chunk_bytes", self.limits.chunk_bytes(self.chunk_bytes), LEAST_CHUNK_BYTES)
        if self.id is not None:
            check_agent_id(self.id)

    @property
    def near_end(self) -> BrokerOptions:
        """The broker that is checked."""
        return BrokerOptions(
            broker=self.url or self.broker,
            fleet=self.fleet,
            topic_prefix=self.topic_prefix,
            user=self.user,
            password_file=self.password_file,
            ca_file=self.ca_file,
            cert_file=self.cert_file,
            key_file=self.key_file,
            profile=self.profile,
            max_rate=self.max_rate,
        )

    @property
    def far_end(self) -> BrokerOptions | None:
        """The other end of the bridge."""
        if self.remote is None:
            return None
        prefix = self.remote_topic_prefix
        return BrokerOptions(
            broker=self.remote,
            fleet=self.fleet,
            topic_prefix=self.topic_prefix if prefix is None else prefix,
            user=self.remote_user,
            password_file=self.remote_password_file,
            ca_file=self.remote_ca_file,
            cert_file=self.remote_cert_file,
            key_file=self.remote_key_file,
        )


def main(words: Sequence[str]) -> int:
    """Check a broker; 0 if it is fit, 7 if it is not."""
    options = parse(CheckOptions, words, name="iotsplit broker check", examples=EXAMPLES, places=("url",))
    from iotsplit_broker.checking.examination import FULL, QUICK, Examination  # noqa: PLC0415 - keeps --help quick

    near = _bench(options.near_end, options)
    far = None if options.far_end is None else _bench(options.far_end, options)
    benches = [near] if far is None else [near, far]
    began = clock.now()
    interruption = _Interruption()

    def tell(finding: Finding) -> None:
        interruption.settle()
        if not options.json:
            sys.stdout.write(lines_of(finding))
            sys.stdout.flush()

    examination = Examination(near, QUICK if options.quick else FULL, options.role, tell)
    left: list[str] = []
    with signals_handled(ENDINGS, interruption.come):
        try:
            examination.run(far)
            interruption.settle()
        finally:
            with signals_handled(ENDINGS, signal.SIG_IGN):
                left = [topic for bench in benches for topic in bench.clean()]
                _mention(left)
    findings = examination.findings
    if options.json:
        told = {
            "broker": str(near.address),
            "remote": None if far is None else str(far.address),
            "topics": near.topic("#"),
            "fit": is_fit(findings),
            "seconds": round(clock.now() - began, 1),
            "points": as_object(findings),
            "left": left,
        }
        sys.stdout.write(json.dumps(told) + "\n")
    else:
        sys.stdout.write(f"{near.address}: {conclusion(findings)}")
    return 0 if is_fit(findings) else NOT_FIT


def _bench(end: BrokerOptions, options: CheckOptions) -> "Bench":
    from iotsplit_broker.checking.bench import Bench  # noqa: PLC0415 - keeps --help quick

    address = address_of(end)
    known = options.id or address.user or ""
    agent = known if AGENT_ID.fullmatch(known) else f"check-{secrets.token_hex(4)}"
    chunk_bytes = options.limits.chunk_bytes(options.chunk_bytes)
    return Bench(address, Topics(end.fleet, end.topic_prefix), agent, chunk_bytes=chunk_bytes)


class _Interruption:
    """Ends the examination at once, or after the point in hand if a finalizer swallows what is raised."""

    def __init__(self) -> None:
        self._has_come = False

    def come(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._has_come = True
        raise KeyboardInterrupt

    def settle(self) -> None:
        if self._has_come:
            raise KeyboardInterrupt


def _mention(left: Sequence[str]) -> None:
    if left:
        shown = ", ".join(left[:SHOWN_TOPICS]) + (" …" if len(left) > SHOWN_TOPICS else "")
        sys.stderr.write(f"iotsplit broker check: {len(left)} retained topics may be left: {shown}\n")
