"""What prepared data depend on, and the folder that is named after it."""

import hashlib
import json
import os
from pathlib import Path

from pretrain.configuration import PretrainConfig
from pretrain.data.local_files import local_files
from pretrain.data.sources import source_identity
from pretrain.data.tokenizer import load_tokenizer
from pretrain.models.configuration import model_configuration


FORMAT = 3  # of a prepared folder; raise it when its meaning changes
FORMER_FORMAT = 2  # can still be read; knew files by their paths and times


def corpus_identity(config: PretrainConfig) -> dict:
    """All that the prepared bytes depend on, as JSON."""
    memory = Path(config.prepared_dir)
    return {
        "format": FORMAT,
        "sources": [source_identity(source, memory) | {"weight": source.weight} for source in config.sources()],
        "tokenizer": _tokenizer_identity(config),
        "validation_share": config.validation_share,
    }


def texts_of(identity: dict) -> list[dict]:
    """The identity of each source, whatever its weight."""
    return [{key: value for key, value in text.items() if key != "weight"} for text in identity["sources"]]


def has_changed(config: PretrainConfig, identity: dict) -> bool:
    """Whether files have other contents than when the identity was taken."""
    return any(
        text["kind"] == "files" and text != source_identity(source, Path(config.prepared_dir))
        for source, text in zip(config.sources(), texts_of(identity), strict=True)
    )


def former_identity(config: PretrainConfig, identity: dict) -> dict:
    """The identity that the former format gave to the same corpus."""
    texts = []
    for source, text in zip(config.sources(), identity["sources"], strict=True):
        files = local_files(source) if text["kind"] == "files" else None
        if files is not None:
            states = [(os.path.abspath(file), os.stat(file)) for file in files]
            text = {**text, "files": [[path, state.st_size, state.st_mtime_ns] for path, state in states]}
        texts.append(text)
    return {**identity, "format": FORMER_FORMAT, "sources": texts}


def fingerprint(identity: dict) -> str:
    """A short hash of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def prepared_folder(config: PretrainConfig, identity: dict) -> Path:
    """Where the corpus with an identity lies."""
    return Path(config.prepared_dir) / f"{short_name(config)}-{fingerprint(identity)}"


def _tokenizer_identity(config: PretrainConfig) -> dict:
    if config.tokenizer is None:
        return {
            "trained": True,
            "vocab_size": config.vocab_size,
            "megabytes": config.tokenizer_train_megabytes,
        }
    tokenizer = load_tokenizer(config.tokenizer)
    # Refuses one that is larger than the model's vocabulary, before any reading.
    model_configuration(config, len(tokenizer))
    content = json.dumps([tokenizer.backend_tokenizer.to_str(), tokenizer.special_tokens_map], sort_keys=True)
    return {"trained": False, "sha256": hashlib.sha256(content.encode()).hexdigest()}


def short_name(config: PretrainConfig) -> str:
    """How the names of the prepared folders of a first source begin."""
    path = config.sources()[0].path
    words = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in path).strip("-.")
    return words[-40:] or "text"
