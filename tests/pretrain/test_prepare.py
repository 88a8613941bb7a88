"""Preparation: what the folder holds, that it is found again, and that it is whole or not there."""

import dataclasses
import hashlib
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from common.checksums import hash_file
from common.errors import UserError
from common.files import read_checked_json
from modeling_luna import LunaTokenizer
from pretrain import building
from pretrain import identity as identities
from pretrain.building import PreparationError
from pretrain.configuration import Packing, PretrainConfig
from pretrain.data import parts
from pretrain.data.manifest import read_manifest
from pretrain.data.packed_data import PackedRows
from pretrain.data.parts import entropy
from pretrain.data.sources import Source, SourceError
from pretrain.data.tokenizer import load_tokenizer, sample_texts
from pretrain.preparation import prepare, verify
from pretrain.prepare import main


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
    pieces = [rows.stream[first:last] for first, last in pairwise(rows.documents[:])]
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


def test_tokens_that_a_dictionary_lacks_are_unknown(config: PretrainConfig, text: Path, tmp_path: Path):
    """As in the tokenizer of a converted model: its own ids are not those inside."""
    trained = load_tokenizer(str(prepare(config) / "tokenizer"))
    tokens = sorted(trained.get_vocab(), key=trained.get_vocab().get)
    lacked = tokens[262:-1:3]
    known = [token for token in tokens if token not in lacked]
    merges = json.loads(trained.backend_tokenizer.to_str())["model"]["merges"]
    tokenizer = LunaTokenizer(
        vocab={token: index for index, token in enumerate([*known, *lacked])},
        merges=[tuple(merge) for merge in merges],
        dictionary_size=len(known),
    )
    tokenizer.add_tokens(["<moon>"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    text.write_text(text.read_text().replace("moon", "<moon>"))

    prepared = prepare(dataclasses.replace(config, tokenizer=str(tmp_path / "tokenizer"), packing="best_fit"))
    stream = PackedRows.open(prepared, "train", max_length=32).stream[:]
    expected = {tuple(tokenizer(document, add_special_tokens=False)["input_ids"]) for document in texts_of(text)}
    found = np.split(stream, np.flatnonzero(stream == tokenizer.sep_token_id) + 1)
    assert found and all(tuple(document[:-1].tolist()) in expected for document in found if len(document))
    assert tokenizer.unk_token_id in stream and len(known) in stream
    assert stream.max() < len(tokenizer) == len(known) + 1


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
        rows = PackedRows.open(prepared, split, max_length=32)
        stream, lengths = rows.stream[:], np.diff(rows.documents[:])
        shares = np.unique(stream, return_counts=True)[1] / len(stream)
        assert counts == {
            "documents": len(documents),
            "bytes": sum(len(document.encode()) for document in documents),
            "tokens": len(stream),
            "document_tokens": {"median": float(np.median(lengths)), "longest": lengths.max()},
            "unigram_entropy": pytest.approx(-sum(share * math.log(share) for share in shares)),
        }
    on_disk = {str(path.relative_to(prepared)) for path in prepared.rglob("*") if path.is_file()}
    assert on_disk == {*manifest["files"], "manifest.json", "checked.json"}
    (part,) = manifest["parts"]
    assert {split: part["splits"][split]["tokens"] for split in SPLITS} == {
        split: manifest["splits"][split]["tokens"] for split in SPLITS
    }


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


def test_text_is_known_by_its_content(config: PretrainConfig, text: Path, tmp_path: Path):
    """Neither its time nor its place makes other data of it; another content of the same size and time does."""
    prepared = prepare(config)
    before = times(prepared)
    text.touch()
    assert prepare(config) == prepared and times(prepared) == before

    config.data = str(text.rename(tmp_path / "moved.txt"))
    moved = prepare(config)
    assert read_manifest(moved)["fingerprint"] == read_manifest(prepared)["fingerprint"]
    assert [documents_of(moved, split) for split in SPLITS] == [documents_of(prepared, split) for split in SPLITS]

    status = Path(config.data).stat()
    Path(config.data).write_text(Path(config.data).read_text(encoding="utf-8").replace("moon", "sun!"))
    os.utime(config.data, ns=(status.st_atime_ns, status.st_mtime_ns))
    other = prepare(config)
    assert read_manifest(other)["fingerprint"] != read_manifest(prepared)["fingerprint"]
    assert "sun!" in " ".join(documents_of(other, "train"))


@pytest.mark.slow
def test_run_resumes_after_its_text_was_touched(
    build_config: Callable, sentences: Callable, train: Callable, tmp_path: Path
):
    text = sentences(tmp_path / "text.txt", documents=60)
    changes = {"data": str(text), "prepared_dir": str(tmp_path / "prepared"), "save_steps": 2, "warmup_steps": 1}
    train(build_config(tmp_path / "run", max_steps=2, **changes))
    text.touch()
    metrics = train(build_config(tmp_path / "run", max_steps=3, **changes))
    assert [record["step"] for record in metrics if "loss" in record] == [1, 2, 3]


def test_text_that_is_changed_while_it_is_prepared(
    config: PretrainConfig, text: Path, monkeypatch: pytest.MonkeyPatch
):
    def change_text(*arguments):
        text.write_text(text.read_text(encoding="utf-8") + "\n\nAnother document.\n", encoding="utf-8")

    with monkeypatch.context() as patch:
        patch.setattr(building, "_report_left_out", change_text)
        with pytest.raises(PreparationError, match="text was changed while it was prepared: run the same command"):
            prepare(config)
    assert folders(config) == []
    assert "Another document." in documents_of(prepare(config), "train")


def test_links_out_of_a_folder_of_text_are_told(
    config: PretrainConfig, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link.txt").symlink_to(text)
    config.data = str(tmp_path / "data")
    prepare(config)
    assert f"{config.data}: links lead to 1 files outside of it: {config.data}/link.txt" in capsys.readouterr().out


def test_name_that_is_not_utf8(
    config: PretrainConfig, text: Path, script: Callable, write_config: Callable, tmp_path: Path
):
    """Such bytes come from the command line as surrogates, which neither YAML nor the standard output know."""
    path = write_config(config, tmp_path / "run.yaml")
    name = os.fsdecode(b"caf\xe9 \x1b[31m.txt")
    shutil.copy(text, tmp_path / name)
    code, output, errors = script("pretrain/prepare.py", path, "--data", str(tmp_path / name))
    assert code == 0, errors
    assert f"Reading {tmp_path}/caf\\udce9 \\x1b[31m.txt\n" in output
    (tmp_path / name).write_bytes(b"\xff")
    code, _, errors = script("pretrain/prepare.py", path, "--data", str(tmp_path / name))
    assert code == 2 and f"\nerror: {tmp_path}/caf\\udce9 \\x1b[31m.txt:1: byte 1 of the line" in errors


def former_format(config: PretrainConfig) -> Path:
    """Prepare data, and make of them what the format before wrote: no hashes but those of whole files, in a folder
    that is named after paths and times."""
    new = prepare(config)
    identity = identities.former_identity(config, identities.corpus_identity(config))
    folder = identities.prepared_folder(config, identity)
    new.rename(folder)
    manifest = read_manifest(folder)
    manifest |= {"identity": identity, "fingerprint": identities.fingerprint(identity)}
    (folder / "tokenizer" / "files.json").unlink()
    del manifest["files"]["tokenizer/files.json"]
    (part,) = manifest["parts"]
    for number, counts in enumerate(part["shards"]):
        name = f"{part['folder']}/{number:06}"
        size = sum(
            4 * (of["documents"] + 1 + of["sentences"] + 1) + 2 * of["tokens"] for of in map(counts.get, SPLITS)
        )
        path = folder / f"{name}.shard"
        path.write_bytes(path.read_bytes()[:size])
        facts = manifest["files"][f"{name}.shard"] = {"size": size, "xxh3": hash_file(path)}
        record = read_checked_json(folder / f"{name}.json") | {"file": facts}
        (folder / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
        manifest["files"][f"{name}.json"] = {
            "size": len(json.dumps(record)),
            "xxh3": hash_file(folder / f"{name}.json"),
        }
    checksum = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest | {"sha256": checksum}, indent=2), encoding="utf-8")
    times = {name: (folder / name).stat().st_mtime_ns for name in manifest["files"]}
    (folder / "checked.json").write_text(json.dumps(times), encoding="utf-8")
    for index in folder.glob("rows/*/index.json"):
        description = read_checked_json(index)
        del description["of"]
        index.write_text(json.dumps(description | {"format": 1}), encoding="utf-8")
    return folder


@pytest.mark.parametrize("packing", get_args(Packing))
def test_data_of_the_former_format_are_read(
    config: PretrainConfig, packing: str, small_shards, tmp_path: Path, capsys: pytest.CaptureFixture
):
    config.packing = packing
    former = former_format(config)
    assert prepare(config) == former and folders(config) == [former]
    rows = PackedRows.open(former, "train", 32, packing)
    config.prepared_dir = str(tmp_path / "other")
    expected = PackedRows.open(prepare(config), "train", 32, packing)
    everything = np.arange(len(expected))
    assert len(rows) == len(expected)
    np.testing.assert_array_equal(rows[everything].ids, expected[everything].ids)


def test_damaged_data_of_the_former_format_are_prepared_anew(
    config: PretrainConfig, small_shards, capsys: pytest.CaptureFixture
):
    former = former_format(config)
    flip_a_byte(sorted(former.glob("part-*/*.shard"))[1])
    prepared = prepare(config)
    assert prepared != former and former in folders(config)
    error = capsys.readouterr().err
    assert f"{former} was prepared by an earlier version and is damaged: part-" in error
    assert "The data are prepared anew." in error


@pytest.mark.parametrize("packing", ["stream", "best_fit"])
def test_whole_data_of_another_user_are_used(
    config: PretrainConfig, open_folder: Path, unwritable: Callable, packing: str, small_shards
):
    config.data = str(shutil.copy(config.data, open_folder / "text.txt"))
    config.prepared_dir, config.packing = str(open_folder / "prepared"), packing
    prepared = prepare(config)
    before = times(open_folder)
    expected = PackedRows.open(prepared, "train", 32, packing)[np.arange(9)].ids
    with unwritable(open_folder):
        for _ in range(2):
            assert prepare(config) == prepared == verify(config)
            np.testing.assert_array_equal(PackedRows.open(prepared, "train", 32, packing)[np.arange(9)].ids, expected)
        config.packing = "full_sentences"
        with pytest.raises(UserError, match=f"{prepared} has no rows full_sentences-32 yet. prepared_dir: the folder"):
            prepare(config)
        config.packing, config.validation_share = packing, 0.3
        with pytest.raises(UserError, match=f"prepared_dir: the folder {config.prepared_dir} cannot be written"):
            prepare(config)
    assert times(open_folder) == before


def test_data_that_may_not_be_read_are_not_missing(
    config: PretrainConfig, open_folder: Path, unreadable: Callable, unwritable: Callable
):
    config.data = str(shutil.copy(config.data, open_folder / "text.txt"))
    config.prepared_dir = str(open_folder / "prepared")
    prepared = prepare(config)
    with unreadable(prepared), pytest.raises(UserError, match=f"^{prepared} cannot be read: Permission denied.$"):
        prepare(config)
    with unreadable(prepared / "manifest.json"), pytest.raises(UserError, match=r"manifest.json cannot be read"):
        prepare(config)
    with unreadable(Path(config.data)), pytest.raises(SourceError, match=f"^{config.data} cannot be read: Permission"):
        prepare(config)
    (shard,) = prepared.glob("part-*/*.shard")
    rows = PackedRows.open(prepared, "train", 32)
    with unreadable(shard), pytest.raises(UserError, match=f"^{shard} cannot be read: Permission denied.$"):
        rows[np.arange(1)]


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch):
    """Shards of a kilobyte of text; processes that tokenise are told what to put into each."""
    monkeypatch.setattr(parts, "SHARD_BYTES", 1000)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """All files but the one that holds times."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "checked.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def flip_a_byte(path: Path, keep_time: bool = False):
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_rows_of_all_shards_are_those_of_one(config: PretrainConfig, monkeypatch: pytest.MonkeyPatch):
    one, numbers = prepare(config), np.arange(20)
    rows = PackedRows.open(one, "train", 32)[numbers].ids
    monkeypatch.setattr(parts, "SHARD_BYTES", 1000)
    shutil.move(one, one.with_name("one"))
    many = prepare(config)
    assert len(list(many.glob("part-*/*.shard"))) > 5
    np.testing.assert_array_equal(PackedRows.open(many, "train", 32)[numbers].ids, rows)
    assert [read_manifest(folder)["splits"] for folder in (many, one.with_name("one"))] == [
        read_manifest(many)["splits"]
    ] * 2


def test_any_number_of_processes_writes_the_same_bytes(config: PretrainConfig, tmp_path: Path, small_shards):
    expected = bytes_of(prepare(config))
    config.num_proc, config.prepared_dir = 3, str(tmp_path / "other")
    assert bytes_of(prepare(config)) == expected


@pytest.mark.parametrize("num_proc", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_special_tokens_in_the_text_are_words_like_others(
    config: PretrainConfig, text: Path, small_shards, num_proc: int
):
    config.num_proc = num_proc
    text.write_text("\n\n".join(f"{each} Of <mask>, <s> and </s>." for each in texts_of(text)), encoding="utf-8")
    prepared = prepare(config)
    tokenizer = load_tokenizer(str(prepared / "tokenizer"))
    assert sorted(documents_of(prepared, "train") + documents_of(prepared, "validation")) == sorted(texts_of(text))
    assert tokenizer.mask_token_id not in PackedRows.open(prepared, "train", max_length=32).stream[:]


DAMAGES = ["cut", "missing", "flipped shard", "flipped record", "flipped tokenizer", "no manifest", "broken manifest"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folder_is_mended(
    config: PretrainConfig, damage: str, capsys: pytest.CaptureFixture, small_shards, tmp_path: Path
):
    prepared = prepare(config)
    expected, before = bytes_of(prepared), times(prepared)
    shard, *others = sorted(prepared.glob("part-*/*.shard"))
    manifest = prepared / "manifest.json"
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-2])
    elif damage == "missing":
        shard.unlink()
    elif damage == "flipped shard":
        flip_a_byte(shard)
    elif damage == "flipped record":
        flip_a_byte(shard.with_suffix(".json"))
    elif damage == "flipped tokenizer":
        flip_a_byte(prepared / "tokenizer" / "tokenizer.json")
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text(encoding="utf-8").replace('"tokens": ', '"tokens": 1', 1))
    assert prepare(config) == prepared
    assert f"{prepared} is damaged and is mended: " in capsys.readouterr().err
    assert bytes_of(prepared) == expected
    # What was whole was not made again.
    assert all(path.stat().st_mtime_ns == before[str(path)] for path in others)
    assert folders(config) == [prepared]


def test_bytes_that_changed_by_themselves_are_found_on_demand(
    config: PretrainConfig, capsys: pytest.CaptureFixture, write_config: Callable, tmp_path: Path
):
    path = str(write_config(config, tmp_path / "run.yaml"))
    with pytest.raises(PreparationError, match="no prepared data"):
        main([path, "--verify"])
    prepared = prepare(config)
    expected = bytes_of(prepared)
    main([path, "--verify"])
    assert f"All files are as they were written: {prepared}" in capsys.readouterr().out
    (shard,) = prepared.glob("part-*/*.shard")
    flip_a_byte(shard, keep_time=True)
    with pytest.raises(PreparationError, match=f"damaged: .*{shard.name}. The next preparation mends it"):
        main([path, "--verify"])
    assert bytes_of(prepare(config)) == expected


# Shards of a kilobyte; killed when there are some of them.
KILLED = """
import os, signal, sys
from pretrain import building
from pretrain.command_line import load_config
from pretrain.data import parts
from pretrain.preparation import prepare

parts.SHARD_BYTES = 1000
def killed(records, *arguments, **options):
    for number, record in enumerate(records, start=1):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        yield record
if __name__ == "__main__":
    building.with_progress = killed
    prepare(load_config([sys.argv[1]]))
"""


@pytest.mark.parametrize("num_proc", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_killed_preparation_goes_on_from_whole_shards(
    config: PretrainConfig,
    python: Callable,
    write_config: Callable,
    tmp_path: Path,
    small_shards,
    capsys: pytest.CaptureFixture,
    num_proc: int,
):
    config.num_proc = num_proc
    script = tmp_path / "killed.py"
    script.write_text(KILLED, encoding="utf-8")
    killed = python(script, write_config(config, tmp_path / "run.yaml"))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (partial,) = folders(config)
    assert partial.suffix == ".partial"
    records = sorted(partial.glob("part-*/*.json"))
    assert 3 <= len(records) < 8
    damaged = records.pop(1).with_suffix(".shard")  # as a disk may have it after a loss of power
    flip_a_byte(damaged)
    before = times(partial)

    prepared = prepare(config)
    assert f"Going on with {len(records)} shards that are whole" in capsys.readouterr().out
    for record in records:
        for path in (record, record.with_suffix(".shard")):
            assert (prepared / path.relative_to(partial)).stat().st_mtime_ns == before[str(path)]
    assert folders(config) == [prepared]
    config.prepared_dir, config.num_proc = str(tmp_path / "other"), 1
    assert bytes_of(prepare(config)) == bytes_of(prepared)


def test_killed_process_of_several_ends_the_preparation(
    config: PretrainConfig, sentences: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    """A worker that is killed, as by a full memory, ends the run with a message; the same command goes on."""
    monkeypatch.setattr(parts, "SHARD_BYTES", 20_000)
    config.data, config.num_proc = str(sentences(tmp_path / "long.txt", documents=3000)), 2
    shared_out = building.shared_out

    def killing(*arguments):
        for number, result in enumerate(shared_out(*arguments)):
            if number == 2:
                os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
            yield result

    monkeypatch.setattr(building, "shared_out", killing)
    with pytest.raises(UserError, match="process that prepares data was killed"):
        prepare(config)
    assert "What is prepared stays in" in capsys.readouterr().err
    assert multiprocessing.active_children() == []
    monkeypatch.setattr(building, "shared_out", shared_out)
    prepare(config)
    assert "Going on with" in capsys.readouterr().out


def test_sources_with_weights_share_what_they_have_in_common(
    config: PretrainConfig, sentences: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
):
    other = sentences(tmp_path / "other.txt", documents=20, seed=1)
    config.tokenizer = str(shutil.copytree(prepare(config) / "tokenizer", tmp_path / "given"))
    first = prepare(config)
    config.data = [{"path": config.data, "weight": 3}, {"path": str(other), "weight": 1}]
    capsys.readouterr()
    both = prepare(config)
    assert f"Taken over from other prepared data: {config.data[0]['path']}" in capsys.readouterr().out
    assert both != first and read_manifest(both)["splits"]["train"]["documents"] > 40
    rows = PackedRows.open(both, "train", 32)
    of_first = len(PackedRows.open(first, "train", 32))
    samples = rows.sample(np.arange(4096), seed=0)
    assert np.mean(samples < of_first) == 0.75
    assert len(rows) > of_first

    config.data[1]["weight"] = 3
    again = prepare(config)
    assert np.mean(PackedRows.open(again, "train", 32).sample(np.arange(4096), seed=0) < of_first) == 0.5
    # In validation each row counts once.
    validation = PackedRows.open(again, "validation", 32)
    order = validation.sample(np.arange(len(validation)), seed=0)
    np.testing.assert_array_equal(np.sort(order), np.arange(len(validation)))


@pytest.mark.slow
def test_training_on_sources_with_weights(
    build_config: Callable, corpus: Path, sentences: Callable, train: Callable, tmp_path: Path
):
    other = sentences(tmp_path / "other.txt", documents=20, seed=1)
    data = [{"path": str(corpus), "weight": 0.7}, {"path": str(other), "weight": 0.3}]
    metrics = train(build_config(tmp_path / "run", data=data, prepared_dir=str(tmp_path / "prepared")))
    losses = [record["loss"] for record in metrics if "loss" in record]
    assert losses[-1] < losses[0] - 0.5


BAD_LINES = ['{"text": 5}', "no JSON", '{"content": "other"}', '{"text": null}', "[1]"]


@pytest.fixture
def bad_lines(config: PretrainConfig, tmp_path: Path) -> Path:
    """JSON lines of 30 documents, with bad ones between them."""
    lines = [json.dumps({"text": f"Document {number} of some words."}) for number in range(30)]
    for place, line in enumerate(BAD_LINES):
        lines.insert(4 * place + 2, line)
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    config.data = [{"path": str(path)}, {"path": config.data}]
    return path


def test_bad_records_are_left_out_and_counted(config: PretrainConfig, bad_lines: Path, capsys, small_shards):
    config.on_bad_record = "skip"
    prepared = prepare(config)
    manifest = read_manifest(prepared)
    assert sum(manifest["splits"][split]["documents"] for split in SPLITS) == 30 + 40
    of_bad, of_good = (part["bad_records"] for part in manifest["parts"])
    assert of_bad["count"] == 4 and manifest["parts"][0]["without_text"] == 1
    assert {kind: entry["count"] for kind, entry in of_bad["files"][str(bad_lines)].items()} == {
        "wrong type": 1,
        "not JSON": 1,
        "missing column": 1,
        "not an object": 1,
    }
    assert of_good == {"count": 0, "files": {}}
    output = capsys.readouterr().out
    assert f"{bad_lines}: left out 4 bad records" in output
    assert f"The first: {bad_lines}:3: the column 'text' must hold text, but here it is 5 (int)" in output

    # The same data must not serve a run that wants none left out.
    config.on_bad_record = "error"
    with pytest.raises(SourceError, match=f"{bad_lines}:3: the column .* one of 4 bad records .* on_bad_record skip"):
        prepare(config)
    config.on_bad_record = "skip"
    assert prepare(config) == prepared


def test_bad_record_is_an_error_for_its_own_source_alone(config: PretrainConfig, bad_lines: Path):
    config.on_bad_record = "skip"
    config.data[0]["on_bad_record"] = "error"
    with pytest.raises(SourceError, match=f"{bad_lines}:3"):
        prepare(config)
    assert folders(config) == []
    config.on_bad_record, config.data[0]["on_bad_record"] = "error", "skip"
    prepare(config)


def test_tokenizer_is_trained_on_a_bounded_sample(tmp_path: Path):
    """Of a megabyte that is asked for, all over the text and not only its beginning."""
    documents = [f"Number {number} of {hashlib.sha512(bytes([number % 256])).hexdigest()}" for number in range(15_000)]
    text = tmp_path / "long.txt"
    text.write_text("\n\n".join(documents), encoding="utf-8")
    sample = sample_texts([Source(str(text))], 1, 1)
    assert 1_000_000 <= sum(map(len, sample)) < 1_010_000 < text.stat().st_size / 2
    numbers = [int(document.split()[1]) for document in sample]
    assert numbers == sorted(set(numbers)) and numbers[0] < 50 and numbers[-1] > 14_950
    assert np.mean(numbers) == pytest.approx(7500, abs=300)
    # The order of the text does not matter, and weights give each source its share.
    text.write_text("\n\n".join(reversed(documents)), encoding="utf-8")
    assert sorted(sample_texts([Source(str(text))], 1, 1)) == sorted(sample)
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(document.lower() for document in documents), encoding="utf-8")
    shares = sample_texts([Source(str(text), weight=1), Source(str(other), weight=3)], 1, 1)
    of_first = sum(len(document) for document in shares if document.startswith(b"Number"))
    assert of_first / sum(map(len, shares)) == pytest.approx(0.25, abs=0.01)


@pytest.mark.slow
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


@pytest.mark.parametrize(("kilobytes", "whole"), [pytest.param(8, 0, marks=pytest.mark.slow), (60, 1)])
@pytest.mark.slow
def test_full_disk_while_preparing(
    config: PretrainConfig, small_disk: Callable, write_config: Callable, tmp_path: Path, kilobytes: int, whole: int
):
    config.prepared_dir = str(tmp_path / "small" / "prepared")
    finished, left = small_disk(kilobytes, "pretrain/prepare.py", write_config(config, tmp_path / "run.yaml"))
    assert finished.returncode == 2, finished.stderr
    assert "Traceback" not in finished.stderr
    assert finished.stderr.count("\nerror: ") == 1
    assert "the disk is full" in finished.stderr and "--prepared_dir" in finished.stderr
    # Only what another call can go on from stays.
    assert ("What is prepared stays in" in finished.stderr) == whole
    files = [Path(path) for path in left if "/part-" in path and Path(path).suffix]
    assert sorted(path.suffix for path in files) == [".json", ".shard"] * whole
    kept = (".lock", "sources.json")  # and the hashes of the sources
    assert whole or [path for path in left if not path.endswith(kept)] == ["prepared"]
