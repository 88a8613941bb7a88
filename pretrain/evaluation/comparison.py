"""The course of an evaluation: open the models, cut the texts for all of them, evaluate one model after the other."""

import argparse
import gc
import hashlib
import itertools
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from accelerate import PartialState

from pretrain.errors import UserError
from pretrain.files import make_folder
from pretrain.evaluation.models import MaskedModel, ModelError, TextEncoder, common_max_length
from pretrain.evaluation.scoring import Scorer, run_together
from pretrain.evaluation.hidden_words import HiddenWords, evaluate_hidden_words
from pretrain.evaluation.minimal_pairs import MinimalPair, evaluate_minimal_pairs, read_minimal_pairs
from pretrain.sources import Source, read_documents


LONGEST_ROW = 512  # tokens, where nobody asks for more
PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "numpy")


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Evaluate all models; the result is what `--output` writes.

    Args:
        options: as `evaluate.parse_arguments` returns them.

    Raises:
        UserError: for a text or pairs that cannot be read. What is wrong with a model is in its report.
    """
    state = PartialState()
    pairs = read_minimal_pairs(options.minimal_pairs) if options.minimal_pairs is not None else []
    reports = [new_report(name) for name in dict.fromkeys(options.models)]
    models = [model for report in reports if (model := open_model(report, options)) is not None]
    max_length = options.max_length or common_max_length(models, LONGEST_ROW)
    encoders = distinct_encoders([model for model in models if takes(model, max_length)])
    texts = {
        source: cut_text(source, encoders, max_length, options) for source in dict.fromkeys(options.data) if encoders
    }
    report_of = {report["model"]: report for report in reports}
    for model in models:
        evaluate_model(model, report_of[model.name], texts, pairs, max_length, options)
    return {
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()},
        "max_length": max_length,
        "versions": {"python": platform.python_version()} | {package: version(package) for package in PACKAGES},
        "device": torch.cuda.get_device_name(state.device) if state.device.type == "cuda" else state.device.type,
        "num_processes": state.num_processes,
        "data": [describe_text(source, cut.text) for source, cut in texts.items()],
        "minimal_pairs": describe_pairs(options, pairs) if pairs else None,
        "models": reports,
    }


@contextmanager
def processes() -> Iterator[PartialState]:
    """The processes that the launcher started, on the device that each has.

    Raises:
        UserError: where accelerate does not see all of them.
    """
    transformers.logging.set_verbosity_error()  # what is wrong with a model is reported
    transformers.logging.disable_progress_bar()
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    wants_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() == "true"
    # Without it accelerate lets every process of a CPU launch believe that it is alone.
    state = PartialState(cpu=wants_cpu or (world_size > 1 and not torch.cuda.is_available()))
    if state.num_processes != world_size:
        raise UserError(
            f"The launcher started {world_size} processes, but accelerate sees {state.num_processes}: use a file of "
            "configs/accelerate/ (`accelerate launch --config_file configs/accelerate/NAME.yaml ...`)."
        )
    try:
        yield state
    finally:
        state.destroy_process_group()  # a CPU one sometimes aborts at the interpreter's exit if it is still there


def check_output(path: Path | None, option: str):
    """Make the folder of a file that is written at the end.

    Raises:
        UserError: where the file cannot be written there.
    """
    if path is None:
        return
    make_folder(path.parent, option)
    if path.is_dir():
        raise UserError(f"{option}: {path} is a folder: name a file.")


def new_report(name: str) -> dict[str, Any]:
    """What is known of a model before anything of it was read."""
    return {
        "model": name,
        "architecture": None,
        "tokenizer": None,
        "parameters": None,
        "max_length": None,
        "data": {},
        "minimal_pairs": None,
        "errors": [],
    }


def open_model(report: dict[str, Any], options: argparse.Namespace) -> MaskedModel | None:
    """Read configuration and tokenizer of a model; None, and an error in its report, where that fails."""
    try:
        model = run_together(lambda: MaskedModel.open(report["model"], options.trust_remote_code))
    except ModelError as error:
        report["errors"].append(str(error))
        return None
    report["tokenizer"] = type(model.encoder.tokenizer).__name__
    report["max_length"] = model.max_length
    return model


def takes(model: MaskedModel, max_length: int) -> bool:
    """Whether rows of this length fit a model."""
    return model.max_length is None or max_length <= model.max_length


def distinct_encoders(models: Sequence[MaskedModel]) -> dict[tuple, TextEncoder]:
    """The tokenizers of models by their keys; the same one, used by several models, once."""
    return {model.encoder.key: model.encoder for model in models}


def read_texts(source: str, options: argparse.Namespace) -> Iterator[str]:
    """The texts of the documents of a source that are asked for."""
    num_proc = max(1, (os.cpu_count() or 1) // PartialState().num_processes)
    where = Source(source, text_column=options.text_column, split=options.split, documents=options.documents)
    texts = (document["text"] for document in read_documents(where, num_proc))
    if options.held_out is not None:
        texts = (text for text in texts if document_hash(text) < options.held_out)
    return itertools.islice(texts, options.max_documents)


def document_hash(text: str) -> float:
    """A number in [0, 1); the preparation of pretraining holds out the documents with the smallest ones."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


class CutText(NamedTuple):
    """A source with its words hidden.

    Args:
        text: the rows of each tokenizer that spells most of its words.
        tokenizers: the keys of these.
        spelled: for the keys of the others, how many of how many hidden words they spell.
    """

    text: HiddenWords
    tokenizers: list[tuple]
    spelled: dict[tuple, tuple[int, int]]


def cut_text(source: str, encoders: dict[tuple, TextEncoder], max_length: int, options: argparse.Namespace) -> CutText:
    """Hide words of the documents of a source, for all tokenizers but those that were made for other languages: words
    that one of them does not spell are scored for none.

    Raises:
        UserError: where there is no word to score.
    """
    text = HiddenWords.cut(
        read_texts(source, options), list(encoders.values()), max_length, options.seed, options.mask_probability
    )
    if not text.hidden:
        raise UserError(
            f"{source}: no word can be scored. {text.documents:,} documents with {text.words_read:,} words were read; "
            f"none was hidden, and {text.too_long:,} are longer than a row of {max_length} tokens. "
            "Give more text, or raise --mask_probability."
        )
    weak = {
        key: (int(spelled), text.hidden)
        for key, spelled in zip(encoders, text.spelled, strict=True)
        if spelled < text.hidden / 2
    }
    others = {key: encoder for key, encoder in encoders.items() if key not in weak}
    if weak and others:
        cut = cut_text(source, others, max_length, options)
        return cut._replace(spelled=weak | cut.spelled)
    return CutText(text, list(others), weak)


def evaluate_model(
    model: MaskedModel,
    report: dict[str, Any],
    texts: dict[str, CutText],
    pairs: list[MinimalPair],
    max_length: int,
    options: argparse.Namespace,
):
    """Load a model and complete its report."""
    device = PartialState().device
    try:
        weights = run_together(lambda: model.load(getattr(torch, options.dtype), device))
    except ModelError as error:
        report["errors"].append(str(error))
        return
    report["architecture"] = type(weights).__name__
    report["parameters"] = weights.num_parameters()
    scorer = Scorer(model, weights, batch_tokens=options.batch_size * max_length)
    try:
        if texts and not takes(model, max_length):
            raise ModelError(f"it takes rows of {model.max_length} tokens at most, but --max_length is {max_length}")
        for source, cut in texts.items():
            if model.encoder.key in cut.spelled:
                spelled, hidden = cut.spelled[model.encoder.key]
                raise ModelError(f"its tokenizer spells only {spelled:,} of {hidden:,} hidden words of {source}")
            tokenizer = cut.tokenizers.index(model.encoder.key)
            report["data"][source] = evaluate_hidden_words(scorer, cut.text, tokenizer, source)
    except ModelError as error:
        report["errors"].append(str(error))
    try:
        if pairs:
            report["minimal_pairs"] = evaluate_minimal_pairs(scorer, pairs, options.pll)
    except ModelError as error:
        report["errors"].append(str(error))
    del weights, scorer
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def describe_text(source: str, text: HiddenWords) -> dict[str, Any]:
    """What was read of a source."""
    return {
        "source": source,
        "documents": text.documents,
        "words": text.words_read,
        "hidden_words": text.hidden,
        "scored_words": text.scored,
        "scored_bytes": text.scored_bytes,
        "too_long_words": text.too_long,
    }


def describe_pairs(options: argparse.Namespace, pairs: Sequence[MinimalPair]) -> dict[str, Any]:
    """What was read of the minimal pairs."""
    return {
        "path": options.minimal_pairs,
        "pairs": len(pairs),
        "files": len({pair.file for pair in pairs}),
        "pseudo_log_likelihood": options.pll,
    }
