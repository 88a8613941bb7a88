"""Text to tokens, once: `python pretrain/prepare.py configs/pretrain/NAME.yaml` or the first run of the training.

A prepared folder holds, for "train" and "validation", `SPLIT.tokens` (ids of all documents, each followed by `</s>`)
and `SPLIT.documents.npy` (where each begins), the tokenizer, and `manifest.json`. Its name ends in a fingerprint of
all that it depends on. It is written beside and renamed when whole.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from pretrain.configuration import PretrainConfig, load_config
from pretrain.data.sources import Source, read_documents, source_identity
from pretrain.data.tokenizer import load_tokenizer, row_ends, token_type_of, train_tokenizer
from pretrain.errors import UserError, report_user_errors
from pretrain.files import make_folder, remove_folder, write_folder, write_json


FORMAT = 1  # of a prepared folder; raise it when its meaning changes
SPLITS = ("train", "validation")
BATCH_DOCUMENTS = 256


class PreparationError(UserError):
    """Text from which no corpus can be made."""


def prepare(config: PretrainConfig, quiet: bool = False) -> Path:
    """Return the prepared folder of a configuration, making it where it is not there or not whole.

    Processes that call this at the same time wait for the one that came first, on a lock and not in a collective
    operation that would time out.
    """
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    identity = corpus_identity(config)
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(config.prepared_dir) / f"{_short_name(config)}-{fingerprint}"
    make_folder(folder.parent, "prepared_dir")
    with FileLock(f"{folder}.lock"):
        if _is_whole(folder):
            if not quiet:
                print(f"Prepared data found: {folder}", flush=True)
            return folder
        write_folder(folder, lambda partial: _build(config, identity, fingerprint, partial))
    return folder


def read_manifest(folder: Path) -> dict:
    """What a prepared folder holds."""
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def corpus_identity(config: PretrainConfig) -> dict:
    """All that the prepared bytes depend on, as JSON."""
    return {
        "format": FORMAT,
        "sources": [source_identity(source) for source in config.sources()],
        "tokenizer": _tokenizer_identity(config),
        "validation_share": config.validation_share,
    }


def _tokenizer_identity(config: PretrainConfig) -> dict:
    if config.tokenizer is None:
        return {"trained": True, "vocab_size": config.vocab_size}
    tokenizer = load_tokenizer(config.tokenizer)
    config.luna_config(len(tokenizer))  # refuses one that is larger than the model's vocabulary, before any reading
    content = json.dumps([tokenizer.backend_tokenizer.to_str(), tokenizer.special_tokens_map], sort_keys=True)
    return {"trained": False, "sha256": hashlib.sha256(content.encode()).hexdigest()}


def _short_name(config: PretrainConfig) -> str:
    path = config.sources()[0].path
    words = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in path).strip("-.")
    return words[-40:] or "text"


def _is_whole(folder: Path) -> bool:
    """Whether a folder is there with all files at the sizes that its manifest states."""
    if not folder.exists():
        return False
    try:
        manifest = read_manifest(folder)
        sizes = {name: (folder / name).stat().st_size for name in manifest["files"]}
    except (OSError, ValueError, KeyError) as error:
        sizes, manifest = None, {"files": str(error)}
    if sizes == manifest["files"]:
        return True
    print(f"{folder} is damaged and is made again: {manifest['files']} expected, {sizes} found.", file=sys.stderr)
    remove_folder(folder)
    return False


def _build(config: PretrainConfig, identity: dict, fingerprint: str, partial: Path):
    num_proc = config.num_proc or len(os.sched_getaffinity(0))
    started = time.perf_counter()
    print(f"Reading {', '.join(source.path for source in config.sources())}", flush=True)
    documents = read_sources(config.sources(), num_proc, partial / "cache")
    print(f"Read {len(documents):,} documents in {time.perf_counter() - started:.0f} s", flush=True)

    started = time.perf_counter()
    if config.tokenizer is None:
        tokenizer = train_tokenizer(_texts(documents), config.vocab_size, config.max_length)
        print(f"Trained a tokenizer of {len(tokenizer):,} tokens in {time.perf_counter() - started:.0f} s", flush=True)
    else:
        tokenizer = load_tokenizer(config.tokenizer)
    tokenizer.save_pretrained(partial / "tokenizer")

    started = time.perf_counter()
    tokenised = tokenise(documents, tokenizer, num_proc)
    counts = write_splits(tokenised, len(tokenizer), config.validation_share, partial)
    seconds = time.perf_counter() - started
    megabytes = sum(count["bytes"] for count in counts.values()) / 1e6
    print(f"Tokenised {megabytes:.1f} MB in {seconds:.1f} s ({megabytes / seconds:.1f} MB/s)", flush=True)

    shutil.rmtree(partial / "cache")
    files = {str(path.relative_to(partial)): path.stat().st_size for path in partial.rglob("*") if path.is_file()}
    manifest = {
        "fingerprint": fingerprint,
        "identity": identity,
        "sources": [dataclasses.asdict(source) for source in config.sources()],
        "splits": counts,
        "vocab_size": len(tokenizer),
        "token_type": token_type_of(len(tokenizer)),
        "row_ends": row_ends(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "files": files,
    }
    write_json(partial / "manifest.json", manifest)


def read_sources(sources: list[Source], num_proc: int, cache: Path) -> datasets.Dataset:
    """All documents of all sources as an Arrow file on disk."""

    def generate() -> Iterator[dict]:
        for source in sources:
            yield from read_documents(source, num_proc)

    features = datasets.Features({"name": datasets.Value("string"), "text": datasets.Value("large_string")})
    try:
        documents = datasets.Dataset.from_generator(generate, features=features, cache_dir=str(cache))
    except datasets.exceptions.DatasetGenerationError as error:
        raise error.__cause__ or error from None
    if len(documents) < 2:
        raise PreparationError(
            f"The text holds {len(documents)} document(s), but at least two are needed, as whole documents are held "
            "out for validation. In text files blank lines separate documents; `--documents line` makes each line one."
        )
    return documents


def _texts(documents: datasets.Dataset) -> Iterator[list[str]]:
    for batch in documents.iter(batch_size=BATCH_DOCUMENTS):
        yield batch["text"]


def tokenise(
    documents: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, num_proc: int, load_from_cache_file: bool = True
) -> datasets.Dataset:
    """The `tokens` of each document with a closing `</s>`, the `bytes` of its text, and a `hash` of it in [0, 1)."""
    token_type = token_type_of(len(tokenizer))
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.encode_special_tokens = True  # "<mask>" or "</s>" in the text are words like others
    end = row_ends(tokenizer)[1]

    def tokenise_batch(batch: pa.Table) -> pa.Table:
        texts = batch["text"].to_pylist()
        encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        tokens = [np.array([*encoding.ids, end], dtype=token_type) for encoding in encodings]
        offsets = np.cumsum([0, *map(len, tokens)])
        encoded = [text.encode() for text in texts]
        hashes = [int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") / 2**64 for text in encoded]
        return pa.table(
            {
                "tokens": pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(tokens))),
                "bytes": pa.array([len(text) for text in encoded]),
                "hash": pa.array(hashes),
            }
        )

    return documents.with_format("arrow").map(
        tokenise_batch,
        batched=True,
        batch_size=BATCH_DOCUMENTS,
        num_proc=min(num_proc, len(documents)),
        remove_columns=documents.column_names,
        load_from_cache_file=load_from_cache_file,
        desc="Tokenising",
    )


def held_out(hashes: np.ndarray, share: float) -> np.ndarray:
    """Which documents are for validation: those whose hash falls below the share, so that a document stays on its
    side when others come or go. However few there are, each side gets one."""
    if len(np.unique(hashes)) < 2:
        raise PreparationError(f"All {len(hashes)} documents hold the same text: none can be held out for validation.")
    chosen = hashes < share
    if not chosen.any():
        chosen = hashes == hashes.min()
    elif chosen.all():
        chosen = hashes != hashes.max()
    return chosen


def write_splits(tokenised: datasets.Dataset, vocab_size: int, share: float, folder: Path) -> dict[str, dict]:
    """Write the token files of both splits and return what they hold."""
    validation = held_out(tokenised.with_format("numpy")["hash"][:], share)
    lengths: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    token_counts = {split: np.zeros(vocab_size, dtype=np.int64) for split in SPLITS}
    num_bytes = dict.fromkeys(SPLITS, 0)
    with ExitStack() as stack:
        files = {split: stack.enter_context(open(folder / f"{split}.tokens", "wb")) for split in SPLITS}
        first = 0
        for batch in tokenised.iter(batch_size=BATCH_DOCUMENTS):
            of_validation = validation[first : first + len(batch)]
            first += len(batch)
            for split, chosen in zip(SPLITS, (~of_validation, of_validation), strict=True):
                part = batch.filter(pa.array(chosen))
                tokens = part["tokens"].combine_chunks()
                ids = tokens.flatten().to_numpy()
                files[split].write(ids.tobytes())
                lengths[split].append(np.diff(tokens.offsets.to_numpy()))
                token_counts[split] += np.bincount(ids, minlength=vocab_size)
                num_bytes[split] += pc.sum(part["bytes"]).as_py() or 0

    counts = {}
    for split in SPLITS:
        document_lengths = np.concatenate(lengths[split])
        np.save(folder / f"{split}.documents.npy", np.cumsum([0, *document_lengths]))
        counts[split] = {
            "documents": len(document_lengths),
            "bytes": num_bytes[split],
            "tokens": int(document_lengths.sum()),
            "document_tokens": {
                "median": float(np.median(document_lengths)),
                "longest": int(document_lengths.max()),
            },
            "unigram_entropy": entropy(token_counts[split]),
        }
    return counts


def entropy(counts: np.ndarray) -> float:
    """Entropy in nats of the distribution in which things were counted."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def main(arguments: list[str]):
    config = load_config(arguments)
    folder = prepare(config)
    splits = read_manifest(folder)["splits"]
    for split in SPLITS:
        print(f"{split}: {splits[split]['documents']:,} documents, {splits[split]['tokens']:,} tokens")
    print(folder)


if __name__ == "__main__":
    with report_user_errors():
        main(sys.argv[1:])
