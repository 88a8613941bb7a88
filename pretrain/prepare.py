"""Text to tokens, once: `python pretrain/prepare.py configs/pretrain/NAME.yaml` or the first run of the training.

A prepared folder holds a folder of shards for each source (see `pretrain.data.shards`), the tokenizer, the rows of the
packings that were asked for, and `manifest.json`. Its name ends in a fingerprint of all that it depends on. It is
written beside and renamed when whole.

Text of any size is prepared in bounded memory by several processes; what they write does not depend on their number.
After an interruption the same command goes on from the shards that are whole, and damaged ones are made again. Files
are hashed where they were changed since they were last looked at; `python pretrain/prepare.py CONFIG.yaml --verify`
hashes all.
"""

import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
from tqdm import tqdm

from common.errors import UserError, report_user_errors
from common.files import PARTIAL, make_folder, publish_folder, remove_folder, write_folder, write_json
from pretrain.configuration import PretrainConfig, load_config
from pretrain.data.packed_data import PackedRows
from pretrain.data.parts import Part, split_statistics
from pretrain.data.row_index import damage_of_index, ensure_index
from pretrain.data.shards import HASH_RANGE, SPLITS, ShardSettings, ShardWriter, hash_file, map_shard, shard_path
from pretrain.data.sources import Counts, Source, SourceError, source_identity
from pretrain.data.workers import shared_out


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 2  # of a prepared folder; raise it when its meaning changes
MANIFEST = "manifest.json"
CHECKED = "checked.json"  # for each file the time of its last change when its bytes were found to be right
TOKENIZER = "tokenizer"
LISTED = 10  # damaged files, or files with bad records, that a message names


class PreparationError(UserError):
    """Text from which no corpus can be made, or a prepared folder that is damaged."""


def prepare(config: PretrainConfig, quiet: bool = False) -> Path:
    """Return the prepared folder of a configuration, making it where it is not there or not whole.

    Processes that call this at the same time wait for the one that came first, on a lock and not in a collective
    operation that would time out.
    """
    identity = corpus_identity(config)
    folder = prepared_folder(config, identity)
    make_folder(folder.parent, "prepared_dir")
    with FileLock(f"{folder}.lock"):
        damaged = _damaged_files(folder) if folder.exists() else None
        if damaged == []:
            if not quiet:
                print(f"Prepared data found: {folder}", flush=True)
        else:
            partial = folder.with_name(folder.name + PARTIAL)
            if damaged is not None:
                print(f"{folder} is damaged and is mended: {_listed(damaged)}", file=sys.stderr)
                _take_apart(folder, damaged, partial)
            with _kept_if_useful(partial):
                _build(config, identity, partial)
                publish_folder(partial, folder)
        _refuse_bad_records(config.sources(), read_manifest(folder))
        if config.packing != "stream":
            ensure_index(folder, config.packing, config.max_length, _num_proc(config))
    if not quiet:
        _print_rows(config, folder)
    return folder


def read_manifest(folder: Path) -> dict:
    """What a prepared folder holds."""
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


def corpus_identity(config: PretrainConfig) -> dict:
    """All that the prepared bytes depend on, as JSON."""
    return {
        "format": FORMAT,
        "sources": [source_identity(source) | {"weight": source.weight} for source in config.sources()],
        "tokenizer": _tokenizer_identity(config),
        "validation_share": config.validation_share,
    }


def prepared_folder(config: PretrainConfig, identity: dict) -> Path:
    """Where the corpus with an identity lies."""
    return Path(config.prepared_dir) / f"{_short_name(config)}-{_fingerprint(identity)}"


def _fingerprint(identity: dict) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _tokenizer_identity(config: PretrainConfig) -> dict:
    if config.tokenizer is None:
        return {
            "trained": True,
            "vocab_size": config.vocab_size,
            "megabytes": config.tokenizer_train_megabytes,
        }
    from pretrain.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(config.tokenizer)
    config.model_configuration(
        len(tokenizer)
    )  # refuses one that is larger than the model's vocabulary, before any reading
    content = json.dumps([tokenizer.backend_tokenizer.to_str(), tokenizer.special_tokens_map], sort_keys=True)
    return {"trained": False, "sha256": hashlib.sha256(content.encode()).hexdigest()}


def _short_name(config: PretrainConfig) -> str:
    path = config.sources()[0].path
    words = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in path).strip("-.")
    return words[-40:] or "text"


def _num_proc(config: PretrainConfig) -> int:
    return config.num_proc or len(os.sched_getaffinity(0))


def _damaged_files(folder: Path, all_bytes: bool = False) -> list[str]:
    """The files of a prepared folder that are missing or have other bytes than were written.

    Args:
        all_bytes: whether files that were not changed since they were found to be right are read as well.
    """
    try:
        manifest = read_manifest(folder)
        right = manifest.pop("sha256") == _hash_of_manifest(manifest)
    except (OSError, ValueError, KeyError, AttributeError):
        right = False
    if not right:
        return [MANIFEST]
    try:
        checked = {} if all_bytes else json.loads((folder / CHECKED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        checked = {}
    damaged, times = [], {}
    for name, facts in manifest["files"].items():
        path = folder / name
        times[name] = path.stat().st_mtime_ns if path.exists() else None
        if (
            times[name] is None
            or path.stat().st_size != facts["size"]
            or (times[name] != checked.get(name) and hash_file(path) != facts["xxh3"])
        ):
            damaged.append(name)
    if not damaged and times != checked:
        write_json(folder / CHECKED, times)
    return damaged


def _hash_of_manifest(manifest: dict) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:LISTED])}{' and more' if len(names) > LISTED else ''}"


def _take_apart(folder: Path, damaged: list[str], partial: Path):
    """Make a partial folder out of one that is damaged, without what is damaged."""
    for name in damaged:
        if name.startswith(f"{TOKENIZER}/"):
            remove_folder(folder / TOKENIZER)
        else:
            (folder / name).unlink(missing_ok=True)
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
            print(f"\nWhat is prepared stays in {partial}: the same command goes on from there.", file=sys.stderr)
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

    tokenizer = _tokenizer(config, partial)
    settings = ShardSettings(
        tokenizer=tokenizer.backend_tokenizer.to_str(),
        token_type=token_type_of(len(tokenizer)),
        end=row_ends(tokenizer)[1],
        threshold=int(config.validation_share * HASH_RANGE),
        given_out=ids_given_out(tokenizer),
    )
    parts = _write_parts(config, settings, partial)
    threshold = _threshold(parts, settings.threshold)
    if threshold != settings.threshold:
        other_parts = {part.folder for part in parts}
        settings = dataclasses.replace(settings, threshold=threshold)
        parts = _write_parts(config, settings, partial)
        for folder in other_parts:  # not before: an interruption must not lead back to them
            remove_folder(folder)

    manifest = {
        "fingerprint": _fingerprint(identity),
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
    write_json(partial / MANIFEST, {**manifest, "sha256": _hash_of_manifest(manifest)})
    times = {name: (partial / name).stat().st_mtime_ns for name in manifest["files"]}
    write_json(partial / CHECKED, times)


def _tokenizer(config: PretrainConfig, partial: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of the prepared folder: the given one or one that is trained, unless it is there already."""
    from pretrain.data.tokenizer import load_tokenizer, sample_texts, train_tokenizer

    folder = partial / TOKENIZER
    if not folder.exists():
        if config.tokenizer is None:
            started = time.perf_counter()
            print(f"Reading {', '.join(source.path for source in config.sources())}", flush=True)
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
        write_folder(folder, tokenizer.save_pretrained)
    return load_tokenizer(str(folder))


def _write_parts(config: PretrainConfig, settings: ShardSettings, partial: Path) -> list[Part]:
    """Tokenise all sources, but for the shards that are there, or in another prepared folder."""
    parts = [Part.of(source, settings, partial, FORMAT) for source in config.sources()]
    missing = []
    for part in {part.folder: part for part in parts}.values():
        if part.take_over(Path(config.prepared_dir)):
            print(f"Taken over from other prepared data: {part.source.path}", flush=True)
        part.drop_damaged()
        if not part.is_whole():
            missing.append(part)
    found = sum(len(part.records()) for part in missing)
    if found:
        print(f"Going on with {found:,} shards that are whole", flush=True)
    num_proc = _num_proc(config)
    tasks = (task for part in missing for task in part.tasks(num_proc))
    started = time.perf_counter()
    megabytes = 0.0
    with tqdm(desc="Tokenising", unit="MB", disable=None) as bar:
        for record in shared_out(ShardWriter, (settings,), tasks, num_proc):
            size = sum(counts["bytes"] for counts in record["splits"].values()) / 1e6
            megabytes += size
            bar.update(round(size))
    seconds = time.perf_counter() - started
    if megabytes:
        print(f"Tokenised {megabytes:.1f} MB in {seconds:.1f} s ({megabytes / seconds:.1f} MB/s)", flush=True)
    return parts


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
    shards = [(part.folder, number, record) for part in parts for number, record in part.records().items()]
    return {
        split: split_statistics(
            (
                map_shard(shard_path(folder, number), record["splits"], token_type)[split]
                for folder, number, record in shards
            ),
            sum(record["splits"][split]["bytes"] for _, _, record in shards),
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
            print(f"{source.path}: left out {part['without_text']:,} documents without text", flush=True)
        if part["cut_documents"]:
            print(f"{source.path}: cut {part['cut_documents']:,} documents that were too long", flush=True)
        bad = part["bad_records"]
        if bad["count"]:
            print(f"{source.path}: left out {bad['count']:,} bad records (all in {MANIFEST}):", flush=True)
        for file, kinds in list(bad["files"].items())[:LISTED]:
            counts = ", ".join(f"{entry['count']:,} {kind}" for kind, entry in kinds.items())
            print(f"    {file}: {counts}. The first: {next(iter(kinds.values()))['first']}", flush=True)


def verify(config: PretrainConfig) -> Path:
    """Read all bytes of a prepared folder, and return it.

    Raises:
        PreparationError: where the folder is not there or a file has other bytes than were written.
    """
    folder = prepared_folder(config, corpus_identity(config))
    if not folder.exists():
        raise PreparationError(f"There are no prepared data {folder} to verify.")
    damaged = _damaged_files(folder, all_bytes=True)
    damaged += [str(index.relative_to(folder)) for index in sorted(folder.glob("rows/*/")) if damage_of_index(index)]
    if damaged:
        (folder / CHECKED).unlink(missing_ok=True)
        raise PreparationError(f"{folder} is damaged: {_listed(damaged)}. The next preparation mends it.")
    return folder


def main(arguments: list[str]):
    if "--verify" in arguments:
        config = load_config([argument for argument in arguments if argument != "--verify"])
        print(f"All files are as they were written: {verify(config)}")
        return
    config = load_config(arguments)
    folder = prepare(config)
    splits = read_manifest(folder)["splits"]
    for split in SPLITS:
        print(f"{split}: {splits[split]['documents']:,} documents, {splits[split]['tokens']:,} tokens")
    print(folder)


if __name__ == "__main__":
    with report_user_errors():
        main(sys.argv[1:])
