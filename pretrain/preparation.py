"""The prepared folder of a run's data: found, made, mended or verified.

A folder holds a folder of shards for each source (see `pretrain.data.shards`), the tokenizer, the rows of the
requested packings, and `manifest.json`. Its name ends in a fingerprint of all that it depends on. It is written
beside its place and renamed when whole.

Text of any size is prepared in bounded memory by several processes; what they write does not depend on their number.
An interrupted preparation resumes from the shards that are whole; damaged ones are made again.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.errors import say
from common.files import (
    PARTIAL,
    is_folder,
    locked,
    make_folder,
    publish_folder,
    remove_folder,
)
from pretrain.building import TOKENIZER, PreparationError, build, listed
from pretrain.configuration import PretrainConfig
from pretrain.data.manifest import CHECKED, MANIFEST, damaged_files, read_manifest
from pretrain.data.packed_data import PackedRows
from pretrain.data.row_index import damage_of_index, ensure_index
from pretrain.data.shard_file import SPLITS
from pretrain.data.sources import Source, SourceError, check_source
from pretrain.identity import (
    FORMAT,
    corpus_identity,
    fingerprint,
    former_identity,
    has_changed,
    prepared_folder,
    short_name,
)


def prepare(config: PretrainConfig, quiet: bool = False) -> Path:
    """Return the prepared folder of a configuration, making it where it is not there or not whole.

    Data that are whole are only read: the folder may be another user's. Processes that find none wait for the one that
    came first, on a lock and not in a collective operation that would time out.
    """
    identity = corpus_identity(config)
    folder = _whole_folder(config, identity, quiet) or _make(config, identity, quiet)
    _refuse_bad_records(config.sources(), read_manifest(folder))
    if config.packing != "stream":
        ensure_index(folder, config.packing, config.max_length, config.preparation_processes())
    if not quiet:
        _print_rows(config, folder)
    return folder


def find_prepared(config: PretrainConfig) -> Path | None:
    """The folder of data that are prepared and whole; None where they are still to be prepared.

    Files are hashed only where a folder may be theirs.

    Raises:
        SourceError: where a source is not there.
    """
    if not any(Path(config.prepared_dir).glob(f"{short_name(config)}-*")):
        for source in config.sources():
            check_source(source)
        return None
    return _whole_folder(config, corpus_identity(config), quiet=True)


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
                f"{folder} was prepared by an earlier version and is damaged: {listed(damaged)}. The data are "
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
            say(f"{folder} is damaged and is mended: {listed(damaged)}", file=sys.stderr)
            _take_apart(folder, damaged, partial)
        with _kept_if_useful(partial):
            build(config, identity, partial)
            if has_changed(config, identity):
                raise PreparationError("The text was changed while it was prepared: run the same command again.")
            publish_folder(partial, folder)
    return folder


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
        raise PreparationError(f"{folder} is damaged: {listed(damaged)}. The next preparation mends it.")
    return folder
