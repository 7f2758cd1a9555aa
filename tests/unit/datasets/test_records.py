"""Reading records: every kind of file, and every way in which one can be wrong."""

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotsplit.datasets.records import Chat, ChatMessage, Pair, Record, Text, read, write_jsonl
from iotsplit.errors import UsageError


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.log", "A.LOG"])
def test_a_text_file_is_one_record(tmp_path: Path, name: str) -> None:
    assert read(put(tmp_path, name, "one\ntwo\n")) == [Text("one\ntwo\n")]


def test_lines_of_jsonl_may_be_of_every_kind(tmp_path: Path) -> None:
    rows = [
        {"text": "running text", "source": "ignored"},
        {"prompt": "p", "completion": "c", "split": "eval"},
        {
            "messages": [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "hello"},
            ]
        },
    ]
    path = put(tmp_path, "a.jsonl", "\n\n".join(map(json.dumps, rows)) + "\n")
    assert read(path) == [
        Text("running text"),
        Pair("p", "c", "eval"),
        Chat((ChatMessage("user", "hi"), ChatMessage("assistant", "hello"))),
    ]


def test_a_chat_ends_with_the_last_message_of_the_assistant(tmp_path: Path) -> None:
    turns = [("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4"), ("user", "5")]
    messages = [{"role": role, "content": content} for role, content in turns]
    (chat,) = read(put(tmp_path, "a.jsonl", json.dumps({"messages": messages})))
    assert isinstance(chat, Chat)
    assert chat.completion == "4"
    assert [message.content for message in chat.prompt] == ["1", "2", "3"]


def test_csv_columns_are_found_by_name(tmp_path: Path) -> None:
    path = put(tmp_path, "a.csv", 'id,completion,prompt\r\n1,"c, with\r\nlines",p\r\n')
    assert read(path) == [Pair("p", "c, with\r\nlines")]


def test_csv_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    assert read(put(tmp_path, "a.csv", b"\xef\xbb\xbftext\nhello\n")) == [Text("hello")]


def test_a_long_field_of_csv_is_read(tmp_path: Path) -> None:
    csv.field_size_limit(1 << 17)  # as Python begins
    (tmp_path / "long.csv").write_text(f"text\n{'x' * 200_000}\n")
    assert [len(record.text) for record in read(tmp_path / "long.csv") if isinstance(record, Text)] == [200_000]


def test_a_csv_column_says_what_is_held_out(tmp_path: Path) -> None:
    path = put(tmp_path, "a.csv", "text,split\na,eval\nb,\nc,train\n")
    assert read(path) == [Text("a", "eval"), Text("b"), Text("c", "train")]


@pytest.mark.parametrize(("columns", "expected"), [(("mr", "ref"), Pair("m", "r")), (("ref",), Text("r"))])
def test_columns_can_be_named(tmp_path: Path, columns: tuple[str, ...], expected: object) -> None:
    assert read(put(tmp_path, "a.csv", "mr,ref\nm,r\n"), columns=columns) == [expected]
    assert read(put(tmp_path, "a.jsonl", '{"mr":"m","ref":"r"}'), columns=columns) == [expected]


def test_a_line_separator_inside_a_string_does_not_end_the_line(tmp_path: Path) -> None:
    row = json.dumps({"text": "a\u2028b\x85c"}, ensure_ascii=False)
    assert read(put(tmp_path, "a.jsonl", row)) == [Text("a\u2028b\x85c")]


def test_a_folder_is_its_files_in_order(tmp_path: Path) -> None:
    put(tmp_path, "b.txt", "second")
    put(tmp_path, "a/z.log", "first")
    put(tmp_path, "README.md", "no data")
    put(tmp_path, ".hidden/c.txt", "no data")
    assert read(tmp_path) == [Text("first"), Text("second")]


texts = st.text(st.characters(exclude_categories=["Cs"]))
splits = st.sampled_from([None, "train", "eval"])
chats = st.lists(st.builds(ChatMessage, st.sampled_from(["system", "user"]), texts), max_size=3)
records = st.one_of(
    st.builds(Text, texts, splits),
    st.builds(Pair, texts, texts, splits),
    st.builds(
        lambda before, last, split: Chat((*before, ChatMessage("assistant", last)), split),
        chats,
        texts,
        splits,
    ),
)


@given(written=st.lists(records, min_size=1, max_size=5))
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, written: list[Record]) -> None:
    path = tmp_path_factory.mktemp("data") / "a.jsonl"
    write_jsonl(path, written)
    assert read(path) == written
    assert [file.name for file in path.parent.iterdir()] == ["a.jsonl"]


@given(rows=st.lists(st.tuples(texts, texts), min_size=1, max_size=4))
def test_csv_of_another_writer_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("data") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("prompt", "completion"), *rows])
    assert read(path) == [Pair(prompt, completion) for prompt, completion in rows]


WRONG = {
    "empty": ("a.txt", b" \n", "is empty"),
    "empty lines": ("a.jsonl", b"\n\n", "is empty"),
    "only a header": ("a.csv", b"text\n", "is empty"),
    "latin-1": ("a.log", b"one\ntwo \xe9\n", "line 2 is not UTF-8"),
    "broken JSON": ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not a JSON object"),
    "a JSON list": ("a.jsonl", b"[1]", "line 1 is not a JSON object"),
    "deep JSON": ("a.jsonl", b'{"a":' + b"[" * 9000, "line 1 is not a JSON object"),
    "other keys": ("a.jsonl", b'{"body": "a"}', "line 1 has no text, .* but body"),
    "no keys": ("a.jsonl", b"{}", "but nothing"),
    "half a pair": ("a.jsonl", b'{"prompt": "a"}', "line 1 has no text"),
    "a number": ("a.jsonl", b'{"text": 3}', r"line 1: Expected `str \| null`, got `int`"),
    "a split": ("a.jsonl", b'{"text": "a", "split": "test"}', "line 1: Invalid enum value 'test'"),
    "nobody answers": (
        "a.jsonl",
        b'{"messages": [{"role": "user", "content": "?"}]}',
        "line 1: messages hold none of the assistant",
    ),
    "other columns": ("a.csv", b"a,b\n1,2\n", "line 2 has no text, .* but a, b; .*--columns"),
    "too few fields": ("a.csv", b"prompt,completion\na,b\nc\n", "line 3 has not as many fields"),
    "too many fields": ("a.csv", b"text\na,b\n", "line 2 has not as many fields"),
    "open quotes": ("a.csv", b'text\n"a\n', "line 2 is not CSV"),
    "a picture": ("a.png", b"\x89PNG", "files of kind .png"),
    "no suffix": ("notes", b"text", r"files of kind \(no suffix\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_refused_with_its_place(tmp_path: Path, case: str) -> None:
    name, content, said = WRONG[case]
    with pytest.raises(UsageError, match=said) as caught:
        read(put(tmp_path, name, content))
    assert name in caught.value.message
    assert caught.value.fix


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.txt does not exist"):
        read(tmp_path / "gone.txt")


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, "a.txt", "secret")

    def refuse(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UsageError, match=r"cannot be read \(Permission denied\)"):
        read(path)


def test_a_folder_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path, pattern: str) -> list[Path]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rglob", refuse)
    with pytest.raises(UsageError, match=r"cannot be read \(Permission denied\)"):
        read(tmp_path)


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "photo.png", b"\x89PNG")
    with pytest.raises(UsageError, match=r"holds no \.txt, \.log, \.jsonl, \.csv file"):
        read(tmp_path)


def test_a_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="line 2 has no column ref") as caught:
        read(put(tmp_path, "a.csv", "mr,text\nm,r\n"), columns=("mr", "ref"))
    assert "mr, text" in caught.value.fix


def test_no_more_than_two_columns_can_be_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="columns are named"):
        read(put(tmp_path, "a.csv", "a,b,c\n1,2,3\n"), columns=("a", "b", "c"))
