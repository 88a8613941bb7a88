"""What is read back from prepared data is checked: damage ends in a message or is mended, never in other rows."""

import hashlib
import json
import os
import resource
import shutil
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from common.files import DamagedFile
from pretrain import building
from pretrain.configuration import Packing, PretrainConfig
from pretrain.data import parts
from pretrain.data.manifest import read_manifest
from pretrain.data.packed_data import PackedRows
from pretrain.data.shard_file import Shard, SplitArrays, write_shard
from pretrain.data.tokenizer import load_tokenizer
from pretrain.preparation import prepare


# Of the rows that training and validation see in three epochs under seed 7: what they have always been.
DIGESTS = {
    "stream": "1a829a932faa4978755fffbb65f997baa7dbde45346eeaa58392a20ac8e3dbf8",
    "full_sentences": "0ac4e1772f4a25d5a5cac34d3d7a29919f0ee040ee0de2c34a77e0372089d23d",
    "best_fit": "63a257e70d793c6cf2a71bead4af880df2288c9c1f1741164804f825dbf36c42",
}
MIXTURE_DIGESTS = {
    "stream": "1ac0e3fdf3989fd5f5c9ca942f96ea7ef31a72ed03c033807966a8613bdd57bc",
    "full_sentences": "29c53b033a5a54bdc18e0a2ed90b560251e511ecd387066fe12b693470038a04",
    "best_fit": "971ea68e34bd1946fe26984a539239733c5d7ec067a999a8b29977ceaa4d8abc",
}


@pytest.fixture
def config(
    build_config: Callable, sentences: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> PretrainConfig:
    """A corpus of several shards."""
    monkeypatch.setattr(parts, "SHARD_BYTES", 2000)
    text = sentences(tmp_path / "text.txt", documents=80)
    return build_config(tmp_path / "run", data=str(text), prepared_dir=str(tmp_path / "prepared"))


def digest_of_rows(folder: Path, packing: str) -> str:
    digest = hashlib.sha256()
    for split in ("train", "validation"):
        rows = PackedRows.open(folder, split, 32, packing)
        digest.update(rows[rows.sample(np.arange(3 * len(rows)), seed=7)].ids.tobytes())
    return digest.hexdigest()


def test_more_shards_than_files_that_may_be_opened(config: PretrainConfig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parts, "SHARD_BYTES", 100)
    folder = prepare(config)
    assert len(list(folder.rglob("*.shard"))) >= 60
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, hard))
    try:
        assert digest_of_rows(folder, config.packing) == DIGESTS[config.packing]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("packing", get_args(Packing))
def test_rows_of_a_seed_stay_what_they_were(config: PretrainConfig, sentences: Callable, tmp_path: Path, packing: str):
    config.packing = packing
    assert digest_of_rows(prepare(config), packing) == DIGESTS[packing]
    other = sentences(tmp_path / "other.txt", documents=40, seed=1)
    config.data = [{"path": config.data, "weight": 3}, {"path": str(other), "weight": 1}]
    assert digest_of_rows(prepare(config), packing) == MIXTURE_DIGESTS[packing]


def flip(path: Path, place: int, digits: bool):
    """Change a bit of a byte, or a digit into the next one; size and time of the file stay."""
    status, content = path.stat(), bytearray(path.read_bytes())
    of_digits = [number for number, byte in enumerate(content) if chr(byte).isdecimal()] if digits else []
    place = of_digits[place % len(of_digits)] if of_digits else place % len(content)
    content[place] = ord("0") + (content[place] - ord("0") + 1) % 10 if of_digits else content[place] ^ 1
    with open(path, "r+b") as file:
        file.write(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def used(config: PretrainConfig) -> str:
    """A digest of all that a run takes from prepared data."""
    folder = prepare(config, quiet=True)
    manifest, tokenizer = read_manifest(folder), load_tokenizer(str(folder / "tokenizer"))
    facts = [manifest["fingerprint"], manifest["splits"], manifest["row_ends"], tokenizer.special_tokens_map]
    content = json.dumps([facts, tokenizer.backend_tokenizer.to_str(), digest_of_rows(folder, config.packing)])
    return hashlib.sha256(content.encode()).hexdigest()


@pytest.mark.parametrize("packing", get_args(Packing))
@pytest.mark.slow
def test_flipped_bytes_never_give_other_rows(config: PretrainConfig, tmp_path: Path, packing: str):
    """A file of each kind, digits and other bytes, with size and time kept, as by a disk."""
    config.packing = packing
    expected = used(config)
    prepared, whole = Path(config.prepared_dir), tmp_path / "whole"
    shutil.copytree(prepared, whole)
    kinds = {path.name if path.parent.name[:5] != "part-" else path.suffix: path for path in whole.rglob("*.*")}
    files = [path.relative_to(whole) for path in kinds.values() if path.is_file() and path.stat().st_size]
    assert {"manifest.json", "sources.json", "tokenizer.json", ".shard"} <= kinds.keys()
    assert packing == "stream" or {"index.json", "rows.bin"} <= kinds.keys()
    refused = 0
    generator = np.random.default_rng(0)
    for number, file in enumerate(islice(cycle(files), 4 * len(files))):
        flip(prepared / file, int(generator.integers(2**16)), digits=file.suffix == ".json" and number % 3 != 0)
        try:
            assert used(config) == expected, file
        except DamagedFile as error:
            refused += 1
            assert str(prepared / file) in str(error)
            assert used(config) == expected, file  # the next launch mends it
        shutil.rmtree(prepared)
        shutil.copytree(whole, prepared)
    assert refused >= 3  # the shards, which are not read at the start


@pytest.mark.parametrize("packing", ["full_sentences", "best_fit"])
@pytest.mark.parametrize("damage", ["none", "cut", "of other rows", "of other data", "no object"])
def test_index_that_is_not_of_these_rows_is_made_again(
    config: PretrainConfig, tmp_path: Path, packing: str, damage: str
):
    config.packing = packing
    prepared = prepare(config)
    expected = digest_of_rows(prepared, packing)
    index = prepared / "rows" / f"{packing}-32"
    if damage == "none":
        (index / "index.json").unlink()
    elif damage == "cut":
        (index / "rows.bin").write_bytes((index / "rows.bin").read_bytes()[:-4])
    elif damage == "no object":
        (index / "index.json").write_text("[]", encoding="utf-8")
    else:
        if damage == "of other rows":
            config.max_length = 24
        else:
            config.validation_share = 0.3
        other = prepare(config)
        shutil.rmtree(index)
        shutil.copytree(other / "rows" / f"{packing}-{config.max_length}", index)
    assert digest_of_rows(prepared, packing) == expected


def test_nesting_without_end_is_damage(config: PretrainConfig, capsys: pytest.CaptureFixture):
    prepared = prepare(config)
    expected = digest_of_rows(prepared, "stream")
    for name, mended in (("manifest.json", "is damaged and is mended: manifest.json"), ("checked.json", "")):
        (prepared / name).write_text("[" * 200_000 + "]" * 200_000, encoding="utf-8")
        assert digest_of_rows(prepare(config), "stream") == expected
        assert mended in capsys.readouterr().err


def test_manifest_of_other_data_is_not_believed(config: PretrainConfig, capsys: pytest.CaptureFixture):
    prepared = prepare(config)
    expected = digest_of_rows(prepared, "stream")
    config.validation_share = 0.3
    other = prepare(config)
    shutil.copy2(other / "manifest.json", prepared / "manifest.json")
    config.validation_share = 0.1
    assert digest_of_rows(prepare(config), "stream") == expected
    assert "is damaged and is mended: manifest.json" in capsys.readouterr().err


@pytest.mark.slow
def test_preparation_that_goes_on_believes_no_flipped_byte(
    config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What an interrupted preparation left is checked like what is whole."""
    expected = used(config)
    partial = tmp_path / "partial"
    config.prepared_dir = str(partial)
    with monkeypatch.context() as patch:
        patch.setattr(building, "_statistics", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(config)
    shutil.copytree(partial, tmp_path / "left")
    (folder,) = (path for path in partial.iterdir() if path.is_dir())
    files = [path.relative_to(partial) for path in sorted(folder.rglob("*.*")) if path.is_file()]
    for number, file in enumerate(files):
        flip(partial / file, 1000 + 7 * number, digits=file.suffix == ".json")
        assert used(config) == expected, file
        shutil.rmtree(partial)
        shutil.copytree(tmp_path / "left", partial)


def test_shards_of_other_data_are_taken_over_only_whole(config: PretrainConfig, sentences: Callable, tmp_path: Path):
    config.tokenizer = str(shutil.copytree(prepare(config) / "tokenizer", tmp_path / "given"))
    other = sentences(tmp_path / "other.txt", documents=20, seed=1)
    first, path = prepare(config), config.data
    config.data = [{"path": path}, {"path": str(other)}]
    expected = digest_of_rows(prepare(config), "stream")
    for suffix in ("json", "shard"):
        shutil.rmtree(prepare(config))
        file = sorted(first.glob(f"part-*/*.{suffix}"))[1]
        flip(file, 60, digits=suffix == "json")
        assert digest_of_rows(prepare(config), "stream") == expected


@pytest.mark.slow
def test_damaged_shard_is_named_by_a_run_and_mended_by_the_next(
    build_config: Callable, sentences: Callable, write_config: Callable, script: Callable, tmp_path: Path
):
    """The batches come from a process of the DataLoader, whose traceback is left out."""
    config = build_config(
        tmp_path / "run",
        data=str(sentences(tmp_path / "text.txt", documents=60)),
        prepared_dir=str(tmp_path / "prepared"),
        dataloader_num_workers=1,
        max_steps=3,
        warmup_steps=1,
        save_steps=0,
    )
    (shard,) = prepare(config).glob("part-*/*.shard")
    flip(shard, 3000, digits=False)
    code, output, errors = script("pretrain/run_mlm.py", write_config(config, tmp_path / "run.yaml"))
    message = errors[errors.index("\nerror: ") :]
    assert code == 2 and "Traceback" not in output + errors
    assert message.startswith(f"\nerror: {shard} is damaged: bytes 0 to ")
    assert "Run the same command again: it makes what is damaged anew." in message
    code, _, errors = script("pretrain/run_mlm.py", tmp_path / "run.yaml")
    assert code == 0 and f"is damaged and is mended: {shard.parent.name}/{shard.name}" in errors


def test_blocks_of_a_shard_are_checked_when_they_are_first_read(tmp_path: Path):
    tokens = np.arange(100_000, dtype=np.uint16) % 1000
    ends = np.array([0, len(tokens)], dtype=np.uint32)
    empty = SplitArrays(ends[:1], ends[:1], tokens[:0])
    facts = write_shard(tmp_path / "a.shard", {"train": SplitArrays(ends, ends, tokens), "validation": empty})
    none = {"documents": 0, "sentences": 0, "tokens": 0}
    counts = {"train": {"documents": 1, "sentences": 1, "tokens": len(tokens)}, "validation": none}
    flip(tmp_path / "a.shard", 150_000, digits=False)  # in the third block of 64 KiB
    shard = Shard(tmp_path / "a.shard", counts, "uint16", facts)
    np.testing.assert_array_equal(shard.read("train", "tokens", 5, 60_000), tokens[5:60_000])
    for _ in range(2):
        with pytest.raises(DamagedFile, match="bytes 131,072 to 196,607 are not as they were written"):
            shard.read("train", "tokens", 60_000, 70_000)
    np.testing.assert_array_equal(shard.read("train", "tokens", 99_000), tokens[99_000:])
    with pytest.raises(DamagedFile, match="a.shard is damaged: bytes 200,024 to "):
        Shard(tmp_path / "a.shard", counts, "uint16", facts | {"blocks": "0" * 16})
    with pytest.raises(DamagedFile, match="another size"):
        Shard(tmp_path / "a.shard", counts, "uint16", facts | {"size": 12})
    with pytest.raises(DamagedFile, match="it is missing"):
        Shard(tmp_path / "b.shard", counts, "uint16", facts)
