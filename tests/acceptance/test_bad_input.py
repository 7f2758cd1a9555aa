"""Bad input: one line on stderr that says what, where and what to do, and the right exit code."""

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from transformers import BertConfig

from iotsplit.cli import main

Put = Callable[[str, bytes], Path]

DATA = {
    "empty.txt": b" \n",
    "latin1.txt": b"caf\xe9\n",
    "broken.jsonl": b'{"text": "a"}\n{"text": "\n',
    "keys.jsonl": b'{"note": "a"}\n',
    "columns.csv": b"mr,ref\na,b\n",
    "ragged.csv": b"text,more\na\n",
    "few.jsonl": b'{"text": "a"}\n',
    "picture.png": b"\x89PNG",
    "wrong.toml": b"ronds = 3\n",
    "kind.toml": b'rounds = "three"\n',
    "torn.toml": b"rounds =\n",
    "good.txt": b"the press is too hot today\n" * 60,
    "magic.gguf": b"GGUF\x03\0\0\0" + b"\xff" * 99,
    "empty.gguf": b"",
}

RUN = "run --model={model} --cut=1,3 --output={tmp}/out"
SPLIT = "split --cut=1,3 --output={tmp}/parts"
NOBODY = "--broker=mqtt://127.0.0.1:1"

# For each command line: the exit code, and words that the line must hold.
CASES: list[tuple[str, int, str, str]] = [
    ("rnu", 2, "no command 'rnu'", "iotsplit run?"),
    ("adapters lst", 2, "no command adapters lst (did you mean list?)", "--help"),
    ("adapters show first", 2, "needs a version", "adapters show 2"),
    ("run --modle=x", 2, "--modle", "--model"),
    ("run stray", 2, "unexpected 'stray'", "--help"),
    ("run --rounds=three", 2, "--rounds", "--help"),
    ("run --codec=zip", 2, "codec 'zip'", "int8"),
    ("run --learning-rate=nan", 2, "learning_rate", "1e-3"),
    ("run --edges=0", 2, "edges 0", "1 or more"),
    ("run --output=", 2, "--output", "it is empty"),
    ("run --fleet=a/b", 2, "fleet 'a/b'", "characters"),
    ("run --broker=http://x", 2, "'http://x' is no broker address", "mqtt://HOST:PORT"),
    ("run --config={tmp}/none.toml", 2, "{tmp}/none.toml cannot be read", "check the path"),
    ("run --config={tmp}/wrong.toml", 2, "{tmp}/wrong.toml: key 'ronds'", "did you mean rounds?"),
    ("run --config={tmp}/kind.toml", 2, "--rounds", "(in {tmp}/kind.toml)"),
    ("run --config={tmp}/torn.toml", 2, "{tmp}/torn.toml is not TOML", "line 1"),
    (f"run {NOBODY}", 3, "nobody listens at mqtt://127.0.0.1:1", "iotsplit broker"),
    ("run --broker=mqtt://none.invalid", 3, "no host named none.invalid", "--broker"),
    (
        "run --broker=mqtts://127.0.0.1:1 --ca-file={tmp}/good.txt",
        2,
        "{tmp}/good.txt holds no certificate",
        "PEM",
    ),
    (f"adapters list {NOBODY}", 3, "nobody listens at mqtt://127.0.0.1:1", "iotsplit broker"),
    (f"export --output={{tmp}}/good.txt {NOBODY}", 2, "{tmp}/good.txt is a file", "--output"),
    ("run --output={tmp}/good.txt", 2, "{tmp}/good.txt is a file", "--output"),
    ("run --output=/proc/none", 1, "cannot write /proc/none", "--output"),
    ("split --model={model} --cut=0,3 --output={tmp}/parts", 2, "cut 0,3", "0 < A < B < 5"),
    ("split --model={model} --cut=3,3 --output={tmp}/parts", 2, "cut 3,3", "0 < A < B < 5"),
    ("split --model={model} --cut=1,6 --output={tmp}/parts", 2, "cut 1,6", "0 < A < B < 5"),
    (f"{SPLIT} --model={{tmp}}/bert", 2, "{tmp}/bert is a bert model", "smollm2"),
    (f"{SPLIT} --model={{tmp}}/unconfigured", 2, "{tmp}/unconfigured holds no config.json", "smollm2"),
    (f"{SPLIT} --model={{tmp}}/cut-short", 2, "cut-short/model.safetensors cannot be read", "fetch"),
    (f"{SPLIT} --model={{tmp}}/magic.gguf", 2, "{tmp}/magic.gguf cannot be read", "fetch"),
    (f"{SPLIT} --model={{tmp}}/empty.gguf", 2, "{tmp}/empty.gguf cannot be read", "fetch"),
    (f"{SPLIT} --model={{tmp}}/none", 2, "model '{tmp}/none' does not exist", "smollm2"),
    (f"{RUN} --data={{tmp}}/none", 2, "no data at '{tmp}/none'", "plant"),
    (f"{RUN} --data={{tmp}}/empty.txt", 2, "{tmp}/empty.txt is empty", "fill it"),
    (f"{RUN} --data={{tmp}}/latin1.txt", 2, "{tmp}/latin1.txt line 1 is not UTF-8", "iconv"),
    (f"{RUN} --data={{tmp}}/broken.jsonl", 2, "{tmp}/broken.jsonl line 2 is not a JSON object", '{{"text"'),
    (f"{RUN} --data={{tmp}}/keys.jsonl", 2, "{tmp}/keys.jsonl line 1 has no text", "--columns"),
    (f"{RUN} --data={{tmp}}/columns.csv", 2, "{tmp}/columns.csv line 2 has no text", "mr, ref; "),
    (f"{RUN} --data={{tmp}}/columns.csv --columns=a", 2, "no column a", "mr, ref"),
    (f"{RUN} --data={{tmp}}/ragged.csv", 2, "{tmp}/ragged.csv line 2", "quotes"),
    (f"{RUN} --data={{tmp}}/picture.png", 2, "files of kind .png", ".jsonl"),
    (f"{RUN} --data={{tmp}}/few.jsonl", 2, "1 records are too few for 4 devices", "fewer devices"),
    (f"{RUN} --data={{tmp}}/good.txt --partition=fair", 2, "partition 'fair'", "dirichlet"),
    ("cloud --model={model} --cut=1,3 --target-modules=q --output={tmp}/out", 2, "target_modules q", "q_proj"),
    ("cloud --model={model} --cut=1,3 --schedule=often --output={tmp}/out", 2, "schedule 'often'", "every 30m"),
    ("cloud --threads=0", 2, "threads 0", "1 or more"),
    ("device --model={model}", 2, "a device needs data", "--data"),
    ("device --model={model} --data={tmp}/good.txt --id=a/b", 2, "agent id 'a/b'", "characters"),
    ("broker --port=70000", 2, "port 70000", "65535"),
    ("broker --users-file={tmp}/none", 2, "{tmp}/none is not there", "check the path"),
    ("broker --directory=/proc/none", 2, "directory /proc/none", "--directory"),
]


@pytest.fixture(scope="module")
def place(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files and models that cannot be used."""
    tmp = tmp_path_factory.mktemp("bad")
    for name, content in DATA.items():
        (tmp / name).write_bytes(content)
    shutil.copytree(model, tmp / "unconfigured").joinpath("config.json").unlink()
    weights = shutil.copytree(model, tmp / "cut-short") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    BertConfig().save_pretrained(tmp / "bert")
    header = b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}'
    (tmp / "bert" / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    return tmp


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Keep commands out of each other's way: the directory they are in, the cache, where they log."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IOTSPLIT_CACHE_DIR", str(tmp_path / "cache"))
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize(("line", "code", "what", "fix"), CASES, ids=[case[0] for case in CASES])
def test_bad_input_is_told_in_one_line(
    *, line: str, code: int, what: str, fix: str, model: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = line.format(model=model, tmp=place).split()
    assert main(words) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert told.err.startswith("iotsplit: error: ")
    assert what.format(tmp=place) in told.err
    assert fix.format(tmp=place) in told.err

    shutil.rmtree("out", ignore_errors=True)
    assert main([*words, "--json"]) == code
    told = capsys.readouterr()
    assert told.out == ""
    error = json.loads(told.err)
    assert error["code"] == code
    assert error["message"]
    assert error["fix"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("ROUNDS", "three"), ("CUT", "4"), ("LABELS", "nowhere"), ("JSON", "perhaps"), ("EDGES", "0.5")],
)
def test_a_wrong_value_in_the_environment_names_its_variable(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(f"IOTSPLIT_{name}", value)
    assert main(["run"]) == 2
    assert f"(from IOTSPLIT_{name})" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "demo", "cloud", "edge", "device", "broker run", "export", "split"])
def test_help_has_examples_groups_and_defaults_without_colour_off_a_terminal(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"Examples:\n  iotsplit {command.split(maxsplit=1)[0]}")
    assert "─ Options of every command ─" in shown
    assert "[default: " in shown
    assert "\x1b" not in shown
