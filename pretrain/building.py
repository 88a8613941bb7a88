"""What a prepared folder is filled with: the tokenizer, the shards of each source, and the manifest."""

import dataclasses
import time
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from common.checksums import hash_file
from common.errors import UserError, say
from common.files import (
    DamagedFile,
    read_checked_json,
    remove_folder,
    write_checked_json,
    write_folder,
)
from common.signs_of_life import with_progress
from pretrain.configuration import PretrainConfig
from pretrain.data.local_files import files_elsewhere
from pretrain.data.manifest import MANIFEST, write_manifest
from pretrain.data.parts import Part, split_statistics
from pretrain.data.shard_file import SPLITS, Shard, shard_path
from pretrain.data.shards import HASH_RANGE, ShardSettings, ShardWriter
from pretrain.data.sources import Counts, Source
from pretrain.data.tokenizer import (
    ids_given_out,
    load_tokenizer,
    row_ends,
    sample_texts,
    token_type_of,
    train_tokenizer,
)
from pretrain.data.workers import shared_out
from pretrain.identity import (
    FORMAT,
    fingerprint,
    texts_of,
)


TOKENIZER = "tokenizer"
TOKENIZER_FILES = "files.json"  # the hashes of the others, for a preparation that goes on
LISTED = 10  # damaged files, or files with bad records, that a message names


class PreparationError(UserError):
    """Text from which no corpus can be made, or a prepared folder that is damaged."""


def build(config: PretrainConfig, identity: dict, partial: Path):
    """Fill a partial folder, keeping the parts of it that are there and whole.

    Args:
        identity: of the corpus, see `pretrain.identity`.

    Raises:
        PreparationError: where the text holds too little to hold documents out for validation.
    """
    for source, text in zip(config.sources(), identity["sources"], strict=True):
        if text["kind"] == "files" and (elsewhere := files_elsewhere(source)):
            say(f"{source.path}: links lead to {len(elsewhere):,} files outside of it: {listed(elsewhere)}")
    tokenizer = _tokenizer(config, partial)
    settings = ShardSettings(
        tokenizer=tokenizer.backend_tokenizer.to_str(),
        token_type=token_type_of(len(tokenizer)),
        end=row_ends(tokenizer)[1],
        threshold=int(config.validation_share * HASH_RANGE),
        given_out=ids_given_out(tokenizer),
    )
    parts = _write_parts(config, identity, settings, partial)
    threshold = _threshold(parts, settings.threshold)
    if threshold != settings.threshold:
        other_parts = {part.folder for part in parts}
        settings = dataclasses.replace(settings, threshold=threshold)
        parts = _write_parts(config, identity, settings, partial)
        for folder in other_parts:  # not before: an interruption must not lead back to them
            remove_folder(folder)

    manifest = {
        "fingerprint": fingerprint(identity),
        "identity": identity,
        "sources": [dataclasses.asdict(source) for source in config.sources()],
        "parts": [_described(part) for part in parts],
        "splits": _statistics(parts, settings.token_type, len(tokenizer)),
        "vocab_size": len(tokenizer),
        "token_type": settings.token_type,
        "row_ends": list(row_ends(tokenizer)),
        "pad_token_id": tokenizer.pad_token_id,
        "files": _files(parts, partial),
    }
    _report_left_out(config.sources(), manifest["parts"])
    write_manifest(partial, manifest)


def _tokenizer(config: PretrainConfig, partial: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of the prepared folder: the given one or one that is trained, unless it is there already."""
    folder = partial / TOKENIZER
    if not _is_whole_tokenizer(folder):
        if config.tokenizer is None:
            started = time.perf_counter()
            say(f"Reading {', '.join(source.path for source in config.sources())}")
            texts = sample_texts(config.sources(), config.tokenizer_train_megabytes, config.preparation_processes())
            size = sum(map(len, texts)) / 1e6
            tokenizer = train_tokenizer((text.decode() for text in texts), config.vocab_size, config.max_length)
            print(
                f"Trained a tokenizer of {len(tokenizer):,} tokens on {size:.1f} MB of text in "
                f"{time.perf_counter() - started:.0f} s",
                flush=True,
            )
        else:
            tokenizer = load_tokenizer(config.tokenizer)
        write_folder(folder, lambda partial: _save_tokenizer(tokenizer, partial))
    return load_tokenizer(str(folder))


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path):
    tokenizer.save_pretrained(folder)
    write_checked_json(folder / TOKENIZER_FILES, {path.name: hash_file(path) for path in folder.iterdir()})


def _is_whole_tokenizer(folder: Path) -> bool:
    try:
        hashes = read_checked_json(folder / TOKENIZER_FILES)
    except DamagedFile:
        return False
    return all((folder / name).exists() and hash_file(folder / name) == right for name, right in hashes.items())


def _write_parts(config: PretrainConfig, identity: dict, settings: ShardSettings, partial: Path) -> list[Part]:
    """Tokenise all sources, but for the shards that are there, or in another prepared folder."""
    parts = [
        Part.of(source, text, settings, partial, FORMAT)
        for source, text in zip(config.sources(), texts_of(identity), strict=True)
    ]
    missing = []
    for part in {part.folder: part for part in parts}.values():
        if part.take_over(Path(config.prepared_dir)):
            say(f"Taken over from other prepared data: {part.source.path}")
        part.drop_damaged()
        if not part.is_whole():
            missing.append(part)
    found = sum(len(part.records()) for part in missing)
    if found:
        say(f"Going on with {found:,} shards that are whole")
    num_proc = config.preparation_processes()
    tasks = (task for part in missing for task in part.tasks(num_proc))
    started = time.perf_counter()
    records = shared_out(ShardWriter, (settings,), tasks, num_proc)
    megabytes = sum(map(_megabytes, with_progress(records, "Tokenising", "MB", size=_megabytes)))
    seconds = time.perf_counter() - started
    if megabytes:
        say(f"Tokenised {megabytes:.1f} MB in {seconds:.1f} s ({megabytes / seconds:.1f} MB/s)")
    return parts


def _megabytes(record: dict) -> float:
    """The text of a shard."""
    return sum(counts["bytes"] for counts in record["splits"].values()) / 1e6


def _threshold(parts: list[Part], threshold: int) -> int:
    """The threshold of hashes that leaves each side a document: the wanted one, or where that leaves one side empty
    the nearest to it.

    Raises:
        PreparationError: where there is none.
    """
    records = [record for part in parts for record in part.records().values()]
    documents = {split: sum(record["splits"][split]["documents"] for record in records) for split in SPLITS}
    number = sum(documents.values())
    left_out = sum(Counts(**record["counts"]).num_bad for record in records)
    if number < 2:
        raise PreparationError(
            f"The text holds {number} document(s), but at least two are needed, as whole documents are held "
            "out for validation. In text files blank lines separate documents; `--documents line` makes each line one."
            + (f" {left_out:,} bad records were left out." if left_out else "")
        )
    hashes = [record["hashes"] for record in records if record["hashes"]]
    lowest, highest = min(low for low, _ in hashes), max(high for _, high in hashes)
    if lowest == highest:
        raise PreparationError(f"All {number} documents hold the same text: none can be held out for validation.")
    if not documents["validation"]:
        return lowest + 1
    return threshold if documents["train"] else highest


def _described(part: Part) -> dict:
    """A part as the manifest has it."""
    records = part.records().values()
    counts = Counts()
    for record in records:
        counts.add(Counts(**record["counts"]))
    return {
        "folder": part.folder.name,
        "weight": part.source.weight,
        "without_text": counts.without_text,
        "cut_documents": counts.cut,
        "bad_records": {"count": counts.num_bad, "files": counts.bad},
        "splits": {
            split: {
                kind: sum(record["splits"][split][kind] for record in records)
                for kind in ("documents", "sentences", "tokens", "bytes")
            }
            for split in SPLITS
        },
        "shards": [record["splits"] for record in records],
    }


def _statistics(parts: list[Part], token_type: str, vocab_size: int) -> dict[str, dict]:
    records = [(part.folder, number, record) for part in parts for number, record in part.records().items()]
    return {
        split: split_statistics(
            (
                Shard(shard_path(folder, number), record["splits"], token_type, record["file"]).arrays(split)
                for folder, number, record in records
            ),
            sum(record["splits"][split]["bytes"] for _, _, record in records),
            vocab_size,
        )
        for split in SPLITS
    }


def _files(parts: list[Part], partial: Path) -> dict[str, dict]:
    """The size and hash of each file; those of shards were taken when they were written."""
    known = {
        shard_path(part.folder, number): record["file"] for part in parts for number, record in part.records().items()
    }
    files = sorted([*partial.glob("part-*/*"), *partial.glob(f"{TOKENIZER}/*")])
    return {
        str(path.relative_to(partial)): known.get(path) or {"size": path.stat().st_size, "xxh3": hash_file(path)}
        for path in files
    }


def _report_left_out(sources: list[Source], parts: list[dict]):
    """Print for each source what of its text was left out or cut."""
    for source, part in zip(sources, parts, strict=True):
        if part["without_text"]:
            say(f"{source.path}: left out {part['without_text']:,} documents without text")
        if part["cut_documents"]:
            say(f"{source.path}: cut {part['cut_documents']:,} documents that were too long")
        bad = part["bad_records"]
        if bad["count"]:
            say(f"{source.path}: left out {bad['count']:,} bad records (all in {MANIFEST}):")
        for file, kinds in list(bad["files"].items())[:LISTED]:
            counts = ", ".join(f"{entry['count']:,} {kind}" for kind, entry in kinds.items())
            say(f"    {file}: {counts}. The first: {next(iter(kinds.values()))['first']}")


def listed(names: list[str]) -> str:
    """The first names of a list, for a message."""
    return f"{', '.join(names[:LISTED])}{' and more' if len(names) > LISTED else ''}"
