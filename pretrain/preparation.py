"""Prepare the data of a pretraining: text to tokens, once. The first run of the training does the same.

    python pretrain/prepare.py configs/pretrain/NAME.yaml [--verify] [--key value ...]

A prepared folder holds a folder of shards for each source (see `pretrain.data.shards`), the tokenizer, the rows of the
packings that were asked for, and `manifest.json`. Its name ends in a fingerprint of all that it depends on. It is
written beside and renamed when whole.

Text of any size is prepared in bounded memory by several processes; what they write does not depend on their number.
After an interruption the same command goes on from the shards that are whole, and damaged ones are made again. Files
are hashed where they were changed since they were last looked at; `--verify` hashes all and prepares nothing.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from common.checksums import hash_file
from common.errors import UserError, report_user_errors, say
from common.files import (
    PARTIAL,
    DamagedFile,
    is_folder,
    locked,
    make_folder,
    publish_folder,
    read_checked_json,
    remove_folder,
    write_checked_json,
    write_folder,
)
from common.signs_of_life import with_progress
from pretrain.command_line import load_config
from pretrain.configuration import PretrainConfig
from pretrain.data.local_files import files_elsewhere
from pretrain.data.manifest import CHECKED, MANIFEST, damaged_files, read_manifest, write_manifest
from pretrain.data.packed_data import PackedRows
from pretrain.data.parts import Part, split_statistics
from pretrain.data.row_index import damage_of_index, ensure_index
from pretrain.data.shard_file import SPLITS, Shard, shard_path
from pretrain.data.shards import HASH_RANGE, ShardSettings, ShardWriter
from pretrain.data.sources import Counts, Source, SourceError
from pretrain.data.workers import shared_out
from pretrain.identity import (
    FORMAT,
    corpus_identity,
    fingerprint,
    former_identity,
    has_changed,
    prepared_folder,
    texts_of,
)


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER = "tokenizer"
TOKENIZER_FILES = "files.json"  # the hashes of the others, for a preparation that goes on
LISTED = 10  # damaged files, or files with bad records, that a message names


class PreparationError(UserError):
    """Text from which no corpus can be made, or a prepared folder that is damaged."""


def prepare(config: PretrainConfig, quiet: bool = False) -> Path:
    """Return the prepared folder of a configuration, making it where it is not there or not whole.

    Data that are whole are only read: the folder may be another user's. Processes that find none wait for the one that
    came first, on a lock and not in a collective operation that would time out.
    """
    identity = corpus_identity(config)
    folder = _whole_folder(config, identity, quiet) or _make(config, identity, quiet)
    _refuse_bad_records(config.sources(), read_manifest(folder))
    if config.packing != "stream":
        ensure_index(folder, config.packing, config.max_length, _num_proc(config))
    if not quiet:
        _print_rows(config, folder)
    return folder


def _whole_folder(config: PretrainConfig, identity: dict, quiet: bool) -> Path | None:
    """The folder that is there and whole, also one of the former format, in which nothing can be mended."""
    folder = prepared_folder(config, identity)
    if not is_folder(folder):
        identity = former_identity(config, identity)
        folder = prepared_folder(config, identity)
        if not is_folder(folder):
            return None
    damaged = damaged_files(folder, fingerprint(identity))
    if damaged:
        if identity["format"] != FORMAT:
            say(
                f"{folder} was prepared by an earlier version and is damaged: {_listed(damaged)}. The data are "
                "prepared anew.",
                file=sys.stderr,
            )
        return None
    if not quiet:
        say(f"Prepared data found: {folder}")
    return folder


def _make(config: PretrainConfig, identity: dict, quiet: bool) -> Path:
    """Make the prepared folder, unless another process does."""
    folder = prepared_folder(config, identity)
    make_folder(folder.parent, "prepared_dir")
    with locked(folder):
        damaged = damaged_files(folder, fingerprint(identity)) if is_folder(folder) else None
        if damaged == []:
            if not quiet:
                say(f"Prepared data found: {folder}")
            return folder
        partial = folder.with_name(folder.name + PARTIAL)
        if damaged is not None:
            say(f"{folder} is damaged and is mended: {_listed(damaged)}", file=sys.stderr)
            _take_apart(folder, damaged, partial)
        with _kept_if_useful(partial):
            _build(config, identity, partial)
            if has_changed(config, identity):
                raise PreparationError("The text was changed while it was prepared: run the same command again.")
            publish_folder(partial, folder)
    return folder


def _num_proc(config: PretrainConfig) -> int:
    return config.num_proc or len(os.sched_getaffinity(0))


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:LISTED])}{' and more' if len(names) > LISTED else ''}"


def _take_apart(folder: Path, damaged: list[str], partial: Path):
    """Make a partial folder out of one that is damaged, without what is damaged."""
    for name in damaged:
        path = folder / (TOKENIZER if name.startswith(f"{TOKENIZER}/") else name)
        if path.is_dir():
            remove_folder(path)
        else:
            path.unlink(missing_ok=True)
    remove_folder(partial)
    folder.rename(partial)


@contextmanager
def _kept_if_useful(partial: Path) -> Iterator[None]:
    """Delete a folder that could not be finished, unless it holds shards from which the same command can go on."""
    partial.mkdir(exist_ok=True)
    try:
        yield
    except BaseException as error:
        if isinstance(error, PreparationError) or next(partial.glob("part-*/*.json"), None) is None:
            remove_folder(partial)
        else:
            say(f"\nWhat is prepared stays in {partial}: the same command goes on from there.", file=sys.stderr)
        raise


def _refuse_bad_records(sources: list[Source], manifest: dict):
    """
    Raises:
        SourceError: where bad records of a source were left out, when it was prepared with "skip", and must not be.
    """
    for source, part in zip(sources, manifest["parts"], strict=True):
        bad = part["bad_records"]
        if source.on_bad_record == "error" and bad["count"]:
            first = next(entry["first"] for kinds in bad["files"].values() for entry in kinds.values())
            raise SourceError(
                f"{first}. It is one of {bad['count']:,} bad records of {source.path} that were left out when it "
                "was prepared: give on_bad_record skip to use it so"
            )


def _print_rows(config: PretrainConfig, folder: Path):
    for split in SPLITS:
        rows = PackedRows.open(folder, split, config.max_length, config.packing)
        print(
            f"{split} ({config.packing}): {len(rows):,} rows of {config.max_length} tokens, "
            f"{rows.padding_share:.2%} padding",
            flush=True,
        )


def _build(config: PretrainConfig, identity: dict, partial: Path):
    from pretrain.data.tokenizer import ids_given_out, row_ends, token_type_of

    for source, text in zip(config.sources(), identity["sources"], strict=True):
        if text["kind"] == "files" and (elsewhere := files_elsewhere(source)):
            say(f"{source.path}: links lead to {len(elsewhere):,} files outside of it: {_listed(elsewhere)}")
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


def _tokenizer(config: PretrainConfig, partial: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of the prepared folder: the given one or one that is trained, unless it is there already."""
    from pretrain.data.tokenizer import load_tokenizer, sample_texts, train_tokenizer

    folder = partial / TOKENIZER
    if not _is_whole_tokenizer(folder):
        if config.tokenizer is None:
            started = time.perf_counter()
            say(f"Reading {', '.join(source.path for source in config.sources())}")
            texts = sample_texts(config.sources(), config.tokenizer_train_megabytes, _num_proc(config))
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


def _save_tokenizer(tokenizer: "PreTrainedTokenizerBase", folder: Path):
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
    num_proc = _num_proc(config)
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


def verify(config: PretrainConfig) -> Path:
    """Read all bytes of a prepared folder, and return it.

    Raises:
        PreparationError: where the folder is not there or a file has other bytes than were written.
    """
    identity = corpus_identity(config)
    if not is_folder(prepared_folder(config, identity)):
        identity = former_identity(config, identity)
    folder = prepared_folder(config, identity)
    if not is_folder(folder):
        raise PreparationError(f"There are no prepared data {prepared_folder(config, identity)} to verify.")
    damaged = damaged_files(folder, fingerprint(identity), all_bytes=True)
    damaged += [
        str(index.relative_to(folder))
        for index in sorted(folder.glob("rows/*/"))
        if MANIFEST not in damaged and damage_of_index(folder, index)
    ]
    if damaged:
        with suppress(OSError):  # another user's
            (folder / CHECKED).unlink(missing_ok=True)
        raise PreparationError(f"{folder} is damaged: {_listed(damaged)}. The next preparation mends it.")
    return folder


def main(arguments: list[str]):
    if "--verify" in arguments:
        config = load_config([argument for argument in arguments if argument != "--verify"], __doc__)
        say(f"All files are as they were written: {verify(config)}")
        return
    config = load_config(arguments, __doc__)
    folder = prepare(config)
    splits = read_manifest(folder)["splits"]
    for split in SPLITS:
        print(f"{split}: {splits[split]['documents']:,} documents, {splits[split]['tokens']:,} tokens")
    say(folder)


if __name__ == "__main__":
    with report_user_errors():
        main(sys.argv[1:])
