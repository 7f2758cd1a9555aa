"""Options: flag > environment > TOML > default, and every mistake is one clear line."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import pytest

from iotsplit.errors import UsageError
from iotsplit.flags import leaves_of
from iotsplit.options import AgentOptions, CommonOptions, parse, unset_options
from iotsplit.plan import Labels
from iotsplit.settings import Codec, TrainingSettings


@dataclass(frozen=True, kw_only=True)
class Trial(CommonOptions):
    """The trial.

    Tries something.

    Args:
        data: Where the data lies,
            even on two lines.
        scale: A factor.
        training: Not an option.
    """

    data: str
    scale: float | None = None
    training: TrainingSettings = field(default_factory=TrainingSettings)


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """Other defaults."""

    training: TrainingSettings = field(default=TrainingSettings(rounds=8))


def read(*words: str, env: Mapping[str, str] | None = None) -> Trial:
    return parse(Trial, ["--data", "x", *words], name="iotsplit trial", environment=env or {})


def told(*words: str, env: Mapping[str, str] | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        read(*words, env=env)
    return str(caught.value)


@pytest.fixture
def toml(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "fleet.toml"
        path.write_text(text)
        return str(path)

    return write


def test_without_words_every_setting_has_its_default() -> None:
    assert read().training == TrainingSettings()


def test_defaults_of_nested_settings_may_be_those_of_the_command() -> None:
    given = parse(Tuned, ["--rank", "3"], name="iotsplit tuned", environment={})
    assert given.training == TrainingSettings(rounds=8, rank=3)


def test_flags_of_nested_settings_stand_beside_those_of_the_command() -> None:
    options = read("--rounds", "7", "--scale=0.5", "--json")
    assert (options.training.rounds, options.scale, options.json) == (7, 0.5, True)


def test_enums_are_written_by_their_values() -> None:
    options = read("--labels", "device", "--codec", "bf16")
    assert (options.training.labels, options.training.codec) == (Labels.DEVICE, Codec.BF16)


def test_every_value_of_every_enum_can_be_written() -> None:
    for leaf in leaves_of(TrainingSettings):
        for value in getattr(leaf.kind, "__members__", {}).values():
            assert getattr(read(leaf.flag, value.value).training, leaf.name) is value


def test_lists_are_written_with_commas() -> None:
    options = read("--cut", "2,9", "--target-modules", "k_proj, o_proj")
    assert options.training.cut == (2, 9)
    assert options.training.target_modules == ("k_proj", "o_proj")


def test_the_environment_beats_the_file_and_a_flag_beats_both(toml: Callable[[str], str]) -> None:
    path = toml("rounds = 2\nlocal_steps = 20\nseed = 5\n")
    env = {"IOTSPLIT_ROUNDS": "3", "IOTSPLIT_LOCAL_STEPS": "30"}
    training = read("--config", path, "--rounds", "4", env=env).training
    assert (training.rounds, training.local_steps, training.seed) == (4, 30, 5)


def test_a_file_may_hold_lists_numbers_switches_and_enums(toml: Callable[[str], str]) -> None:
    path = toml(
        'cut = [3, 8]\ntarget_modules = ["q_proj"]\nlearning_rate = 0.01\njson = true\n'
        'labels = "device"\nalpha = 4\n'
    )
    options = read("--config", path)
    assert options.training.cut == (3, 8)
    assert options.training.target_modules == ("q_proj",)
    assert options.training.learning_rate == 0.01
    assert options.training.labels is Labels.DEVICE
    assert options.training.alpha == 4.0
    assert options.json


def test_the_file_itself_may_come_from_the_environment(toml: Callable[[str], str]) -> None:
    assert read(env={"IOTSPLIT_CONFIG": toml("rounds = 9")}).training.rounds == 9


def test_a_required_option_may_come_from_the_environment() -> None:
    given = parse(Trial, [], name="iotsplit trial", environment={"IOTSPLIT_DATA": "logs"})
    assert given.data == "logs"


@pytest.mark.parametrize(("text", "value"), [("1", True), ("off", False), ("Yes", True)])
def test_switches_are_read_from_the_environment(text: str, value: bool) -> None:
    assert read(env={"IOTSPLIT_JSON": text}).json is value


def test_a_missing_required_option_is_named() -> None:
    with pytest.raises(UsageError, match="iotsplit trial needs --data; see iotsplit trial --help"):
        parse(Trial, [], name="iotsplit trial", environment={})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--ronds", "3"], "--ronds. Did you mean --rounds?"),
        (["--rounds", "x"], "--rounds: 'x' is not a whole number"),
        (["--rounds", "2.5"], "--rounds: '2.5' is not a whole number"),
        (["--rounds", "0"], "rounds 0 is too small"),
        (["--rounds"], "--rounds requires an argument"),
        (["--labels", "devce"], 'Did you mean "device"?'),
        (["--cut", "4"], "--cut: wants 2 values"),
        (["--cut", "4,x"], "--cut: 'x' is not a whole number"),
        (["--config="], "--config: it is empty"),
        (["stray"], "unexpected 'stray'"),
        (["--no-json"], "--no-json"),
    ],
)
def test_a_mistake_on_the_command_line_is_told_in_one_line(words: list[str], expected: str) -> None:
    line = told(*words)
    assert expected in line
    assert "\n" not in line
    assert "--help" in line or "use" in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ronds = 3", "key 'ronds' is unknown (did you mean rounds?)"),
        ('rounds = "x"', "--rounds: 'x' is not a whole number"),
        ("rounds = 2.5", "--rounds: '2.5' is not a whole number"),
        ("rounds = true", "rounds cannot be True"),
        ("rounds = [1]", "rounds cannot be [1]"),
        ("[training]\nrounds = 3", "key 'training' is unknown"),
        ("json = 1", "json cannot be 1"),
        ('config = "other.toml"', "key 'config' is unknown"),
        ("rounds =", "is not TOML"),
    ],
)
def test_a_mistake_in_the_file_names_the_file(toml: Callable[[str], str], text: str, expected: str) -> None:
    path = toml(text)
    line = told("--config", path)
    assert expected in line
    assert path in line


def test_an_unreadable_file_is_told(tmp_path: Path) -> None:
    assert "cannot be read" in told("--config", str(tmp_path / "none.toml"))


def test_a_file_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"seed = '\xff'")
    assert "not UTF-8" in told("--config", str(tmp_path / "a.toml"))


def test_a_mistake_in_the_environment_names_the_variable() -> None:
    assert "(from IOTSPLIT_ROUNDS)" in told(env={"IOTSPLIT_ROUNDS": "x"})
    assert "(from IOTSPLIT_JSON)" in told(env={"IOTSPLIT_JSON": "maybe"})


def test_help_shows_examples_first_then_every_option_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(Trial, ["--help"], name="iotsplit trial", examples=["iotsplit trial --data x"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    assert shown.startswith("Examples:\n  iotsplit trial --data x\n")
    assert all(leaf.flag in shown for leaf in leaves_of(Trial))
    assert "even on two lines" in " ".join(shown.split())
    assert (
        shown.index("Tries something.")
        < shown.index("─ The trial ─")
        < shown.index("What is trained")
        < shown.index("--config")
    )


@pytest.mark.parametrize("spec", [TrainingSettings, AgentOptions])
def test_every_option_has_a_help_line(spec: type) -> None:
    assert all(leaf.help for leaf in leaves_of(spec))


def test_no_option_is_a_secret() -> None:
    assert not {"password", "token", "secret"} & {each.name for each in fields(AgentOptions)}


def test_a_password_comes_from_its_file_before_the_environment(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("s3cret\n")
    options = AgentOptions(password_file=tmp_path / "password")
    assert options.password({"IOTSPLIT_PASSWORD": "other"}) == "s3cret"
    assert AgentOptions().password({"IOTSPLIT_PASSWORD": "other"}) == "other"
    assert AgentOptions().password({}) is None


def test_an_agent_without_a_thread_is_refused() -> None:
    with pytest.raises(UsageError, match="threads 0 is too small"):
        AgentOptions(threads=0)


def test_a_password_file_that_is_not_there_is_told() -> None:
    with pytest.raises(UsageError, match="password file"):
        AgentOptions(password_file=Path("/nonexistent")).password({})


def test_children_do_not_inherit_options_but_secrets() -> None:
    env = {"IOTSPLIT_ROUNDS": "3", "IOTSPLIT_CONFIG": "x.toml", "IOTSPLIT_PASSWORD": "x", "PATH": "/bin"}
    inherited = env | unset_options(env)
    assert inherited["IOTSPLIT_PASSWORD"] == "x"
    assert read(env=inherited) == read()
