"""Sources of text: formats, compressions, what a document is, and a clear error for all that can be wrong."""

import bz2
import codecs
import csv
import errno
import gzip
import json
import lzma
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hub_stand_in import HubStandIn, hub_environment, hub_stand_in

from pretrain.data import file_source, source_hashes, sources
from pretrain.data.local_files import files_elsewhere
from pretrain.data.source_hashes import hashes_of
from pretrain.data.sources import DocumentReader, Source, SourceError, read_documents, source_identity


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


def texts(path: Path | str, **fields: Any) -> list[str]:
    return [document["text"] for document in read_documents(Source(str(path), **fields), num_proc=1)]


def error_of(path: Path | str, **fields: Any) -> str:
    with pytest.raises(SourceError) as error:
        texts(path, **fields)
    return str(error.value)


def write(file: Path, content: str | bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def write_parquet(file: Path, columns: dict[str, list]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file


JSON_LINES = '{"id": 1, "text": "one"}\n{"id": 2, "text": "two\\nlines"}\n'
CSV = 'id,text\n1,one\n2,"two\nlines"\n'
FORMATS = {
    "a.txt": "one\n\ntwo\nlines\n",
    "a.text": "one\n\ntwo\nlines",
    "a.md": "one\n \t\ntwo\nlines\n\n",
    "a.jsonl": JSON_LINES,
    "a.ndjson": JSON_LINES,
    "a.json": JSON_LINES,
    "a.csv": CSV,
    "a.tsv": CSV.replace(",", "\t"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_reads_each_format(tmp_path: Path, name: str) -> None:
    assert texts(write(tmp_path / name, FORMATS[name])) == ["one", "two\nlines"]


@pytest.mark.parametrize("name", FORMATS)
def test_windows_line_ends_and_byte_order_mark_make_no_difference(tmp_path: Path, name: str) -> None:
    content = b"\xef\xbb\xbf" + FORMATS[name].replace("\n", "\r\n").rstrip().encode()
    assert texts(write(tmp_path / name, content)) == ["one", "two\nlines"]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_reads_compressed_files_also_of_several_parts(tmp_path: Path, name: str, compression: str) -> None:
    content = FORMATS[name].encode()
    compressed = b"".join(map(COMPRESSIONS[compression], (content[:7], content[7:])))
    assert texts(write(tmp_path / f"{name}{compression}", compressed)) == ["one", "two\nlines"]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.slow
def test_compressed_text_longer_than_any_buffer_is_whole(tmp_path: Path, compression: str) -> None:
    lines = [f"line {number} of the file" for number in range(100_000)]
    file = write(tmp_path / f"a.txt{compression}", COMPRESSIONS[compression]("\n".join(lines).encode()))
    assert texts(file) == lines


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_cut_or_corrupt_compressed_file(tmp_path: Path, compression: str) -> None:
    compressed = COMPRESSIONS[compression]("\n".join(map(str, range(100_000))).encode())
    cut = write(tmp_path / f"cut.txt{compression}", compressed[: len(compressed) // 2])
    assert error_of(cut).startswith(f"{cut}: cannot be decompressed, it is cut or corrupt: ")
    corrupt = write(tmp_path / f"corrupt.txt{compression}", b"this is not a compressed file")
    assert error_of(corrupt).startswith(f"{corrupt}: cannot be decompressed, it is cut or corrupt: ")


def test_reads_parquet(tmp_path: Path) -> None:
    many = [f"row {number}" for number in range(2500)]
    file = write_parquet(tmp_path / "a.parquet", {"id": [0, *range(2500)], "content": [None, *many]})
    assert texts(file, text_column="content") == many


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ("auto", ["a\nb", "c"]),
        ("blank_line", ["a\nb", "c"]),
        ("line", ["a", "b", "c"]),
        ("file", ["\na\nb\n\n\nc"]),
    ],
)
def test_what_a_document_is_in_a_text_file(tmp_path: Path, documents: str, expected: list[str]) -> None:
    assert texts(write(tmp_path / "a.txt", "\na\nb\n\n\nc\n"), documents=documents) == expected


def test_blank_lines_at_the_ends_of_a_text_file_separate_nothing(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a.txt", "\n\na\nb\n\n")) == ["a", "b"]


def test_unknown_kind_of_documents() -> None:
    with pytest.raises(
        SourceError, match="documents is 'page', but must be one of 'auto', 'line', 'blank_line', 'file'"
    ):
        Source("a.txt", documents="page")


def test_documents_are_named_after_the_place_where_they_start(tmp_path: Path) -> None:
    text = write(tmp_path / "a.txt", "\na\nb\n\nc\n")
    table = write(tmp_path / "b.csv", 'text\n"a\nb"\nc\n')
    parquet = write_parquet(tmp_path / "c.parquet", {"text": [None, "a"]})
    names = [document["name"] for document in read_documents(Source(str(tmp_path)), 1)]
    assert names == [f"{text}:2", f"{text}:5", f"{table}:2", f"{table}:4", f"{parquet}, row 2"]


def test_documents_without_text_are_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write(tmp_path / "a.jsonl", '{"text": " \\n"}\n{"text": null}\n\n{"text": ""}\n{"text": "one"}\n')
    assert texts(file) == ["one"]
    assert caplog.messages == [f"{file}: skipped 3 documents without text"]


def test_csv_fields_may_be_very_long_and_quoted(tmp_path: Path) -> None:
    long_text = 'He said "no, never".\n' * 100_000
    file = tmp_path / "a.csv"
    with open(file, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["text", "id"], [long_text, "1"], [], ["short", "2"]])
    assert texts(file) == [long_text, "short"]


def test_half_surrogate_pairs_in_json_become_text_that_can_be_encoded(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a.jsonl", '{"text": "a \\ud83d b \\ud83d\\ude00"}')) == ["a \ufffd b \U0001f600"]


def test_a_folder_is_read_at_all_depths_in_order_without_hidden_and_other_files(tmp_path: Path) -> None:
    for name in (
        "b.txt",
        "a/z.jsonl",
        "a/c/d.txt.gz",
        ".hidden.txt",
        ".git/e.txt",
        "model.bin",
        "notes.txt.lock",
    ):
        content = f'{{"text": "{name}"}}' if name.endswith("jsonl") else name
        write(tmp_path / "data" / name, gzip.compress(content.encode()) if name.endswith(".gz") else content)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/data").symlink_to(tmp_path / "data")
    (tmp_path / "data/a/loop").symlink_to(tmp_path / "data")
    expected = ["a/c/d.txt.gz", "a/z.jsonl", "b.txt"]
    assert texts(tmp_path / "data") == expected
    assert texts(tmp_path / "linked") == expected


def test_globs(tmp_path: Path) -> None:
    for name in ("a.txt", "b/c.txt", "b/d/e.txt", "b/readme.rst"):
        write(tmp_path / name, name)
    assert texts(tmp_path / "*.txt") == ["a.txt"]
    assert texts(tmp_path / "**/*.txt") == ["a.txt", "b/c.txt", "b/d/e.txt"]
    assert texts(tmp_path / "b/*") == ["b/c.txt"]


def test_pipes_are_no_files(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "one")
    os.mkfifo(tmp_path / "b.txt")
    assert texts(tmp_path) == texts(tmp_path / "*.txt") == ["one"]


def test_link_to_nothing(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "one")
    (tmp_path / "b.txt").symlink_to(tmp_path / "moved.txt")
    message = f"{tmp_path}/b.txt: what this link stands for is not there. Mend or remove the link"
    assert error_of(tmp_path) == error_of(tmp_path / "*.txt") == message


def test_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.txt", "one")
    write(tmp_path / "secret/b.txt", "two")
    scandir = os.scandir

    def refuse(folder: str):  # no right is denied to root
        if folder.endswith("secret"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert error_of(tmp_path) == f"{tmp_path}/secret: the folder cannot be read: Permission denied"


def test_relative_paths_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "corpus/a.txt", "one")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert texts("corpus") == texts("corpus/a.txt") == texts("~/corpus") == ["one"]


@pytest.mark.parametrize("path", ["./missing", "missing.txt", "a/b/c", "/missing/folder", "missing.jsonl.zst"])
def test_path_that_does_not_exist(path: str) -> None:
    assert error_of(path) == f"{path}: no such file or folder (from {os.getcwd()})"


def test_glob_without_matches(tmp_path: Path) -> None:
    assert error_of(tmp_path / "*.txt").startswith(f"The pattern {tmp_path}/*.txt (from {os.getcwd()}) holds no file")


def test_folder_without_usable_files_and_file_of_another_kind(tmp_path: Path) -> None:
    file = write(tmp_path / "model.bin", "x")
    supported = (
        "Supported are .txt, .text, .md, .jsonl, .ndjson, .json, .csv, .tsv, .parquet; "
        "all but .parquet also with .gz, .bz2, .xz or .zst after it"
    )
    assert error_of(tmp_path) == f"The folder {tmp_path} holds no file that can be read. {supported}"
    assert error_of(file) == f"{file}: this kind of file is not supported. {supported}"


@pytest.mark.parametrize("content", [b"", b" \n\t\n", b"\xef\xbb\xbf"])
def test_empty_file(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "a.txt", "text")
    file = write(tmp_path / "b.txt", content)
    message = f"{file}: the file is empty or holds only white space. Remove it or put text into it"
    assert error_of(file) == error_of(tmp_path) == message


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_bytes_that_are_not_utf8(tmp_path: Path, name: str) -> None:
    first_line = {"a.txt": "one", "a.csv": "text", "a.jsonl": '{"text": "one"}'}[name]
    file = write(tmp_path / name, first_line.encode() + b"\ncaf\xe9\n")
    assert error_of(file) == (
        f"{file}:2: byte 4 of the line (0xe9) is not UTF-8. Mend the line, or, if all of the file has another "
        "encoding, which the command `file` may tell (WINDOWS-1252 is frequent in the West): "
        f"Convert it: < {file} iconv -f ENCODING -t UTF-8 > NEW_FILE"
    )


ENCODED = {
    "a.txt": "The first.\n\nÜber das zweite.\n",
    "b.txt": "Первый текст.\n\nВторой.\n",
    "c.txt": "第一篇。 一 一。\n\n第二篇。\n",
    "a.csv": "id,text\n1,one\n2,two\n",
    "a.jsonl": '{"text": "one"}\n{"text": "two"}\n',
}
WIDE = {"UTF-16LE": codecs.BOM_UTF16_LE, "UTF-16BE": codecs.BOM_UTF16_BE, "UTF-32LE": codecs.BOM_UTF32_LE}


@pytest.mark.skipif(shutil.which("iconv") is None, reason="needs iconv")
@pytest.mark.parametrize("with_mark", [True, False])
@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("name", ENCODED)
def test_text_of_several_bytes_a_letter_is_named_and_the_conversion_works(
    tmp_path: Path, name: str, encoding: str, with_mark: bool
) -> None:
    content = WIDE[encoding] * with_mark + ENCODED[name].encode(encoding)
    for file, data in ((tmp_path / f"a b {name}", content), (tmp_path / f"{name}.gz", gzip.compress(content))):
        message = error_of(write(file, data))
        start, command = message.split("Convert it: ")
        assert start == f"{file}: the text is {encoding}, not UTF-8. "
        converted = tmp_path / "new" / name
        converted.parent.mkdir(exist_ok=True)
        subprocess.run(command.replace("NEW_FILE", str(converted)), shell=True, check=True)
        assert texts(converted) == texts(write(tmp_path / "expected" / name, ENCODED[name]))


def test_zero_bytes_in_text_of_one_byte_a_letter_make_no_other_encoding_of_it(tmp_path: Path) -> None:
    content = "A text\0 with some\0 zero bytes in it, of which nobody knows what for.\n"
    assert texts(write(tmp_path / "a.txt", content)) == [content.strip("\n")]


REPEATED = {
    "a.csv": "text,id,text\nold,1,new\n",
    "a.tsv": "text\tid\ttext\nold\t1\tnew\n",
    "a.jsonl": '{"text": "old", "more": {"text": 1}, "text": "new"}\n',
}


@pytest.mark.parametrize("name", REPEATED)
def test_two_columns_of_one_name(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, REPEATED[name])
    message = f"{file}:1: there is more than one column 'text'. Rename those that are not to be read"
    assert error_of(file) == message
    inner = '{"more": {"text": 1}, "text": "one"}\n{"text": "of the key \\"text\\""}\n'
    assert texts(write(tmp_path / "b.jsonl", inner)) == ["one", 'of the key "text"']
    # Other columns may have any names.
    assert texts(write(tmp_path / "b.csv", "id,id,text\n1,2,one\n")) == ["one"]


def test_two_columns_of_one_name_in_parquet(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array(["old"]), pyarrow.array(["new"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert error_of(tmp_path / "a.parquet").startswith(f"{tmp_path}/a.parquet: there is more than one column 'text'")


@pytest.mark.parametrize("splits", [False, True])
def test_dataset_of_save_to_disk_is_named_and_the_conversion_works(tmp_path: Path, splits: bool) -> None:
    dataset = datasets.Dataset.from_dict({"text": ["one", "two"]})
    saved = tmp_path / "data" / "it's saved"
    (datasets.DatasetDict(train=dataset) if splits else dataset).save_to_disk(saved)
    message = error_of(tmp_path / "data")
    start, command = message.split("Make a Parquet file of it: ")
    assert start == f"{saved}: this is a dataset that `save_to_disk` wrote, whose Arrow files are not read. "
    assert error_of(saved) == error_of(tmp_path / "data" / "**" / "*.json") == message
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True, cwd=tmp_path)
    assert texts(tmp_path / "text.parquet") == ["one", "two"]


def test_files_that_links_lead_to_elsewhere(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere/a.txt", "one")
    write(tmp_path / "data/b.txt", "two")
    (tmp_path / "data/c.txt").symlink_to(tmp_path / "data/b.txt")
    (tmp_path / "data/d.txt").symlink_to(tmp_path / "elsewhere/a.txt")
    (tmp_path / "data/e").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for path in ("data", "data/**/*.txt", "link"):
        base = tmp_path / path.split("/")[0]
        assert files_elsewhere(Source(str(tmp_path / path))) == [f"{base}/d.txt", f"{base}/e/a.txt"]
    assert files_elsewhere(Source(str(tmp_path / "data/d.txt"))) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"text": "one"}\n{"text": two}\n',
            ":2: not JSON: Expecting value at column 10. Each line must be one object",
        ),
        ('"one"\n', ":1: each line must be a JSON object, but this is a string"),
        (
            '[{"text": "one"}]\n',
            (
                ":1: each line must be a JSON object, but this is an array. "
                "A file that is one array becomes JSON lines by: jq -c '.[]' FILE"
            ),
        ),
        (
            '[\n{"text": "one"}\n]\n',
            (
                ":1: not JSON: Expecting value at column 1. Each line must be one object. "
                "A file that is one array becomes JSON lines by: jq -c '.[]' FILE"
            ),
        ),
        (
            '{"text": "one"}\n\n{"txt": "two", "id": 3}\n',
            (":3: there is no column 'text', only 'txt', 'id'. Set text_column to one of them; did you mean 'txt'?"),
        ),
        ('{"text": ["one"]}\n', ":1: the column 'text' must hold text, but here it is ['one'] (list)"),
    ],
)
def test_broken_json_lines(tmp_path: Path, content: str, message: str) -> None:
    file = write(tmp_path / "a.json", content)
    assert error_of(file).replace("Expecting value at column 2", "Expecting value at column 1") == f"{file}{message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "id,body\n1,one\n",
            ":1: there is no column 'text', only 'id', 'body'. Set text_column to one of them",
        ),
        (
            'id,text\n1,"a\nb"\n2,one,two\n',
            (
                ":4: the row has 3 fields, but the header has 2. "
                "Quote fields that contain the delimiter, a quote or a line end"
            ),
        ),
        ('id,text\n1,one\n2,"two\n', ":3: broken row: unexpected end of data. Check the quotes of this row"),
        (
            'id,text\n1,"one" two\n',
            """:2: broken row: ',' expected after '"'. Check the quotes of this row""",
        ),
    ],
)
def test_broken_csv(tmp_path: Path, content: str, message: str) -> None:
    file = write(tmp_path / "a.csv", content)
    assert error_of(file) == f"{file}{message}"


def test_broken_parquet(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", "this is not Parquet, whatever its name is")
    assert error_of(file).startswith(f"{file}: not a whole Parquet file: ")
    file = write_parquet(tmp_path / "b.parquet", {"texts": ["one"], "id": [1]})
    assert error_of(file) == (
        f"{file}: there is no column 'text', only 'texts', 'id'. Set text_column to one of them; did you mean 'texts'?"
    )
    assert error_of(file, text_column="id") == f"{file}, row 1: the column 'id' must hold text, but here it is 1 (int)"


def test_documents_are_read_one_at_a_time(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"text": "one"}\n{"text": "two"}\nbroken\n')
    documents = read_documents(Source(str(file)), 1)
    assert [next(documents)["text"], next(documents)["text"]] == ["one", "two"]
    with pytest.raises(SourceError, match="a.jsonl:3: not JSON"):
        next(documents)


def test_identity_of_files_is_their_content_and_how_it_is_read(tmp_path: Path) -> None:
    file = write(tmp_path / "data/a.txt", "one")
    source = Source(str(tmp_path / "data"))
    identity = source_identity(source)
    assert json.loads(json.dumps(identity)) == identity
    os.utime(file, ns=(0, 1_000_000_008))
    assert source_identity(source) == identity
    shutil.move(tmp_path / "data", tmp_path / "moved")
    moved = tmp_path / "moved/a.txt"
    assert source_identity(Source(str(tmp_path / "moved"))) == source_identity(Source(str(moved))) == identity
    assert source_identity(Source(str(moved), documents="file")) != identity
    assert source_identity(Source(str(moved), text_column="body")) != identity
    for name in ("a.jsonl", "a.txt.gz"):
        assert source_identity(Source(str(write(tmp_path / name, "one")))) != identity
    status = moved.stat()
    write(moved, "two")
    os.utime(moved, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert source_identity(Source(str(moved))) != identity


def test_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def hash_file(path: Path) -> str:
        hashed.append(path.name)
        return path.read_text(encoding="utf-8")

    monkeypatch.setattr(source_hashes, "hash_file", hash_file)
    files = [str(write(tmp_path / name, name)) for name in ("a.txt", "b.txt")]
    memory = tmp_path / "prepared"
    for _ in range(2):
        assert hashes_of(files, memory) == hashes_of(files[:1], memory) + ["b.txt"] == ["a.txt", "b.txt"]
    assert hashed == ["a.txt", "b.txt"]
    # Another content, of the same size and time.
    status = os.stat(files[0])
    write(tmp_path / "a.txt", "c.txt")
    os.utime(files[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert hashes_of(files, memory) == ["c.txt", "b.txt"]
    assert hashed == ["a.txt", "b.txt", "a.txt"]
    # What is remembered is checked, too.
    remembered = memory / "sources.json"
    remembered.write_text(remembered.read_text(encoding="utf-8").replace('b.txt"', 'd.txt"'), encoding="utf-8")
    assert hashes_of(files, memory) == ["c.txt", "b.txt"]
    assert hashed == ["a.txt", "b.txt", "a.txt", "a.txt", "b.txt"]


@pytest.mark.slow
def test_python_docs_is_a_source() -> None:
    document = next(read_documents(Source("python-docs"), 1))
    assert document["name"].startswith("stdlib:")
    identity = source_identity(Source("python-docs"))
    assert identity["kind"] == "python-docs"
    assert "pytest" in identity["distributions"]


HUB_FILES = {
    "org/plain/train.jsonl": '{"text": "one"}\n{"text": null}\n{"text": "two"}\n',
    "org/plain/validation.jsonl": '{"text": "three"}\n',
    "org/configs/README.md": (
        "---\nconfigs:\n- config_name: short\n  data_files: short.csv\n"
        "- config_name: long\n  data_files: long.csv\n---\n"
    ),
    "org/configs/short.csv": "sentence\ns\n",
    "org/configs/long.csv": "sentence\nlong\n",
    "org/empty/README.md": "Nothing is here.\n",
}

# Runs in its own process, since the libraries read the address of the Hub when they are imported.
READ_SOURCES = """
import json, sys
from pretrain.data.sources import Source, SourceError, read_documents, source_identity
results = []
for fields in json.load(sys.stdin):
    source = Source(**fields)
    try:
        texts = [document["text"] for document in read_documents(source, 1)]
        results.append([texts, source_identity(source)])
    except SourceError as error:
        results.append([str(error), None])
print(json.dumps(results))
"""


def read_in_process(environment: dict[str, str], folder: Path, *sources: dict[str, str]) -> list[list[Any]]:
    """The texts, or the error, of each source, and its identity."""
    environment = environment | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", READ_SOURCES]
    done = subprocess.run(
        command,
        input=json.dumps(sources),
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubStandIn]:
    folder = tmp_path_factory.mktemp("hub")
    for name, content in HUB_FILES.items():
        write(folder / "datasets" / name, content)
    with hub_stand_in(folder) as running:
        yield running
    assert running.unknown_requests == []


@pytest.mark.slow
def test_reads_datasets_of_the_hub(hub: HubStandIn, tmp_path: Path) -> None:
    plain, by_old_name, validation, config, slice_ = read_in_process(
        hub.environment(tmp_path / "home"),
        tmp_path,
        {"path": "org/plain"},
        {"path": "plain"},
        {"path": "org/plain", "split": "validation", "revision": "main"},
        {"path": "org/configs", "config": "long", "text_column": "sentence"},
        {"path": "org/plain", "split": "train[:1]"},
    )
    assert plain[0] == by_old_name[0] == ["one", "two"]
    assert (validation[0], config[0], slice_[0]) == (["three"], ["long"], ["one"])
    assert plain[1]["id"] == by_old_name[1]["id"] == "org/plain"
    assert len(plain[1]["commit"]) == 40
    assert plain[1]["commit"] != config[1]["commit"]
    assert plain[1] != validation[1] != slice_[1]


@pytest.mark.slow
def test_what_was_read_once_is_read_without_the_hub(hub: HubStandIn, tmp_path: Path) -> None:
    source = {"path": "org/plain"}
    online = read_in_process(hub.environment(tmp_path / "home"), tmp_path, source)
    cached, unknown, other_config, other_revision = read_in_process(
        hub.environment(tmp_path / "home") | {"HF_HUB_OFFLINE": "1"},
        tmp_path,
        source,
        {"path": "org/configs"},
        {"path": "org/plain", "config": "long"},
        {"path": "org/plain", "revision": "v9"},
    )
    assert cached == online[0]
    assert unknown[0].startswith("The dataset 'org/configs' is not in the cache, and HF_HUB_OFFLINE forbids")
    assert other_config[0].startswith("HF_HUB_OFFLINE is set. Couldn't find cache for org/plain for config 'long'")
    assert other_revision[0] == (
        "HF_HUB_OFFLINE is set, so nobody knows what revision 'v9' of the dataset 'org/plain' is. "
        f"In the cache is the commit {online[0][1]['commit']}"
    )


@pytest.mark.slow
def test_what_can_be_wrong_with_a_dataset_of_the_hub(hub: HubStandIn, tmp_path: Path) -> None:
    results = read_in_process(
        hub.environment(tmp_path / "home"),
        tmp_path,
        {"path": "org/unknown"},
        {"path": "org/plain", "revision": "v9"},
        {"path": "org/configs"},
        {"path": "org/configs", "config": "longer"},
        {"path": "org/plain", "split": "test"},
        {"path": "org/plain", "text_column": "txt"},
        {"path": "org/empty"},
    )
    assert [message for message, _ in results] == [
        (
            f"'org/unknown' is neither a file or folder (from {tmp_path}) nor a dataset of the Hub that "
            "you can see. Check the spelling; for a private dataset log in with `hf auth login`"
        ),
        "The dataset 'org/plain' of the Hub has no revision 'v9'",
        "The dataset 'org/configs' of the Hub has several configs. Set config to one of 'short', 'long'",
        "The dataset 'org/configs' of the Hub has no config 'longer'. Set config to one of 'short', 'long'",
        "The dataset 'org/plain' of the Hub has no split 'test'. Set split to one of 'train', 'validation'",
        (
            "org/plain (train): there is no column 'txt', only 'text'. "
            "Set text_column to one of them; did you mean 'text'?"
        ),
        "The dataset 'org/empty' of the Hub holds no data files that can be read",
    ]


def test_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    with hub_stand_in(tmp_path) as stopped:
        endpoint = stopped.endpoint
    [[message, _]] = read_in_process(hub_environment(endpoint, tmp_path / "home"), tmp_path, {"path": "org/plain"})
    assert message.startswith("The Hub cannot be reached to look for the dataset 'org/plain' (")
    assert message.endswith(
        f"), and there is no file or folder of that name (from {tmp_path}). "
        "To use what an earlier run left in the cache, set HF_HUB_OFFLINE=1"
    )


@pytest.mark.slow
def test_models_of_the_stand_in_load_like_those_of_the_hub(tmp_path: Path) -> None:
    write(tmp_path / "models/org/tiny/config.json", '{"model_type": "bert", "hidden_size": 12}')
    script = "from transformers import AutoConfig; print(AutoConfig.from_pretrained('org/tiny').hidden_size)"
    with hub_stand_in(tmp_path) as running:
        command = [sys.executable, "-c", script]
        environment = running.environment(tmp_path / "home")
        assert subprocess.check_output(command, env=environment, cwd=tmp_path, text=True).strip() == "12"
        assert running.unknown_requests == []


def skipped(path: Path | str, **fields: Any) -> tuple[list[str], dict[str, int]]:
    """The documents that are left where bad records are left out, and how many of each kind those are."""
    reader = DocumentReader(Source(str(path), on_bad_record="skip", **fields), 1)
    documents = [document.text.decode() for document in reader]
    kinds: dict[str, int] = {}
    for of_file in reader.take_counts().bad.values():
        for kind, entry in of_file.items():
            kinds[kind] = kinds.get(kind, 0) + entry["count"]
    return documents, kinds


JSON_ERRORS = {"not JSON": 1, "not an object": 1}
BAD_FILES = {
    "a.txt": (b"one\nlatin \xe9\nstill one\n\ntwo\n", ["one\nstill one", "two"], {"not UTF-8": 1}),
    "a.jsonl": (
        b'{"text": "one"}\n{"text": \n\n[]\n{"text": "two"}\n',
        ["one", "two"],
        {"not JSON": 1, "not an object": 1},
    ),
    "a.csv": (b'id,text\n1,one\n2,"x" y\n3,a,b\n4,"two"\n', ["one", "two"], {"broken row": 2}),
    "b.csv": (b"id,body\n1,one\n", [], {"missing column": 1}),
    "a.txt.gz": (gzip.compress(b"one\n\n" * 50_000, mtime=0)[:-20], None, {"damaged file": 1}),
    "a.parquet": (b"PAR1 and no more", [], {"damaged file": 1}),
    "empty.txt": (b"", [], {"empty file": 1}),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_records_are_left_out(tmp_path: Path, name: str) -> None:
    content, expected, kinds = BAD_FILES[name]
    write(tmp_path / "good.txt", "good")
    write(tmp_path / name, content)
    documents, found = skipped(tmp_path)
    assert found == kinds
    assert documents.count("good") == 1
    rest = [document for document in documents if document != "good"]
    assert rest == expected if expected is not None else set(rest) == {"one"} and len(rest) > 100


def test_documents_longer_than_memory_should_hold_come_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (file_source, sources):
        monkeypatch.setattr(module, "MAX_DOCUMENT_BYTES", 1000)
    words = " ".join(f"wörd{number}" for number in range(2000))
    write(tmp_path / "a.txt", f"short\n\n{words}\nits next line\n\nlast\n")
    write(tmp_path / "b.jsonl", json.dumps({"text": words}) + "\n")
    write(tmp_path / "c.txt", "ü" * 3000 + "\n")  # no place to cut but between characters
    reader = DocumentReader(Source(str(tmp_path)), 1)
    documents = list(reader)
    assert max(len(document.text) for document in documents) <= 1000
    of_file = {
        name: [document.text.decode() for document in documents if f"/{name}" in document.name]
        for name in ("a.txt", "b.jsonl", "c.txt")
    }
    assert of_file["a.txt"][0] == "short" and of_file["a.txt"][-1] == "last"
    assert "".join(of_file["a.txt"][1:-1]).replace("\n", " ").replace("  ", " ") == f"{words} its next line"
    assert "".join(of_file["b.jsonl"]) == words and "".join(of_file["c.txt"]) == "ü" * 3000
    assert reader.take_counts().cut == 3
    assert all(piece.split()[-1].startswith("wörd") for piece in of_file["b.jsonl"])


@pytest.mark.parametrize("name", FORMATS)
def test_reading_goes_on_from_any_document(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (file_source, sources):
        monkeypatch.setattr(module, "MAX_DOCUMENT_BYTES", 8)
    for number in range(2):
        content = FORMATS[name].replace("one", "one that is long").replace("lines", "lines that are long")
        write(tmp_path / f"{number}{name}", content)
    source = Source(str(tmp_path))
    whole = list(DocumentReader(source, 1))
    assert len(whole) >= 12
    for count in range(len(whole) + 1):
        reader = DocumentReader(source, 1)
        begun = list(islice(reader, count))
        position = json.loads(json.dumps(reader.position))
        assert begun + list(DocumentReader(source, 1, position)) == whole


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": 0}, "weight is 0, but must be a number above 0, or null"),
        ({"weight": "half"}, "weight is 'half', but must be a number above 0, or null"),
        ({"streaming": "yes"}, "streaming is 'yes', but must be true or false"),
        ({"text_column": None}, "text_column is None, but must be text"),
        ({"config": 2019}, "config is 2019, but must be text"),
        ({"on_bad_record": "ignore"}, "on_bad_record is 'ignore', but must be one of 'error', 'skip'"),
    ],
)
def test_fields_that_make_no_sense(fields: dict, message: str) -> None:
    with pytest.raises(SourceError, match=f"a.txt: {message}"):
        Source("a.txt", **fields)


def test_path_that_is_no_text() -> None:
    with pytest.raises(SourceError, match="5: path is 5, but must be text"):
        Source(5)  # type: ignore[arg-type]
