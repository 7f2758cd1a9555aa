"""``iotsplit broker check`` without a broker: its options, its bounds, what it says."""

import signal
import subprocess
import sys

import pytest

from iotsplit.errors import UsageError
from iotsplit.options import parse
from iotsplit.runtime.address import BrokerAddress
from iotsplit.topics import Topics
from iotsplit_broker.checking import examination
from iotsplit_broker.checking.bench import Bench
from iotsplit_broker.checking.check import CheckOptions, main
from iotsplit_broker.checking.examination import Examination, Extent
from iotsplit_broker.checking.findings import Finding, Verdict
from iotsplit_broker.checking.report import as_object, conclusion, is_fit, lines_of
from iotsplit_broker.checking.rights import Role

OK = Finding(point="payload", verdict=Verdict.OK, needed=True, said="1 MiB")
WARNING = Finding(
    point="round trip",
    verdict=Verdict.SLOW,
    needed=False,
    said="44 ms",
    fixes={"mosquitto": "set_tcp_nodelay true"},
)
FAILURE = Finding(point="retained", verdict=Verdict.ABSENT, needed=True, said="not: set")


def options_of(*words: str) -> CheckOptions:
    return parse(CheckOptions, words, name="iotsplit broker check", places=("url",), environment={})


def test_help_imports_no_paho() -> None:
    code = (
        "import sys\nfrom iotsplit_broker.command import main\n"
        "try: main(['check', '--help'])\nexcept SystemExit: pass\n"
        "sys.exit(bool({'torch', 'numpy', 'paho'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("Examples:\n  iotsplit broker check")


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--id", "a/b"], "agent id 'a/b'"),
        (["--chunk-bytes", "160"], "chunk_bytes 160 is too small"),
        (["--role", "person"], "role"),
        (["http://here"], "no broker address"),
    ],
)
def test_options_that_cannot_be_are_refused(words: list[str], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        BrokerAddress.parse(options_of(*words).near_end.broker)


def test_the_address_is_a_word_or_an_option() -> None:
    assert options_of("mqtt://a").near_end.broker == "mqtt://a"
    assert options_of("--broker", "mqtt://b").near_end.broker == "mqtt://b"


def test_the_other_end_has_its_own_prefix_and_user() -> None:
    far = options_of("--remote=mqtt://far", "--topic-prefix=a/", "--user=u", "--remote-user=v").far_end
    assert far is not None
    assert (far.broker, far.topic_prefix, far.user) == ("mqtt://far", "a/", "v")
    other = options_of("--remote=mqtt://far", "--topic-prefix=a/", "--remote-topic-prefix=").far_end
    assert other is not None
    assert other.topic_prefix == ""
    assert options_of("mqtt://a").far_end is None


def test_when_the_time_is_over_no_point_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[Bench] = []
    monkeypatch.setattr(examination, "reach", reached.append)
    bench = Bench(BrokerAddress.parse("mqtt://127.0.0.1:1"), Topics("default"), "me", chunk_bytes=61440)
    told: list[Finding] = []
    extent = Extent(retained=1, queued=1, speed_bytes=1, limit_s=-1.0)
    Examination(bench, extent, Role.ANY, told.append).run(bench)
    assert reached == [bench, bench]
    assert len(told) == 12
    assert {each.verdict for each in told} == {Verdict.UNKNOWN}
    assert not is_fit(told)


def test_a_point_that_meets_no_broker_is_not_tested_and_the_next_is_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(examination, "reach", lambda _: None)
    bench = Bench(BrokerAddress.parse("mqtt://127.0.0.1:1"), Topics("default"), "me", chunk_bytes=61440)
    told: list[Finding] = []
    Examination(bench, examination.QUICK, Role.ANY, told.append).run()
    assert len(told) == 11
    assert "nobody listens at mqtt://127.0.0.1:1" in told[1].said
    assert bench.clean()  # what could not be confirmed


def test_lines_show_what_matters_and_the_setting_to_change() -> None:
    assert lines_of(OK) == "ok    payload         1 MiB\n"
    assert lines_of(WARNING).splitlines() == [
        "warn  round trip      slow: 44 ms",
        "                      - mosquitto: set_tcp_nodelay true",
    ]
    assert lines_of(FAILURE) == "FAIL  retained        absent: not: set\n"


def test_the_last_line_names_failures_before_warnings() -> None:
    assert conclusion([OK]) == "fit for fleets\n"
    assert conclusion([OK, WARNING]) == "fit for fleets, with what it says of round trip\n"
    assert conclusion([OK, WARNING, FAILURE]) == "not fit for fleets: retained\n"


def test_programs_get_the_same() -> None:
    (told,) = as_object([WARNING])
    assert told == {
        "point": "round trip",
        "verdict": "slow",
        "needed": False,
        "fails": False,
        "said": "44 ms",
        "measured": {},
        "fixes": {"mosquitto": "set_tcp_nodelay true"},
    }


class Dying:
    """Dies at a bad moment."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_a_finalizer_swallows_ends_the_check_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(self: Examination, far: object) -> None:
        del self, far
        Dying()

    monkeypatch.setattr(Examination, "run", run)
    with pytest.raises(KeyboardInterrupt):
        main(["mqtt://127.0.0.1"])
