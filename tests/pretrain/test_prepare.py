"""Preparation: what the folder holds, that it is found again, and that it is whole or not there."""

import math
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pretrain.configuration import PretrainConfig
from pretrain.data.packed_data import PackedRows
from pretrain.data.tokenizer import load_tokenizer
from pretrain.prepare import PreparationError, entropy, prepare, read_manifest


SPLITS = ("train", "validation")


@pytest.fixture
def text(sentences: Callable, tmp_path: Path) -> Path:
    return sentences(tmp_path / "text.txt", documents=40)


@pytest.fixture
def config(build_config: Callable, text: Path, tmp_path: Path) -> PretrainConfig:
    """A corpus and a folder of prepared data of the test's own."""
    return build_config(tmp_path / "run", data=str(text), prepared_dir=str(tmp_path / "prepared"))


def documents_of(prepared: Path, split: str) -> list[str]:
    """The documents of a split, decoded; each must end in </s>."""
    tokenizer = load_tokenizer(str(prepared / "tokenizer"))
    rows = PackedRows.open(prepared, split, max_length=32)
    assert rows.documents[0] == 0 and rows.documents[-1] == len(rows.stream)
    pieces = [rows.stream[first:last] for first, last in zip(rows.documents[:-1], rows.documents[1:], strict=True)]
    assert all(piece[-1] == tokenizer.sep_token_id and tokenizer.sep_token_id not in piece[:-1] for piece in pieces)
    return [tokenizer.decode(piece[:-1]) for piece in pieces]


def texts_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").strip().split("\n\n")


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def folders(config: PretrainConfig) -> list[Path]:
    return sorted(path for path in Path(config.prepared_dir).iterdir() if path.is_dir())


def test_tokens_decode_to_the_documents(config: PretrainConfig, text: Path):
    prepared = prepare(config)
    train, validation = (documents_of(prepared, split) for split in SPLITS)
    assert sorted(train + validation) == sorted(texts_of(text))
    assert not set(train) & set(validation)
    assert train and validation
    # Each split keeps the order of the text.
    assert [document for document in texts_of(text) if document in set(train)] == train


def test_manifest_tells_what_the_folder_holds(config: PretrainConfig):
    prepared = prepare(config)
    manifest = read_manifest(prepared)
    assert prepared.name.endswith(manifest["fingerprint"])
    assert (manifest["token_type"], manifest["row_ends"], manifest["pad_token_id"]) == ("uint16", [0, 2], 1)
    assert manifest["vocab_size"] == len(load_tokenizer(str(prepared / "tokenizer"))) <= 400
    assert sum(manifest["splits"][split]["documents"] for split in SPLITS) == 40
    for split in SPLITS:
        counts = manifest["splits"][split]
        documents = documents_of(prepared, split)
        stream = np.fromfile(prepared / f"{split}.tokens", dtype=np.uint16)
        lengths = np.diff(np.load(prepared / f"{split}.documents.npy"))
        shares = np.unique(stream, return_counts=True)[1] / len(stream)
        assert counts == {
            "documents": len(documents),
            "bytes": sum(len(document.encode()) for document in documents),
            "tokens": len(stream),
            "document_tokens": {"median": float(np.median(lengths)), "longest": lengths.max()},
            "unigram_entropy": pytest.approx(-sum(share * math.log(share) for share in shares)),
        }
    on_disk = {str(path.relative_to(prepared)) for path in prepared.rglob("*") if path.is_file()}
    assert on_disk == {*manifest["files"], "manifest.json"}


def test_entropy_of_counts():
    assert entropy(np.array([8, 0, 8, 8, 8])) == pytest.approx(math.log(4))
    assert entropy(np.array([3, 1])) == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    assert entropy(np.array([5])) == 0


def test_hold_out_share(build_config: Callable, sentences: Callable, tmp_path: Path):
    text = sentences(tmp_path / "text.txt", documents=1000)
    for share in (0.1, 0.4):
        config = build_config(
            tmp_path, data=str(text), prepared_dir=str(tmp_path / "prepared"), validation_share=share, vocab_size=280
        )
        splits = read_manifest(prepare(config))["splits"]
        assert splits["validation"]["documents"] / 1000 == pytest.approx(share, abs=0.04)


def test_documents_stay_on_their_side_when_others_are_added(config: PretrainConfig, text: Path):
    before = {split: set(documents_of(prepare(config), split)) for split in SPLITS}
    first = "A new document comes before all the others.\n\n"
    text.write_text(first + text.read_text(encoding="utf-8") + "\n\nAnd one more after them.\n", encoding="utf-8")
    after = {split: set(documents_of(prepare(config), split)) for split in SPLITS}
    assert len(after["train"] | after["validation"]) == 42
    for split in SPLITS:
        assert before[split] <= after[split]


def test_equal_documents_are_on_one_side(config: PretrainConfig, text: Path):
    text.write_text("\n\n".join([*texts_of(text)] * 2), encoding="utf-8")
    train, validation = (documents_of(prepare(config), split) for split in SPLITS)
    assert len(train) + len(validation) == 80
    assert not set(train) & set(validation)


@pytest.mark.parametrize("share", [1e-6, 0.999])
def test_each_side_has_a_document(config: PretrainConfig, text: Path, share: float):
    text.write_text("The first document.\n\nThe second document.\n", encoding="utf-8")
    config.validation_share = share
    assert [len(documents_of(prepare(config), split)) for split in SPLITS] == [1, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("One document\n on two lines.\n\n\n", "1 document.*at least two.*documents line"),
        ("The same.\n\nThe same.\n\nThe same.\n", "All 3 documents hold the same text"),
    ],
)
def test_text_of_one_document_cannot_be_split(config: PretrainConfig, text: Path, content: str, message: str):
    text.write_text(content, encoding="utf-8")
    config.documents = "blank_line"
    with pytest.raises(PreparationError, match=message):
        prepare(config)
    assert folders(config) == []


def test_prepared_data_are_found_again(config: PretrainConfig, capsys: pytest.CaptureFixture):
    prepared = prepare(config)
    before = times(prepared)
    capsys.readouterr()
    config.mask_probability, config.max_length, config.seed, config.batch_size = 0.3, 16, 5, 8
    assert prepare(config) == prepared
    assert times(prepared) == before
    assert f"Prepared data found: {prepared}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change", [{"vocab_size": 300}, {"validation_share": 0.3}, {"documents": "line"}, "text"], ids=str
)
def test_other_settings_or_text_give_another_folder(config: PretrainConfig, text: Path, change):
    first = prepare(config)
    if change == "text":
        text.write_text(text.read_text(encoding="utf-8") + "\n\nA last document.", encoding="utf-8")
    else:
        for key, value in change.items():
            setattr(config, key, value)
    second = prepare(config)
    assert second != first
    assert folders(config) == sorted([first, second])
    assert read_manifest(first)["splits"] != read_manifest(second)["splits"]


@pytest.mark.parametrize("damage", ["cut", "missing", "no_manifest", "broken_manifest"])
def test_damaged_folder_is_made_again(config: PretrainConfig, damage: str, capsys: pytest.CaptureFixture):
    prepared = prepare(config)
    tokens = (prepared / "train.tokens").read_bytes()
    if damage == "cut":
        (prepared / "train.tokens").write_bytes(tokens[:-2])
    elif damage == "missing":
        (prepared / "tokenizer" / "tokenizer.json").unlink()
    elif damage == "no_manifest":
        (prepared / "manifest.json").unlink()
    else:
        (prepared / "manifest.json").write_text('{"files": ', encoding="utf-8")
    assert prepare(config) == prepared
    assert f"{prepared} is damaged and is made again" in capsys.readouterr().err
    assert (prepared / "train.tokens").read_bytes() == tokens
    assert read_manifest(prepared)["vocab_size"] == len(load_tokenizer(str(prepared / "tokenizer")))
    assert folders(config) == [prepared]


KILLED = """
import os, signal
from pretrain import prepare

def dies_after_the_first_file(*arguments):
    open(arguments[-1] / "train.tokens", "wb").write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

prepare.write_splits = dies_after_the_first_file
prepare.prepare(prepare.load_config(["{config}"]))
"""


def test_preparation_that_was_killed_leaves_nothing_whole(
    config: PretrainConfig, python: Callable, write_config: Callable, tmp_path: Path
):
    path = write_config(config, tmp_path / "run.yaml")
    killed = python("-c", KILLED.format(config=path))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [folder.suffix for folder in folders(config)] == [".partial"]

    prepared = prepare(config)
    assert folders(config) == [prepared]
    assert len(documents_of(prepared, "train") + documents_of(prepared, "validation")) == 40


def test_two_processes_prepare_once(config: PretrainConfig, start: Callable, write_config: Callable, tmp_path: Path):
    path = write_config(config, tmp_path / "run.yaml")
    processes = [start("pretrain/prepare.py", path) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sorted("Prepared data found" in output for output, _ in outputs) == [False, True]
    (prepared,) = folders(config)
    for output, _ in outputs:
        assert output.splitlines()[-1] == str(prepared)
        documents = re.findall(r"^(train|validation): (\d+) documents, [\d,]+ tokens$", output, re.MULTILINE)
        assert [split for split, _ in documents] == ["train", "validation"]
        assert sum(int(number) for _, number in documents) == 40


def test_given_tokenizer(config: PretrainConfig, sentences: Callable, tmp_path: Path):
    given = tmp_path / "given"
    shutil.copytree(prepare(config) / "tokenizer", given)
    config.data = str(sentences(tmp_path / "other.txt", documents=10, seed=1))
    config.tokenizer = str(given)
    prepared = prepare(config)
    tokenizer, original = load_tokenizer(str(prepared / "tokenizer")), load_tokenizer(str(given))
    assert tokenizer.get_vocab() == original.get_vocab()
    documents = documents_of(prepared, "train") + documents_of(prepared, "validation")
    assert sorted(documents) == sorted(texts_of(Path(config.data)))

    # A copy elsewhere is the same tokenizer; another vocabulary is another one.
    shutil.move(given, tmp_path / "moved")
    config.tokenizer = str(tmp_path / "moved")
    assert prepare(config) == prepared


@pytest.mark.parametrize(
    "kilobytes", [pytest.param(8, marks=pytest.mark.slow), 30, pytest.param(52, marks=pytest.mark.slow)]
)
def test_full_disk_while_preparing(
    config: PretrainConfig, small_disk: Callable, write_config: Callable, tmp_path: Path, kilobytes: int
):
    config.prepared_dir = str(tmp_path / "small" / "prepared")
    finished, left = small_disk(kilobytes, "pretrain/prepare.py", write_config(config, tmp_path / "run.yaml"))
    assert finished.returncode == 2, finished.stderr
    assert "Traceback" not in finished.stderr
    assert finished.stderr.count("\nerror: ") == 1
    assert "the disk is full" in finished.stderr and "--prepared_dir" in finished.stderr
    assert [path for path in left if not path.endswith(".lock")] == ["prepared"]
