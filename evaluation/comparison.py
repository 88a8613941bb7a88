"""The course of an evaluation: open the models, cut the texts for all of them, evaluate one model after the other."""

import argparse
import gc
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
import transformers
from accelerate import PartialState

from common.errors import UserError
from evaluation.hidden_words import HiddenWords, evaluate_hidden_words
from evaluation.minimal_pairs import MinimalPair, evaluate_minimal_pairs, read_minimal_pairs
from evaluation.models import MaskedModel, ModelError, Scorer, TextEncoder, run_together
from evaluation.texts import read_sources, read_texts
from pretrain.data.sources import Source


LONGEST_ROW = 512  # tokens, where nobody asks for more
PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "numpy")


def compare(options: argparse.Namespace, publish: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Evaluate all models; the result is what `--output FILE.json` holds.

    Args:
        options: as `evaluate.parse_arguments` returns them.
        publish: takes the results so far, on the main process, after each model: what ends the process while it
            works on one of them does not cost the others.

    Raises:
        UserError: for a text or pairs that cannot be read. What is wrong with a model is in its report.
    """
    state = PartialState()
    sources = read_sources(options)
    pairs = read_minimal_pairs(options.minimal_pairs) if options.minimal_pairs is not None else []
    reports = [new_report(name) for name in options.models]
    models = {report["model"]: model for report in reports if (model := open_model(report, options)) is not None}
    max_length = options.max_length or min(
        [model.max_length for model in models.values() if model.max_length is not None] + [LONGEST_ROW]
    )
    encoders = {model.encoder.key: model.encoder for model in models.values() if model.takes(max_length)}
    texts = {name: cut_text(name, source, encoders, max_length, options) for name, source in sources if encoders}
    results = {
        "settings": {key: list(map(str, value)) if key == "output" else value for key, value in vars(options).items()},
        "max_length": max_length,
        "versions": {"python": platform.python_version()} | {package: version(package) for package in PACKAGES},
        "device": torch.cuda.get_device_name(state.device) if state.device.type == "cuda" else state.device.type,
        "num_processes": state.num_processes,
        "data": [describe_text(name, cut.text, options) for name, cut in texts.items()],
        "minimal_pairs": describe_pairs(options, pairs) if pairs else None,
        "models": [],
    }
    for report in reports:
        if report["model"] in models:
            evaluate_model(models[report["model"]], report, texts, pairs, max_length, options)
        results["models"].append(report)
        if state.is_main_process:
            publish(results)
    return results


@contextmanager
def processes(device: str) -> Iterator[PartialState]:
    """The processes that the launcher started, on the device that each has.

    Args:
        device: "auto", or the type that it must have.

    Raises:
        UserError: where there is no such device, or accelerate does not see all processes.
    """
    transformers.logging.set_verbosity_error()  # what is wrong with a model is reported
    transformers.logging.disable_progress_bar()
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    wants_cpu = device == "cpu" or os.environ.get("ACCELERATE_USE_CPU", "false").lower() == "true"
    # Without it accelerate lets every process of a CPU launch believe that it is alone.
    state = PartialState(cpu=wants_cpu or (world_size > 1 and not torch.cuda.is_available()))
    if state.num_processes != world_size:
        raise UserError(
            f"The launcher started {world_size} processes, but accelerate sees {state.num_processes}: use a file of "
            "configs/accelerate/ (`accelerate launch --config_file configs/accelerate/NAME.yaml ...`)."
        )
    if device not in ("auto", state.device.type):
        raise UserError(f"--device: there is no {device} here that PyTorch can use, only {state.device.type}.")
    try:
        yield state
    finally:
        state.destroy_process_group()  # a CPU one sometimes aborts at the interpreter's exit if it is still there


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
        model = run_together(lambda: MaskedModel.open(report["model"], options.trust_remote_code), one_by_one=True)
    except ModelError as error:
        report["errors"].append(str(error))
        return None
    report["tokenizer"] = type(model.encoder.tokenizer).__name__
    report["max_length"] = model.max_length
    return model


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


def cut_text(
    name: str, source: Source, encoders: dict[tuple, TextEncoder], max_length: int, options: argparse.Namespace
) -> CutText:
    """Hide words of the documents of a source, for all tokenizers but those that were made for other languages: words
    that one of them does not spell are scored for none.

    Raises:
        UserError: where there is no word to score.
    """
    text = HiddenWords.cut(
        read_texts(source, options),
        list(encoders.values()),
        max_length,
        options.seed,
        options.mask_probability,
        options.prediction,
    )
    if not text.hidden:
        raise UserError(
            f"{name}: no word can be scored. {text.documents:,} documents with {text.words_read:,} words were read; "
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
        cut = cut_text(name, source, others, max_length, options)
        return cut._replace(spelled=weak | cut.spelled)
    if others and not text.scored:
        raise UserError(
            f"{name}: of {text.hidden:,} hidden words none is spelled by all tokenizers. Give more text, or "
            "evaluate the models one by one."
        )
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
    dtype = getattr(torch, options.dtype)
    try:
        scorer = run_together(lambda: model.load(dtype, device, options.batch_size * max_length), one_by_one=True)
    except ModelError as error:
        report["errors"].append(str(error))
        return
    report["architecture"] = type(scorer.weights).__name__
    report["parameters"] = scorer.weights.num_parameters()
    for name in options.data:
        try:
            report["data"][name] = evaluate_text(scorer, name, texts, max_length)
        except ModelError as error:
            report["errors"].append(str(error))
    try:
        if pairs:
            report["minimal_pairs"] = evaluate_minimal_pairs(scorer, pairs, options.pll)
    except ModelError as error:
        report["errors"].append(str(error))
    del scorer
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def evaluate_text(scorer: Scorer, name: str, texts: dict[str, CutText], max_length: int) -> dict[str, Any]:
    """Score the hidden words of one of the texts, which are empty where no model takes rows of that length.

    Raises:
        ModelError: where the model or its tokenizer does not fit the text.
    """
    model = scorer.opened
    if not model.takes(max_length):
        raise ModelError(
            f"{name}: it takes rows of {model.max_length} tokens at most, but --max_length is {max_length}"
        )
    cut = texts[name]
    if model.encoder.key in cut.spelled:
        spelled, hidden = cut.spelled[model.encoder.key]
        raise ModelError(f"{name}: its tokenizer spells only {spelled:,} of {hidden:,} hidden words")
    return evaluate_hidden_words(scorer, cut.text, cut.tokenizers.index(model.encoder.key), name)


def describe_text(name: str, text: HiddenWords, options: argparse.Namespace) -> dict[str, Any]:
    """What was read of a source."""
    return {
        "source": name,
        "documents": text.documents,
        "documents_cut": len(text.cut_documents),
        "words": text.words_read,
        "hidden_words": text.hidden,
        "scored_words": text.scored,
        "scored_bytes": text.scored_bytes,
        "too_long_words": text.too_long,
        "rows": text.num_rows,
        "prediction": options.prediction,
    }


def describe_pairs(options: argparse.Namespace, pairs: Sequence[MinimalPair]) -> dict[str, Any]:
    """What was read of the minimal pairs."""
    return {
        "path": options.minimal_pairs,
        "pairs": len(pairs),
        "files": len({pair.file for pair in pairs}),
        "pseudo_log_likelihood": options.pll,
    }
