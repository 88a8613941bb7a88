# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Convert an official Luna checkpoint (fairseq, `luna_bert` architectures) into a folder for Transformers.

    python -m modeling_luna.convert_luna_fairseq_to_hf --checkpoint_path model.pt --dict_path dict.txt \
        --vocab_file encoder.json --merges_file vocab.bpe --output_dir luna-base

docs/converting.md describes the options.
"""

import argparse
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub import HfApi
from huggingface_hub.utils import HFValidationError, validate_repo_id
from safetensors import SafetensorError
from torch import nn
from transformers import AddedToken
from transformers.utils import logging

from modeling_luna.configuration_luna import LunaConfig
from modeling_luna.modeling_luna import (
    LunaClassificationHead,
    LunaForMaskedLM,
    LunaForSequenceClassification,
    LunaPreTrainedModel,
)
from modeling_luna.tokenization_luna import LunaTokenizer


# Our names to the official ones, applied one after the other; HEAD stands for the name of a classification head.
OFFICIAL_NAMES = (
    (r"^luna\.embeddings\.packed_embeddings$", "encoder.sentence_encoder.projected_embeddings"),
    (r"^luna\.embeddings\.word_embeddings\.", "encoder.sentence_encoder.embed_tokens."),
    (r"^luna\.embeddings\.position_embeddings\.", "encoder.sentence_encoder.embed_positions."),
    (r"^luna\.embeddings\.layer_norm\.", "encoder.sentence_encoder.emb_layer_norm."),
    (r"^luna\.embeddings\.packed_layer_norm\.", "encoder.sentence_encoder.proj_emb_layer_norm."),
    (r"^luna\.", "encoder.sentence_encoder."),
    (r"\.pack_attention\.q_proj\.", ".self_attn.pq_proj."),
    (r"\.pack_attention\.kv_proj\.", ".self_attn.pc_proj."),
    (r"\.pack_attention\.([kv])_proj\.", r".self_attn.p\1_proj."),
    (r"\.unpack_attention\.kv_proj\.", ".self_attn.c_proj."),
    (r"\.unpack_attention\.", ".self_attn."),
    (r"\.attention_layer_norm\.", ".self_attn_layer_norm."),
    (r"\.packed_layer_norm\.", ".self_atten_proj_layer_norm."),
    (r"\.mlp\.", "."),
    (r"^lm_head\.(decoder\.)?", "encoder.lm_head."),
    (r"^classifier\.attention\.layer_norm\.", "classification_heads.HEAD.layernorm."),
    (r"^classifier\.attention\.", "classification_heads.HEAD.attn."),
    (r"^classifier\.", "classification_heads.HEAD."),
)
EMBEDDING = "encoder.sentence_encoder.embed_tokens.weight"
OUTPUT_EMBEDDING = "encoder.lm_head.weight"
POSITIONS = "encoder.sentence_encoder.embed_positions.weight"

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_accurate": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",  # the old name of gelu_accurate
    "linear": "linear",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
# The official code chooses the kind of a head by its name.
POOLING_OF_HEADS = {"pooling_classification_head": "packed_max", "attention_classification_head": "packed_attention"}

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
MASK_TOKEN = "<mask>"
PADDING_ID = SPECIAL_TOKENS.index("<pad>")
NO_HEAD = "none"


class ConversionError(ValueError):
    """The checkpoint, or something beside it, cannot be converted; the message says why."""


@dataclass
class Conversion:
    """What [`convert_checkpoint`] wrote."""

    model_class: type[LunaPreTrainedModel]
    config: LunaConfig
    num_parameters: int
    head: str | None
    tokenizer: LunaTokenizer | None
    output_dir: Path
    notes: list[str]


def convert_checkpoint(
    checkpoint_path: str | Path,
    dict_path: str | Path,
    output_dir: str | Path,
    vocab_file: str | Path | None = None,
    merges_file: str | Path | None = None,
    layernorm: str = "standard",
    head: str | None = None,
    label_dict_path: str | Path | None = None,
) -> Conversion:
    """
    Convert an official checkpoint; nothing is written unless all of it can be.

    Args:
        checkpoint_path: `model.pt` of fairseq.
        dict_path: `dict.txt`, the dictionary that the model was trained with.
        output_dir: a folder that does not exist, or is empty; not the current one.
        vocab_file, merges_file: `encoder.json` and `vocab.bpe` of GPT-2's BPE; without them no tokenizer is made.
        layernorm: "standard", or "plus_one" where the norms were trained as norm(x) * (weight + 1) + bias.
        head: the classification head to take where there are several; "none" for the masked-LM model.
        label_dict_path: the dictionary of the labels, which gives the classes their names.

    Raises:
        ConversionError: says what is wrong with the checkpoint or the other files.
    """
    if (vocab_file is None) != (merges_file is None):
        raise ConversionError("--vocab_file and --merges_file belong together: give both or neither.")
    if layernorm not in ("standard", "plus_one"):
        raise ConversionError(f"--layernorm is standard or plus_one, not {layernorm}.")
    output_dir = check_output_dir(Path(output_dir))
    checkpoint_path = Path(checkpoint_path)

    args, weights = read_checkpoint(checkpoint_path)
    symbols = read_dictionary(Path(dict_path))
    check_vocabulary(symbols, weights, Path(dict_path))
    heads = classification_heads(weights)
    check_weights(weights, official_shapes(build_config(args, weights, len(symbols)), heads))
    check_tied_embeddings(args, weights)

    head = choose_head(list(heads), head)
    config = build_config(args, weights, len(symbols), head, None if head is None else heads[head])
    if label_dict_path is not None:
        set_label_names(config, head, Path(label_dict_path))
    tokenizer = None
    if vocab_file is not None and merges_file is not None:
        tokenizer = build_tokenizer(symbols, Path(vocab_file), Path(merges_file), config.max_position_embeddings)
    else:
        config.tokenizer_class = None  # AutoTokenizer would make one of this class, without a vocabulary

    model_class = LunaForMaskedLM if head is None else LunaForSequenceClassification
    with torch.device("meta"):
        model = model_class(config)
    # Weights in 16 bit keep their values.
    tensors = {name: weights[official_name(name, head)].detach().float().contiguous() for name in model.state_dict()}
    if head is None and not config.tie_word_embeddings:  # two tensors, even where the checkpoint stores them as one
        tensors["lm_head.decoder.weight"] = tensors["lm_head.decoder.weight"].clone()
    notes = use_layernorm_convention(model, tensors, layernorm)
    model.load_state_dict(tensors, assign=True)  # the model holds these tensors, no copies of them
    model.tie_weights()
    conversion = Conversion(model_class, config, model.num_parameters(), head, tokenizer, output_dir, notes)
    with whole_folder(output_dir) as folder:
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(model_card(conversion, checkpoint_path.name, args), encoding="utf-8")
        check_written(folder, conversion, tensors)
    return conversion


def check_output_dir(output_dir: Path) -> Path:
    try:
        output_dir = output_dir.resolve()
        in_use = output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir()))
        is_current = output_dir.exists() and output_dir.samefile(".")
        is_mount = output_dir.is_mount()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConversionError(f"Cannot use {output_dir} as --output_dir: {first_line(error)}.") from error
    if in_use:
        raise ConversionError(f"{output_dir} exists and is not an empty folder: choose another --output_dir.")
    # An empty folder gives way to the one that is written.
    if is_current:
        raise ConversionError(f"{output_dir} is the current folder, which cannot be replaced: name a folder in it.")
    if is_mount:
        raise ConversionError(f"{output_dir} is a mount point, which cannot be replaced: name a folder in it.")
    return output_dir


def read_checkpoint(path: Path) -> tuple[argparse.Namespace, dict[str, torch.Tensor]]:
    """Read the arguments and the weights; the file cannot run code, and weights are read when they are needed."""
    try:
        if not path.is_file():
            raise ConversionError(f"{path} is not a file.")
        check_records(path)
        with only_fairseq_globals():
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except ConversionError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # torch.load raises many kinds for files that are damaged or of other programs
        raise ConversionError(describe_load_error(path, error)) from error

    if isinstance(checkpoint, dict) and "cfg" in checkpoint and checkpoint.get("args") is None:
        raise ConversionError(
            f"{path} has its options in 'cfg', as later versions of fairseq write them; official Luna checkpoints "
            "have 'args'."
        )
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("model"), dict):
        raise ConversionError(f"{path} is not a fairseq checkpoint: it has no 'model'.")
    args, weights = checkpoint.get("args"), checkpoint["model"]
    if not isinstance(args, argparse.Namespace):
        raise ConversionError(f"{path} is not a fairseq checkpoint: its 'args' are not the options of a training run.")
    check_architecture(path, args, weights)
    return args, weights


def check_records(path: Path):
    """Check that a zip file can be mapped into memory, where torch takes all as it is: stored and undamaged."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as file:
        if any(record.compress_type != zipfile.ZIP_STORED for record in file.infolist()):
            raise ConversionError(
                f"{path} was packed anew with compression, which torch.save does not use: take the original file."
            )
        damaged = file.testzip()
    if damaged is not None:
        raise ConversionError(f"{path} is damaged: the check sum of its part {damaged} is wrong. Copy it anew.")


@contextmanager
def only_fairseq_globals() -> Iterator[None]:
    """Let `torch.load` make what a fairseq checkpoint holds besides tensors, and nothing that others have allowed.

    That is the options of the run, and NumPy's numbers as values of metrics.
    """
    scalar = np.float64(0).__reduce__()[0]
    number_types = {type(np.dtype(code)) for code in ("f2", "f4", "f8", "i4", "i8", "?")}
    allowed: list[Any] = [
        argparse.Namespace,
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),
        np.dtype,
        *number_types,
    ]
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with torch.serialization.safe_globals(allowed):
            yield
    finally:
        torch.serialization.add_safe_globals(others)


def describe_load_error(path: Path, error: Exception) -> str:
    message = str(error)
    forbidden = re.search(r"GLOBAL ([\w.]+)", message)
    if forbidden:
        return (
            f"{path} holds {forbidden[1]}, which no fairseq checkpoint needs and which might be harmful. Nothing in "
            "it was executed."
        )
    # What follows the first sentence is torch's advice to run the code in the file.
    reason = first_line(message).split(". ")[0]
    return f"{path} is damaged, truncated or not a fairseq checkpoint ({type(error).__name__}: {reason})."


def check_architecture(path: Path, args: argparse.Namespace, weights: dict[str, Any]):
    name = f"{path} (architecture {getattr(args, 'arch', 'unknown')}, task {getattr(args, 'task', 'unknown')})"
    prefixes = {".".join(key.split(".")[:2]) for key in map(str, weights)}
    if any(prefix.startswith("decoder.") for prefix in prefixes):
        raise ConversionError(f"{name} is an encoder-decoder; only Luna's masked-LM encoder can be converted.")
    if "encoder.encoder" in prefixes:
        raise ConversionError(
            f"{name} is a model of the Long Range Arena; only Luna's masked-LM encoder can be converted."
        )
    if "encoder.sentence_encoder" not in prefixes or not str(getattr(args, "arch", "luna")).startswith("luna"):
        raise ConversionError(f"{name} is not a masked-LM encoder of Luna.")


def read_dictionary(path: Path) -> list[str]:
    """The symbols by their ids: those that fairseq puts in front, those of the file, and `<mask>` at the end."""
    symbols = [*SPECIAL_TOKENS, *(symbol for _, symbol in dictionary_lines(path, SPECIAL_TOKENS))]
    if MASK_TOKEN not in symbols:
        symbols.append(MASK_TOKEN)
    return symbols


def dictionary_lines(path: Path, known: Iterable[str] = ()) -> Iterator[tuple[int, str]]:
    """Number and symbol of each line of a fairseq dictionary, `symbol count [#fairseq:overwrite]`.

    Raises:
        ConversionError: names file and line, for a line of another form or a symbol that is there twice.
    """
    lines_of_symbols: dict[str, int | None] = dict.fromkeys(known)
    text = read_text(path)
    if text.startswith("\ufeff"):
        raise ConversionError(
            f"{path}, line 1: begins with a byte-order mark, which fairseq does not write: remove it."
        )
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        symbol, _, count = line.rstrip().rpartition(" ")
        overwrite = count == "#fairseq:overwrite"
        if overwrite:
            symbol, _, count = symbol.rpartition(" ")
        if not symbol or not re.fullmatch(r"[+-]?\d+", count):
            raise ConversionError(
                f"{path}, line {number}: expected '<symbol> <count>' of a fairseq dictionary, found {line[:80]!r}."
            )
        if symbol in lines_of_symbols and not overwrite:
            first = lines_of_symbols[symbol]
            place = "among the special symbols" if first is None else f"in line {first}"
            raise ConversionError(f"{path}, line {number}: {symbol!r} is already {place}.")
        lines_of_symbols[symbol] = number
        yield number, symbol


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConversionError(f"Cannot read {path}: {error}.") from error


def check_vocabulary(symbols: list[str], weights: dict[str, Any], path: Path):
    embedding = weights.get(EMBEDDING)
    if isinstance(embedding, torch.Tensor) and embedding.ndim == 2 and embedding.shape[0] != len(symbols):
        raise ConversionError(
            f"{path} gives {len(symbols)} symbols ({', '.join(SPECIAL_TOKENS)} and {MASK_TOKEN} included), but the "
            f"checkpoint has embeddings for {embedding.shape[0]}: it was trained with another dictionary."
        )


class HeadSizes(NamedTuple):
    """Of a classification head: the number of classes, and the width between its projections if it is another one
    than the model's."""

    num_labels: int
    inner: int | None


def classification_heads(weights: dict[str, Any]) -> dict[str, HeadSizes]:
    """The sizes of the heads by their names, in the order of the checkpoint."""

    def shape(name: str) -> tuple[int, ...]:
        tensor = weights.get(name)
        return tuple(tensor.shape) if isinstance(tensor, torch.Tensor) and tensor.ndim == 2 else (1, 1)

    heads: dict[str, HeadSizes] = {}
    for key in weights:
        match = re.match(r"classification_heads\.([^.]+)\.", str(key))
        if match and match[1] not in heads:
            num_labels, _ = shape(f"{match[0]}out_proj.weight")
            inner, outer = shape(f"{match[0]}dense.weight")
            if num_labels == 0 or inner == 0:
                raise ConversionError(f"The classification head {match[1]} has no output.")
            heads[match[1]] = HeadSizes(num_labels, None if inner == outer else inner)
    return heads


def choose_head(heads: list[str], head: str | None) -> str | None:
    if head is None and len(heads) > 1:
        raise ConversionError(
            f"The checkpoint has several classification heads: choose one by --head ({', '.join(heads)}), or "
            f"--head {NO_HEAD} for the masked-LM model."
        )
    if head is None or head in heads:
        return head or next(iter(heads), None)
    if head == NO_HEAD:
        return None
    raise ConversionError(f"The checkpoint has no head {head!r}; it has {', '.join(heads) or 'none'}.")


def build_config(
    args: argparse.Namespace,
    weights: dict[str, Any],
    vocab_size: int,
    head: str | None = None,
    sizes: HeadSizes | None = None,
) -> LunaConfig:
    """The configuration from the training run's options, and the sizes of the head where there is one.

    Raises:
        ConversionError: for an option that is missing or impossible.
    """

    def option(name: str, *kinds: type) -> Any:
        if not hasattr(args, name):
            raise ConversionError(f"The checkpoint's args lack {name}.")
        value = getattr(args, name)
        if type(value) not in kinds:
            raise ConversionError(f"The checkpoint's args have {name} = {repr(value)[:80]}, which cannot be.")
        return value

    def activation(name: str, default: str | None = None) -> str:
        value = option(name, str) if default is None else getattr(args, name, default)
        if value not in ACTIVATIONS:
            raise ConversionError(
                f"The checkpoint's args have {name} = {repr(value)[:80]}, which is not known here "
                f"({', '.join(ACTIVATIONS)})."
            )
        return ACTIVATIONS[value]

    num_layers = option("encoder_layers", int)
    if num_layers > len(weights):  # before a model of that size is built
        raise ConversionError(f"The checkpoint's args have encoder_layers = {num_layers}; the weights are of fewer.")
    if getattr(args, "max_positions", None) is None and isinstance(weights.get(POSITIONS), torch.Tensor):
        positions = len(weights[POSITIONS]) - PADDING_ID - 1
    else:
        positions = option("max_positions", int)
    fields: dict[str, Any] = {}
    if head is not None and sizes is not None:
        fields["num_labels"] = sizes.num_labels
        fields |= head_fields(head, sizes)
        fields["classifier_reads_first_column"] = True
        if getattr(args, "regression_target", False):
            fields["problem_type"] = "regression"
        elif sizes.num_labels > 1:
            fields["problem_type"] = "single_label_classification"
    try:
        return LunaConfig(
            vocab_size=vocab_size,
            hidden_size=option("encoder_embed_dim", int),
            num_hidden_layers=num_layers,
            num_attention_heads=option("encoder_attention_heads", int),
            intermediate_size=option("encoder_ffn_embed_dim", int),
            projection_length=option("projection_length", int),
            dynamic_projection=not getattr(args, "fix_projection_length", False),
            tie_key_value=not getattr(args, "untie_luna_kv", False),
            tie_word_embeddings=not getattr(args, "untie_weights_luna", False),
            max_position_embeddings=positions,
            hidden_act=activation("activation_fn"),
            hidden_dropout_prob=option("dropout", float, int),
            attention_probs_dropout_prob=option("attention_dropout", float, int),
            activation_dropout=option("activation_dropout", float, int),
            classifier_activation=activation("pooler_activation_fn", "tanh"),
            classifier_dropout=getattr(args, "pooler_dropout", 0.0),
            bos_token_id=SPECIAL_TOKENS.index("<s>"),
            pad_token_id=PADDING_ID,
            eos_token_id=SPECIAL_TOKENS.index("</s>"),
            **fields,
        )
    except ConversionError:
        raise
    except Exception as error:  # of the validation, which has several classes
        raise ConversionError(
            f"The checkpoint's args are not those of a model: {' '.join(str(error).split())}"
        ) from error


def head_fields(head: str, sizes: HeadSizes) -> dict[str, Any]:
    """The fields that decide the weights of a classification head."""
    return {"classifier_pooling": POOLING_OF_HEADS.get(head, "cls"), "classifier_hidden_size": sizes.inner}


def official_name(name: str, head: str | None = None) -> str:
    """The official name of one of our parameters."""
    for pattern, replacement in OFFICIAL_NAMES:
        name = re.sub(pattern, replacement, name)
    return name if head is None else name.replace("HEAD", head)


def official_shapes(config: LunaConfig, heads: dict[str, HeadSizes]) -> dict[str, torch.Size]:
    """All tensors that a checkpoint of this architecture has, under their official names."""
    try:
        with torch.device("meta"):
            model = LunaForMaskedLM(config)
    except (RuntimeError, TypeError, OverflowError) as error:
        raise ConversionError(f"The checkpoint's args have impossible sizes: {first_line(error)}.") from error
    with torch.device("meta"):
        shapes = {official_name(n): t.shape for n, t in model.state_dict().items()}
        for head, sizes in heads.items():
            head_config = LunaConfig.from_dict(config.to_dict() | head_fields(head, sizes))
            state_dict = LunaClassificationHead(head_config, sizes.num_labels).state_dict(prefix="classifier.")
            shapes |= {official_name(n, head): t.shape for n, t in state_dict.items()}
    return shapes


def check_weights(weights: dict[str, Any], shapes: dict[str, torch.Size]):
    """Raise a `ConversionError` that names what is missing, unknown, of another shape or not finite."""
    problems = []
    if missing := [name for name in shapes if name not in weights]:
        problems.append(f"missing: {listed(missing)}")
    if unknown := [str(name) for name in weights if name not in shapes]:
        problems.append(f"unknown: {listed(unknown)}")
    if problems:
        raise ConversionError(
            "The weights do not fit the architecture that the checkpoint's args describe; " + "; ".join(problems) + "."
        )
    wrong = [
        f"{name} (found {tuple(weights[name].shape)}, expected {tuple(shape)})"
        for name, shape in shapes.items()
        if isinstance(weights[name], torch.Tensor) and weights[name].shape != shape
    ]
    if wrong:
        raise ConversionError(f"Weights whose shape does not fit the checkpoint's args: {listed(wrong)}.")
    wrong = [name for name in shapes if not is_plain_weight(weights[name])]
    if wrong:
        raise ConversionError(f"Weights that are not in 32 or 16 bit floating point: {listed(wrong)}.")
    wrong = [name for name in shapes if not torch.isfinite(weights[name]).all()]
    if wrong:
        raise ConversionError(f"Weights that are not finite: {listed(wrong)}.")


def is_plain_weight(value: Any) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and value.layout is torch.strided
        and value.device.type == "cpu"
    )


def listed(names: list[str], at_most: int = 8) -> str:
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more


def check_tied_embeddings(args: argparse.Namespace, weights: dict[str, torch.Tensor]):
    if not getattr(args, "untie_weights_luna", False) and not same_bits(weights[EMBEDDING], weights[OUTPUT_EMBEDDING]):
        raise ConversionError(
            f"{EMBEDDING} and {OUTPUT_EMBEDDING} differ, but the checkpoint's args say that they are one "
            "(untie_weights_luna is not set)."
        )


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    integers = {2: torch.int16, 4: torch.int32}
    return first.dtype == second.dtype and torch.equal(
        first.contiguous().view(integers[first.itemsize]), second.contiguous().view(integers[second.itemsize])
    )


def set_label_names(config: LunaConfig, head: str | None, path: Path):
    if head is None:
        raise ConversionError("--label_dict_path is for a checkpoint with a classification head.")
    num_labels = len(config.id2label or {})
    labels = [symbol for _, symbol in dictionary_lines(path)]
    # fairseq pads dictionaries with symbols of this name.
    num_named = len([label for label in labels if not label.startswith("madeupword")])
    if not num_named <= num_labels <= len(labels):
        raise ConversionError(f"{path} has {num_named} labels, but the head {head} has {num_labels} outputs.")
    config.id2label = dict(enumerate(labels[:num_labels]))
    config.label2id = {label: index for index, label in enumerate(labels[:num_labels])}


def build_tokenizer(symbols: list[str], vocab_file: Path, merges_file: Path, max_length: int) -> LunaTokenizer:
    """The tokenizer that gives the checkpoint's ids: GPT-2's BPE, then the row of the token's GPT-2 id."""
    tokens_of_ids = {str(index): token for token, index in read_encoder(vocab_file).items()}
    # A symbol that is overwritten has two rows, and the last one counts; the special ones stay where they are.
    rows = {symbol: row for row, symbol in enumerate(symbols)} | {t: row for row, t in enumerate(SPECIAL_TOKENS)}
    vocab = {token: rows[index] for index, token in tokens_of_ids.items() if index in rows}
    if not vocab:
        raise ConversionError(
            f"No symbol of the dictionary is an id of {vocab_file}: the model was trained with another tokenizer. "
            "Leave out --vocab_file and --merges_file."
        )
    # Rows that no token of the BPE leads to keep their symbol where it is free.
    reached = set(vocab.values())
    missing = [token for index, token in tokens_of_ids.items() if index not in rows]
    taken = set(vocab) | set(missing)
    for row, symbol in enumerate(symbols):
        if row not in reached:
            name = symbol if symbol not in taken and rows[symbol] == row else f"<unused{row}>"
            vocab[name] = row
            taken.add(name)
    vocab |= {token: len(symbols) + place for place, token in enumerate(missing)}

    try:
        return LunaTokenizer(
            vocab=vocab,
            merges=read_merges(merges_file),
            dictionary_size=len(symbols) if missing else None,
            mask_token=AddedToken(MASK_TOKEN, lstrip=True, special=True, normalized=False),
            model_max_length=max_length,
        )
    except ConversionError:
        raise
    except Exception as error:  # of the tokenizers library, which has no class of its own
        raise ConversionError(f"{vocab_file} and {merges_file} do not fit together: {first_line(error)}.") from error


def read_encoder(path: Path) -> dict[str, int]:
    text = read_text(path)
    try:
        encoder = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path} is not the encoder.json of GPT-2's BPE: {error}.") from error
    if not isinstance(encoder, dict) or not encoder or not all(type(index) is int for index in encoder.values()):
        raise ConversionError(f"{path} is not the encoder.json of GPT-2's BPE: it does not give each token an id.")
    if special := [token for token in (*SPECIAL_TOKENS, MASK_TOKEN) if token in encoder]:
        raise ConversionError(
            f"{path} has {', '.join(special)}: it is the vocabulary of another tokenizer (RoBERTa's vocab.json?), not "
            "the encoder.json of GPT-2's BPE."
        )
    return encoder


def read_merges(path: Path) -> list[Any]:
    """The merges as pairs of tokens, the most frequent one first."""
    merges = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        parts = line.rstrip("\r").split(" ")
        if len(parts) != 2 or not all(parts):
            raise ConversionError(f"{path}, line {number}: expected two tokens of GPT-2's BPE, found {line[:80]!r}.")
        merges.append((parts[0], parts[1]))
    return merges


def use_layernorm_convention(
    model: LunaPreTrainedModel, tensors: dict[str, torch.Tensor], layernorm: str
) -> list[str]:
    """Bring the weights of the norms, in place of those in `tensors`, to those of `torch.nn.LayerNorm`.

    Returns a warning where the weights look as if they were of the other convention.
    """
    names = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)]
    if layernorm == "plus_one":
        for name in names:
            tensors[name] = tensors[name] + 1
    mean = sum(tensors[name].mean().item() for name in names) / len(names)
    if layernorm == "standard" and mean < 0.5:
        return [
            f"Warning: the weights of the layer norms are {mean:.2f} on average, near 0 instead of 1. If the model "
            "was trained by a revision of the official code from 2023 on, convert it with --layernorm plus_one."
        ]
    if layernorm == "plus_one" and mean > 1.5:
        return [
            f"Warning: the weights of the layer norms are {mean - 1:.2f} on average before 1 is added, near 1 instead "
            "of 0. The released checkpoints of 2021 need --layernorm standard."
        ]
    return []


@contextmanager
def whole_folder(output_dir: Path) -> Iterator[Path]:
    """A temporary folder that becomes `output_dir` at the end, or disappears if something goes wrong."""
    folder = None
    try:
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}-", dir=output_dir.parent))
        yield folder
        umask = os.umask(0)
        os.umask(umask)
        for file in folder.iterdir():  # safetensors leaves its files to their owner alone
            file.chmod(0o666 & ~umask)
        folder.chmod(0o777 & ~umask)
        folder.replace(output_dir)
    except BaseException as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, (OSError, SafetensorError)):
            raise ConversionError(f"Cannot write {output_dir}: {first_line(error)}.") from error
        raise


def check_written(folder: Path, conversion: Conversion, tensors: dict[str, torch.Tensor]):
    """Load what was written, and compare every tensor bit by bit."""
    loaded: Any = conversion.model_class.from_pretrained(folder, output_loading_info=True)
    model, information = loaded
    state_dict = model.state_dict()
    wrong = [name for name, tensor in tensors.items() if not same_bits(tensor, state_dict[name])]
    wrong += [
        str(name) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in information[kind]
    ]
    if wrong or len(state_dict) != len(tensors):
        raise ConversionError(f"What was written does not read back as it should: {listed(wrong)}.")


def model_card(conversion: Conversion, file_name: str, args: argparse.Namespace) -> str:
    auto_class = auto_class_name(conversion)
    task = "fill-mask" if conversion.head is None else "text-classification"
    architecture = getattr(args, "arch", "unknown")
    head = "" if conversion.head is None else f"Of its classification heads, the model has `{conversion.head}`.\n"
    tokenizer = "" if conversion.tokenizer is None else "tokenizer = AutoTokenizer.from_pretrained(FOLDER)\n"
    names = auto_class + ("" if conversion.tokenizer is None else ", AutoTokenizer")
    no_tokenizer = "" if conversion.tokenizer is not None else "\nThe folder holds no tokenizer.\n"
    return f"""---
library_name: transformers
pipeline_tag: {task}
tags:
- luna
---

# Luna, converted from fairseq

The fairseq checkpoint `{file_name}` (architecture `{architecture}`) of
[Luna, the linear unified nested attention encoder](https://arxiv.org/abs/2106.01540), converted by
`modeling_luna.convert_luna_fairseq_to_hf`. The converted model has {conversion.num_parameters:,} parameters.
{head}
```python
import modeling_luna
from transformers import {names}

model = {auto_class}.from_pretrained(FOLDER)
{tokenizer}```

Without the package `modeling_luna`, leave out its import and add `trust_remote_code=True` to `from_pretrained`: the
code lies beside the weights.
{no_tokenizer}"""


def auto_class_name(conversion: Conversion) -> str:
    return "AutoModelForMaskedLM" if conversion.head is None else "AutoModelForSequenceClassification"


def summary(conversion: Conversion) -> str:
    config = conversion.config
    head = ""
    if conversion.head is not None:
        inner = "" if config.classifier_hidden_size is None else f", hidden size {config.classifier_hidden_size}"
        head = f", head {conversion.head} ({config.num_labels} outputs, pooling {config.classifier_pooling}{inner})"
    if conversion.tokenizer is None:
        tokenizer = "none; give --vocab_file and --merges_file of GPT-2's BPE for one"
    else:
        tokenizer = type(conversion.tokenizer).__name__
        missing = len(conversion.tokenizer.backend_tokenizer.get_vocab()) - len(conversion.tokenizer)
        if missing:
            tokenizer += f"; {missing} tokens of the BPE are not in the dictionary and become <unk>"
    auto_class = auto_class_name(conversion)
    lines = [
        *conversion.notes,
        f"Model: {conversion.model_class.__name__}, {conversion.num_parameters:,} parameters{head}",
        f"Vocabulary: {config.vocab_size} tokens, rows of up to {config.max_position_embeddings}",
        f"Tokenizer: {tokenizer}",
        f"Written to {conversion.output_dir}, read back and compared. Next:",
        "    import modeling_luna",
        f"    from transformers import {auto_class}",
        f"    model = {auto_class}.from_pretrained({str(conversion.output_dir)!r})",
    ]
    return "\n".join(lines)


def push_to_hub(folder: Path, repo_id: str) -> str:
    """Upload the folder, and return its address."""
    api = HfApi()
    url = api.create_repo(repo_id, exist_ok=True)
    api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message="Converted from fairseq")
    return str(url)


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the command as an exception does, so that temporary files are removed."""
    previous = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def first_line(message: object) -> str:
    lines = str(message).strip().splitlines()
    return lines[0].rstrip(".") if lines else ""


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m modeling_luna.convert_luna_fairseq_to_hf",
        description="Convert an official Luna checkpoint (fairseq, luna_bert architectures) for Transformers.",
    )
    parser.add_argument("--checkpoint_path", type=Path, required=True, help="model.pt of fairseq")
    parser.add_argument("--dict_path", type=Path, help="dict.txt that the model was trained with")
    parser.add_argument("--vocab_file", type=Path, help="encoder.json of GPT-2's BPE, for the tokenizer")
    parser.add_argument("--merges_file", type=Path, help="vocab.bpe of GPT-2's BPE, for the tokenizer")
    parser.add_argument("--output_dir", type=Path, required=True, help="a new or empty folder, not the current one")
    parser.add_argument(
        "--layernorm",
        choices=("standard", "plus_one"),
        default="standard",
        help="plus_one: trained by a revision of the official code from 2023 on, whose norms add 1 to their weights",
    )
    parser.add_argument(
        "--head", metavar="NAME", help=f"which classification head; '{NO_HEAD}' for the masked-LM model"
    )
    parser.add_argument("--label_dict_path", type=Path, help="dict.txt of the labels, for the names of the classes")
    parser.add_argument("--push_to_hub", metavar="ID", help="upload the folder to this repository of the Hub")
    options = parser.parse_args(arguments)
    if options.dict_path is None:
        parser.error(
            "--dict_path is required: only the dictionary tells which token a row of the embedding belongs to, its "
            "order is not that of GPT-2's ids"
        )
    return options


@exit_on_sigterm()
def main(arguments: list[str] | None = None) -> int:
    options = vars(parse_arguments(arguments))
    repo_id = options.pop("push_to_hub")
    logging.disable_progress_bar()
    try:
        if repo_id is not None:
            validate_repo_id(repo_id)
        conversion = convert_checkpoint(**options)
    except (ConversionError, HFValidationError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; nothing was written.", file=sys.stderr)
        return 130
    print(summary(conversion))
    if repo_id is None:
        return 0
    try:
        print(f"Uploaded to {push_to_hub(conversion.output_dir, repo_id)}")
    except Exception as error:  # whatever happens to the network, the folder is whole
        print(
            f"Error: the upload to {repo_id} failed ({first_line(error) or type(error).__name__}). The folder is "
            f"kept: upload it by `hf upload {repo_id} {conversion.output_dir}`.",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
