# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""The converter of official checkpoints: what it reads, what it refuses, what it writes."""

import argparse
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_stand_in import hub_environment, hub_stand_in
from official_luna import FIXTURES, HEADS, convert_case
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer, RobertaTokenizer

from modeling_luna import LunaConfig, LunaForMaskedLM, LunaForMultipleChoice
from modeling_luna import convert_luna_fairseq_to_hf as converter
from modeling_luna.convert_luna_fairseq_to_hf import convert_checkpoint, main, official_shapes


TIED = FIXTURES / "bert_tied"
WITH_HEADS = FIXTURES / "bert_heads"
SENTENCE_ENCODER = "encoder.sentence_encoder."


def load(path: Path) -> dict[str, Any]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


@pytest.fixture
def change(tmp_path: Path) -> Callable[..., Path]:
    """Write a copy of a fixture's checkpoint that a function has changed."""

    def write(function: Callable[[dict[str, Any]], Any], case: Path = TIED, **how_to_save) -> Path:
        checkpoint = load(case / "checkpoint.pt")
        function(checkpoint)
        torch.save(checkpoint, tmp_path / "changed.pt", **how_to_save)
        return tmp_path / "changed.pt"

    return write


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command, by default on `bert_tied`, and return its exit code and output."""

    def run_main(**options: Any) -> tuple[int, str, str]:
        defaults = {
            "checkpoint_path": TIED / "checkpoint.pt",
            "dict_path": TIED / "dict.txt",
            "output_dir": tmp_path / "out",
        }
        merged = {name: value for name, value in (defaults | options).items() if value is not None}
        arguments = [word for name, value in merged.items() for word in (f"--{name}", str(value))]
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_main


@pytest.fixture
def refused(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> Callable[..., str]:
    """Run the command, check that it refuses and writes nothing, and return its last line."""

    def run_refused(**options: Any) -> str:
        before = sorted(tmp_path.rglob("*"))
        code, out, error = run(**options)
        assert code == 2
        assert out == ""
        assert sorted(tmp_path.rglob("*")) == before
        assert "Traceback" not in error
        return error.strip().splitlines()[-1]

    return run_refused


def test_command_writes_a_folder_that_loads(run: Callable, tmp_path: Path):
    code, out, _ = run(output_dir=tmp_path / "deep" / "out")
    assert code == 0
    assert "LunaForMaskedLM, 24,321 parameters" in out
    assert "Tokenizer: none" in out
    assert "Warning" not in out
    folder = tmp_path / "deep" / "out"
    assert [path.name for path in folder.parent.iterdir()] == ["out"]
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "model.safetensors", "README.md"),
        *("attention_luna.py", "code_luna.py", "configuration_luna.py", "kernels_luna.py", "losses_luna.py"),
        *("modeling_luna.py", "outputs_luna.py", "releases_luna.py", "rows_luna.py", "tracing_luna.py"),
    }
    assert folder.stat().st_mode & 0o777 == 0o777 & ~current_umask()
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~current_umask()}
    weights = load(TIED / "checkpoint.pt")["model"]
    model = AutoModelForMaskedLM.from_pretrained(folder)
    assert isinstance(model, LunaForMaskedLM)
    embedding = model.get_input_embeddings().weight
    torch.testing.assert_close(embedding, weights[SENTENCE_ENCODER + "embed_tokens.weight"], atol=0.0, rtol=0.0)
    assert model.get_output_embeddings().weight is embedding


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_card_says_what_the_model_is(run: Callable, tmp_path: Path):
    run(checkpoint_path=WITH_HEADS / "checkpoint.pt", dict_path=WITH_HEADS / "dict.txt", head=HEADS[1])
    card = (tmp_path / "out" / "README.md").read_text()
    for part in ("pipeline_tag: text-classification", "`checkpoint.pt`", "`luna_base_tied_512`", HEADS[1]):
        assert part in card
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert f"{model.num_parameters():,} parameters" in card


def test_folder_without_a_tokenizer(run: Callable, saved_folder: Path, tmp_path: Path):
    """Nothing stands in for the tokenizer, until the user puts one into the folder."""
    assert run()[0] == 0
    with pytest.raises(ValueError, match="tokenizer"):
        AutoTokenizer.from_pretrained(tmp_path / "out")
    AutoTokenizer.from_pretrained(saved_folder).save_pretrained(tmp_path / "out")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert type(loaded) is RobertaTokenizer
    assert len(loaded) > 256


def test_configuration_comes_from_the_arguments(change: Callable, tmp_path: Path):
    def set_arguments(checkpoint: dict[str, Any]):
        options = checkpoint["args"]
        options.dropout, options.attention_dropout, options.activation_dropout = 0.2, 0, 0.3
        options.activation_fn, options.pooler_activation_fn, options.pooler_dropout = "gelu_fast", "relu", 0.4
        options.max_positions = None

    path = change(set_arguments)
    config = convert_checkpoint(path, TIED / "dict.txt", tmp_path / "out").config
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.2, 0)
    assert (config.activation_dropout, config.classifier_dropout) == (0.3, 0.4)
    assert (config.hidden_act, config.classifier_activation) == ("gelu_pytorch_tanh", "relu")
    assert config.max_position_embeddings == 40  # from the table
    assert LunaConfig.from_pretrained(tmp_path / "out").to_dict() == config.to_dict() | {
        "architectures": ["LunaForMaskedLM"],
        "auto_map": config.auto_map,
    }


@pytest.mark.parametrize("official", ["gelu", "gelu_accurate", "relu", "tanh", "linear"])
def test_activations(official: str, change: Callable, tmp_path: Path):
    path = change(lambda checkpoint: setattr(checkpoint["args"], "activation_fn", official))
    convert_checkpoint(path, TIED / "dict.txt", tmp_path / "out")
    activation = LunaForMaskedLM.from_pretrained(tmp_path / "out").lm_head.activation
    values = torch.linspace(-3, 3, 25)
    expected = {
        "gelu": lambda x: x * torch.special.ndtr(x),
        "gelu_accurate": lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
        "relu": lambda x: x.clamp(min=0),
        "tanh": torch.tanh,
        "linear": lambda x: x,
    }
    torch.testing.assert_close(activation(values), expected[official](values), atol=1e-6, rtol=0.0)


def test_half_precision_weights_keep_their_values(change: Callable, tmp_path: Path):
    def halve(checkpoint: dict[str, Any]):
        checkpoint["model"] = {name: weight.half() for name, weight in checkpoint["model"].items()}

    path = change(halve)
    convert_checkpoint(path, TIED / "dict.txt", tmp_path / "out")
    embedding = LunaForMaskedLM.from_pretrained(tmp_path / "out").get_input_embeddings().weight
    assert embedding.dtype == torch.float32
    official = load(path)["model"][SENTENCE_ENCODER + "embed_tokens.weight"]
    torch.testing.assert_close(embedding, official.float(), atol=0.0, rtol=0.0)


def test_reads_files_of_old_torch_and_numbers_of_numpy(change: Callable, run: Callable):
    def set_metrics(checkpoint: dict[str, Any]):
        checkpoint["extra_state"]["best"] = np.float64(1.5)

    path = change(set_metrics, _use_new_zipfile_serialization=False)
    assert run(checkpoint_path=path)[0] == 0


class OfAnotherLibrary:
    """Something that another library has allowed `torch.load` to make."""


def test_only_fairseq_is_allowed_and_only_while_reading(change: Callable, run: Callable, tmp_path: Path):
    path = change(lambda checkpoint: checkpoint["extra_state"].update(x=OfAnotherLibrary()))
    with torch.serialization.safe_globals([OfAnotherLibrary]):
        before = torch.serialization.get_safe_globals()
        assert run()[0] == 0
        assert set(torch.serialization.get_safe_globals()) == set(before)
        assert argparse.Namespace not in before
        code, _, error = run(checkpoint_path=path, output_dir=tmp_path / "second")
        assert code == 2
        assert "OfAnotherLibrary, which no fairseq checkpoint needs" in error
        assert set(torch.serialization.get_safe_globals()) == set(before)


# Classification heads.


def keep_heads(*names: str) -> Callable[[dict[str, Any]], None]:
    def remove_others(checkpoint: dict[str, Any]):
        for key in list(checkpoint["model"]):
            if key.startswith("classification_heads.") and key.split(".")[1] not in names:
                del checkpoint["model"][key]

    return remove_others


def test_several_heads_are_listed(refused: Callable):
    error = refused(checkpoint_path=WITH_HEADS / "checkpoint.pt", dict_path=WITH_HEADS / "dict.txt")
    assert f"--head ({', '.join(HEADS)})" in error
    error = refused(checkpoint_path=WITH_HEADS / "checkpoint.pt", dict_path=WITH_HEADS / "dict.txt", head="other")
    assert f"no head 'other'; it has {', '.join(HEADS)}" in error
    assert "it has none" in refused(head="other")


@pytest.mark.parametrize(("head", "pooling"), [*zip(HEADS, ("cls", "packed_max", "packed_attention"), strict=True)])
def test_a_single_head_needs_no_option(head: str, pooling: str, change: Callable, run: Callable, tmp_path: Path):
    path = change(keep_heads(head), WITH_HEADS)
    code, out, _ = run(checkpoint_path=path, dict_path=WITH_HEADS / "dict.txt")
    assert code == 0
    assert f"head {head} (3 outputs, pooling {pooling})" in out
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config
    assert (config.classifier_pooling, config.num_labels) == (pooling, 3)
    assert config.classifier_reads_first_column
    assert config.problem_type == "single_label_classification"
    assert config.classifier_dropout == 0.0


def test_any_other_name_is_a_head_that_reads_the_first_token(change: Callable, tmp_path: Path):
    def rename(checkpoint: dict[str, Any]):
        keep_heads(HEADS[0])(checkpoint)
        weights = checkpoint["model"]
        checkpoint["model"] = {name.replace(HEADS[0], "sentence_HEAD\\1"): value for name, value in weights.items()}

    path = change(rename, WITH_HEADS)
    conversion = convert_checkpoint(path, WITH_HEADS / "dict.txt", tmp_path / "out")
    assert conversion.head == "sentence_HEAD\\1"
    assert conversion.config.classifier_pooling == "cls"


@pytest.mark.parametrize("head", HEADS)
def test_head_of_another_width_gives_the_official_logits(head: str, change: Callable, run: Callable, tmp_path: Path):
    """Eight more units inside, of which the output makes nothing."""

    def widen(checkpoint: dict[str, Any]):
        for name in HEADS:
            prefix, weights = f"classification_heads.{name}.", checkpoint["model"]
            weights[prefix + "dense.weight"] = torch.cat([weights[prefix + "dense.weight"], torch.ones(8, 32)])
            weights[prefix + "dense.bias"] = torch.cat([weights[prefix + "dense.bias"], torch.ones(8)])
            weights[prefix + "out_proj.weight"] = torch.cat(
                [weights[prefix + "out_proj.weight"], torch.zeros(3, 8)], dim=1
            )

    path = change(widen, WITH_HEADS)
    code, out, _ = run(checkpoint_path=path, dict_path=WITH_HEADS / "dict.txt", head=head)
    assert code == 0 and "hidden size 40)" in out
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.classifier_hidden_size == 40
    official = load_file(WITH_HEADS / "inputs_outputs.safetensors")
    expected = {name: tensor for name, tensor in official.items() if name.endswith(f".head.{head}")}
    assert len(expected) == 6
    for name, logits in expected.items():
        tokens = official[name.replace(f".head.{head}", ".tokens")]
        with torch.no_grad():
            found = model(tokens, attention_mask=tokens != 1).logits
        torch.testing.assert_close(found, logits, atol=1e-5, rtol=1e-5)


def test_heads_of_several_widths(change: Callable, run: Callable, refused: Callable, tmp_path: Path):
    def narrow(checkpoint: dict[str, Any]):
        prefix, weights = f"classification_heads.{HEADS[1]}.", checkpoint["model"]
        weights[prefix + "dense.weight"] = weights[prefix + "dense.weight"][:5]
        weights[prefix + "dense.bias"] = weights[prefix + "dense.bias"][:5]
        weights[prefix + "out_proj.weight"] = weights[prefix + "out_proj.weight"][:, :5]

    options = {"checkpoint_path": change(narrow, WITH_HEADS), "dict_path": WITH_HEADS / "dict.txt"}
    for head, width in zip((*HEADS, "none"), (None, 5, None, None), strict=True):
        assert run(head=head, output_dir=tmp_path / head, **options)[0] == 0
        assert LunaConfig.from_pretrained(tmp_path / head).classifier_hidden_size == width

    def unequal(checkpoint: dict[str, Any]):
        narrow(checkpoint)
        checkpoint["model"][f"classification_heads.{HEADS[1]}.dense.bias"] = torch.zeros(6)

    error = refused(checkpoint_path=change(unequal, WITH_HEADS), dict_path=WITH_HEADS / "dict.txt", head=HEADS[1])
    assert f"{HEADS[1]}.dense.bias (found (6,), expected (5,))" in error


def test_regression_and_multiple_choice(change: Callable, tmp_path: Path):
    def one_output(checkpoint: dict[str, Any]):
        keep_heads(HEADS[0])(checkpoint)
        checkpoint["args"].regression_target = True
        for name in ("weight", "bias"):
            key = f"classification_heads.{HEADS[0]}.out_proj.{name}"
            checkpoint["model"][key] = checkpoint["model"][key][:1]

    path = change(one_output, WITH_HEADS)
    config = convert_checkpoint(path, WITH_HEADS / "dict.txt", tmp_path / "out").config
    assert (config.num_labels, config.problem_type) == (1, "regression")
    _, information = LunaForMultipleChoice.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not information["missing_keys"] and not information["unexpected_keys"]


def test_heads_are_checked_even_where_they_are_left_out(change: Callable, refused: Callable):
    key = f"classification_heads.{HEADS[2]}.attn.q_proj.bias"
    path = change(lambda checkpoint: checkpoint["model"].pop(key), WITH_HEADS)
    assert f"missing: {key}" in refused(checkpoint_path=path, dict_path=WITH_HEADS / "dict.txt", head="none")


def test_names_of_labels(run: Callable, refused: Callable, tmp_path: Path):
    labels = tmp_path / "labels.txt"
    options = {
        "checkpoint_path": WITH_HEADS / "checkpoint.pt",
        "dict_path": WITH_HEADS / "dict.txt",
        "label_dict_path": labels,
    }
    labels.write_text("no 9\nyes 8\n")
    assert "has 2 labels, but the head cls_classification_head has 3" in refused(head=HEADS[0], **options)
    labels.write_text("no 9\nyes 8\nperhaps 7\nmadeupword0000 0\n")
    assert "--label_dict_path is for" in refused(head="none", **options)
    assert run(head=HEADS[0], **options)[0] == 0
    config = LunaConfig.from_pretrained(tmp_path / "out")
    assert config.id2label == {0: "no", 1: "yes", 2: "perhaps"}
    assert config.label2id == {"no": 0, "yes": 1, "perhaps": 2}


# The convention of the norms.


def test_layernorm_convention(tmp_path: Path):
    plus_one = FIXTURES / "bert_tied_HEAD_layernorm_plus1"
    conversion = convert_case(plus_one.name, tmp_path / "out")
    assert conversion.conversion.notes == []
    state_dict = conversion.model().state_dict()
    official = load(plus_one / "checkpoint.pt")["model"]
    norms = [name for name in official if "norm" in name and name.endswith("weight")]
    ours = {converter.official_name(name): value for name, value in state_dict.items()}
    assert len(norms) == 2 + 3 * 2 + 1
    for name, value in ours.items():
        torch.testing.assert_close(value, official[name] + (name in norms), atol=0.0, rtol=0.0)


def test_the_other_layernorm_convention_is_noticed(run: Callable, tmp_path: Path):
    plus_one = FIXTURES / "bert_tied_HEAD_layernorm_plus1"
    code, out, _ = run(checkpoint_path=plus_one / "checkpoint.pt", dict_path=plus_one / "dict.txt")
    assert code == 0
    assert "Warning: the weights of the layer norms" in out and "--layernorm plus_one" in out
    code, out, _ = run(layernorm="plus_one", output_dir=tmp_path / "other")
    assert code == 0
    assert "need --layernorm standard" in out


# What is refused.


def test_dictionary_is_required(refused: Callable):
    assert "--dict_path is required: only the dictionary tells" in refused(dict_path=None)


@pytest.mark.parametrize(
    ("line", "number", "message"),
    [
        ("13 5", 61, "'13' is already in line "),
        ("<pad> 5", 61, "'<pad>' is already among the special symbols"),
        ("alone", 61, "expected '<symbol> <count>'"),
        ("word five", 61, "expected '<symbol> <count>'"),
        (" 5", 61, "expected '<symbol> <count>'"),
        ("", 61, "expected '<symbol> <count>'"),
    ],
)
def test_wrong_lines_of_the_dictionary(line: str, number: int, message: str, refused: Callable, tmp_path: Path):
    path = tmp_path / "dict.txt"
    lines = (TIED / "dict.txt").read_text().splitlines()
    if "13 " not in "\n".join(lines):
        lines[0] = "13 7"
    path.write_text("\n".join([*lines, line]) + "\n")
    error = refused(dict_path=path)
    assert f"{path}, line {number}: " in error and message in error


def test_dictionary_of_another_size(refused: Callable, run: Callable, tmp_path: Path):
    lines = (TIED / "dict.txt").read_text().splitlines()
    path = tmp_path / "dict.txt"
    path.write_text("\n".join(lines[:-1]) + "\n")
    error = refused(dict_path=path)
    assert "gives 64 symbols" in error and "embeddings for 65" in error
    # A symbol may replace one that is there, if it says so; and <mask> is added only where it is missing.
    path.write_text("\n".join([*lines[:-1], f"{lines[0]} #fairseq:overwrite"]))
    assert run(dict_path=path)[0] == 0
    path.write_text("\n".join([*lines, "<mask> 1"]))
    assert run(dict_path=path, output_dir=tmp_path / "second")[0] == 0
    assert "No such file" in refused(dict_path=tmp_path / "nowhere", output_dir=tmp_path / "third")


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda checkpoint: checkpoint["model"].pop(key)


def with_weight(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda checkpoint: checkpoint["model"].__setitem__(key, value)


def with_argument(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda checkpoint: setattr(checkpoint["args"], name, value)


def poison(checkpoint: dict[str, Any]):
    checkpoint["model"][SENTENCE_ENCODER + "layers.1.fc1.bias"][3] = torch.nan


def untie(checkpoint: dict[str, Any]):
    checkpoint["model"]["encoder.lm_head.weight"] = checkpoint["model"]["encoder.lm_head.weight"] + 1


def later_fairseq(checkpoint: dict[str, Any]):
    checkpoint["cfg"] = {"model": vars(checkpoint["args"])}
    checkpoint["args"] = None


def many_unknown(checkpoint: dict[str, Any]):
    checkpoint["model"] |= {f"encoder.extra.{i}": torch.zeros(1) for i in range(30)}


FC1 = SENTENCE_ENCODER + "layers.1.fc1.weight"
DAMAGES = {
    "a key is missing": (without(FC1), f"missing: {FC1}."),
    "a layer's attention is missing": (
        without(SENTENCE_ENCODER + "layers.0.self_attn.pc_proj.weight"),
        "missing: encoder.sentence_encoder.layers.0.self_attn.pc_proj.weight.",
    ),
    "the embedding is missing": (without(SENTENCE_ENCODER + "embed_tokens.weight"), "embed_tokens.weight"),
    "P is missing": (without(SENTENCE_ENCODER + "projected_embeddings"), "projected_embeddings"),
    "a key is unknown": (with_weight("encoder.extra", torch.zeros(1)), "unknown: encoder.extra."),
    "many keys are unknown": (many_unknown, "encoder.extra.7 and 22 more."),
    "another shape": (with_weight(FC1, torch.zeros(2, 3)), f"{FC1} (found (2, 3), expected (64, 32))"),
    "fewer positions": (
        with_weight(SENTENCE_ENCODER + "embed_positions.weight", torch.zeros(30, 32)),
        "embed_positions.weight (found (30, 32), expected (42, 32))",
    ),
    "not a number": (poison, "not finite: encoder.sentence_encoder.layers.1.fc1.bias."),
    "integers": (with_weight(FC1, torch.zeros(64, 32, dtype=torch.int64)), f"floating point: {FC1}."),
    "not a tensor": (with_weight(FC1, "text"), f"floating point: {FC1}."),
    "a tensor without values": (with_weight(FC1, torch.zeros(64, 32, device="meta")), f"floating point: {FC1}."),
    "embeddings that should be one": (untie, "differ, but the checkpoint's args say that they are one"),
    "untied by the arguments": (with_argument("untie_luna_kv", True), "missing: encoder"),
    "more layers by the arguments": (with_argument("encoder_layers", 3), "layers.2."),
    "impossible sizes": (
        lambda checkpoint: vars(checkpoint["args"]).update(encoder_embed_dim=4 * 10**12),
        "impossible sizes",
    ),
    "absurd sizes": (
        lambda checkpoint: vars(checkpoint["args"]).update(encoder_embed_dim=4 * 10**30),
        "impossible sizes",
    ),
    "a billion layers": (with_argument("encoder_layers", 10**9), "encoder_layers = 1000000000"),
    "other sizes by the arguments": (with_argument("encoder_ffn_embed_dim", 128), "expected (128, 32)"),
    "heads that do not divide": (with_argument("encoder_attention_heads", 5), "must be a multiple of"),
    "a size that is text": (with_argument("encoder_embed_dim", "32"), "encoder_embed_dim = '32', which cannot be"),
    "an unknown activation": (with_argument("activation_fn", "magic"), "activation_fn = 'magic'"),
    "no arguments": (lambda checkpoint: checkpoint.pop("args"), "'args' are not the options"),
    "arguments without the sizes": (
        lambda checkpoint: checkpoint.update(args=argparse.Namespace(arch="luna_base_512")),
        "args lack encoder_layers",
    ),
    "options of later fairseq": (later_fairseq, "options in 'cfg'"),
    "no weights": (lambda checkpoint: checkpoint.pop("model"), "it has no 'model'"),
    "translation": (with_weight("decoder.embed_tokens.weight", torch.zeros(1)), "is an encoder-decoder"),
    "Long Range Arena": (with_weight("encoder.encoder.embed_tokens.weight", torch.zeros(1)), "Long Range Arena"),
    "RoBERTa": (
        with_argument("arch", "roberta_base"),
        "(architecture roberta_base, task masked_lm) is not a masked-LM",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_checkpoints_that_do_not_fit(damage: str, change: Callable, refused: Callable):
    function, message = DAMAGES[damage]
    assert message in refused(checkpoint_path=change(function))


class Harmful:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("as_zip", [True, False])
def test_code_in_a_checkpoint_is_not_executed(as_zip: bool, change: Callable, refused: Callable, tmp_path: Path):
    traces = tmp_path / "traces"
    path = change(
        lambda checkpoint: checkpoint["extra_state"].update(x=Harmful(traces)),
        _use_new_zipfile_serialization=as_zip,
    )
    error = refused(checkpoint_path=path)
    assert f"holds {os.system.__module__}.system, which no fairseq checkpoint needs" in error
    assert "Nothing in it was executed" in error
    assert not traces.exists()


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("kept", [0, 100, 20_000, -1])
def test_truncated_files(as_zip: bool, kept: int, change: Callable, refused: Callable):
    path = change(lambda checkpoint: None, _use_new_zipfile_serialization=as_zip)
    path.write_bytes(path.read_bytes()[:kept])
    assert f"{path} is damaged, truncated or not a fairseq checkpoint" in refused(checkpoint_path=path)


def test_a_flipped_bit(change: Callable, refused: Callable):
    path = change(lambda checkpoint: None)
    content = bytearray(path.read_bytes())
    weight = load(path)["model"][FC1].numpy().tobytes()
    content[content.index(weight) + 1] ^= 1
    path.write_bytes(content)
    error = refused(checkpoint_path=path)
    assert f"{path} is damaged: the check sum of its part" in error


def pack_anew(path: Path, compression: int) -> Path:
    packed = path.with_name("packed.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return packed


def test_file_that_is_compressed(change: Callable, refused: Callable):
    packed = pack_anew(change(lambda checkpoint: None), zipfile.ZIP_DEFLATED)
    assert f"{packed} was packed anew with compression" in refused(checkpoint_path=packed)


def test_file_that_is_packed_anew_without_compression(change: Callable, run: Callable, tmp_path: Path):
    path = change(lambda checkpoint: None)
    assert run(checkpoint_path=pack_anew(path, zipfile.ZIP_STORED))[0] == 0
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert torch.equal(model.luna.layers[1].mlp.fc1.weight, load(path)["model"][FC1])


def test_paths_that_cannot_be(refused: Callable, tmp_path: Path):
    assert "Cannot use" in refused(output_dir=tmp_path / ("x" * 300))
    assert "damaged" in refused(checkpoint_path=tmp_path / ("x" * 300))


def test_byte_order_mark(refused: Callable, tmp_path: Path):
    marked = tmp_path / "dict.txt"
    marked.write_text("\ufeff" + (TIED / "dict.txt").read_text())
    assert f"{marked}, line 1: begins with a byte-order mark" in refused(dict_path=marked)


def test_encoder_that_cannot_be_read(refused: Callable, tmp_path: Path):
    deep, merges = tmp_path / "encoder.json", tmp_path / "vocab.bpe"
    merges.write_text("")
    assert refused(vocab_file=deep, merges_file=merges).startswith(f"Error: Cannot read {deep}")
    deep.write_text("[" * 100_000)
    assert "is not the encoder.json" in refused(vocab_file=deep, merges_file=merges)


def test_untied_embeddings_that_are_stored_once(change: Callable, run: Callable):
    code, _, error = run(checkpoint_path=change(with_argument("untie_weights_luna", True)))
    assert code == 0, error


def test_head_without_an_output(change: Callable, refused: Callable):
    def cut(checkpoint: dict[str, Any]):
        name = "classification_heads.cls_classification_head.out_proj."
        checkpoint["model"][f"{name}weight"] = torch.zeros(0, 32)
        checkpoint["model"][f"{name}bias"] = torch.zeros(0)

    path = change(cut, TIED.parent / "bert_heads")
    error = refused(checkpoint_path=path, dict_path=TIED.parent / "bert_heads" / "dict.txt")
    assert "cls_classification_head has no output" in error


def test_files_that_are_no_checkpoints(refused: Callable, tmp_path: Path):
    assert "is damaged, truncated or not a fairseq checkpoint" in refused(checkpoint_path=TIED / "dict.txt")
    tensor = tmp_path / "tensor.pt"
    torch.save(torch.zeros(3), tensor)
    assert "it has no 'model'" in refused(checkpoint_path=tensor)
    assert f"{tmp_path} is not a file" in refused(checkpoint_path=tmp_path)
    assert f"{tmp_path / 'nowhere.pt'} is not a file" in refused(checkpoint_path=tmp_path / "nowhere.pt")


def test_output_folder_must_be_new_or_empty(refused: Callable, run: Callable, tmp_path: Path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "precious").write_text("kept")
    assert f"{folder} exists and is not an empty folder" in refused()
    assert "is not an empty folder" in refused(output_dir=folder / "precious")
    assert "Cannot write" in refused(output_dir=folder / "precious" / "below")
    (folder / "precious").unlink()
    assert run()[0] == 0
    assert (folder / "config.json").is_file()


def test_output_folder_is_not_the_current_one(
    refused: Callable, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    for name in (".", tmp_path / "out", tmp_path / "link"):
        assert f"{tmp_path / 'out'} is the current folder" in refused(output_dir=name)
    assert run(output_dir="below")[0] == 0
    assert (tmp_path / "out/below/config.json").is_file()


def test_output_folder_is_no_mount_point(refused: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "out")
    monkeypatch.setattr(converter, "read_checkpoint", lambda path: pytest.fail("refused too late"))
    assert f"{tmp_path / 'out'} is a mount point" in refused()


def fail_to_save(*args, **kwargs):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("name", "replacement", "message"),
    [
        ("model_card", fail_to_save, "No space left on device"),
        ("same_bits", lambda first, second: first.shape == (65, 32), "does not read back as it should: luna."),
    ],
)
def test_nothing_is_left_of_a_conversion_that_fails(
    name: str, replacement: Callable, message: str, refused: Callable, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(converter, name, replacement)
    assert message in refused()


def test_nothing_is_left_after_sigterm(run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(converter, "model_card", lambda *args: signal.raise_signal(signal.SIGTERM))

    def unhandled(*args):
        raise AssertionError("SIGTERM reached the handler from outside")

    previous = signal.signal(signal.SIGTERM, unhandled)
    try:
        code = run()[0]
        after = signal.getsignal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert code == 143
    assert list(tmp_path.iterdir()) == []
    assert after is unhandled


# The Hub.


@pytest.mark.slow
def test_upload(subprocess_environment: dict[str, str], tmp_path: Path):
    def upload(environment: dict[str, str], output_dir: str, repo_id: str) -> subprocess.CompletedProcess[str]:
        files = ["--checkpoint_path", TIED / "checkpoint.pt", "--dict_path", TIED / "dict.txt"]
        return subprocess.run(
            [sys.executable, "-m", "modeling_luna.convert_luna_fairseq_to_hf", *files]
            + ["--output_dir", tmp_path / output_dir, "--push_to_hub", repo_id],
            env=environment | {"PYTHONPATH": subprocess_environment["PYTHONPATH"], "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )

    with hub_stand_in(tmp_path / "hub") as hub:
        done = upload(hub.environment(tmp_path / "home"), "first", "moon/luna")
        assert done.returncode == 0, done.stderr
        assert f"Uploaded to {hub.endpoint}/moon/luna" in done.stdout
        assert hub.unknown_requests == []
        uploaded, folder = tmp_path / "hub" / "models" / "moon" / "luna", tmp_path / "first"
        assert {path.name: path.read_bytes() for path in uploaded.iterdir()} == {
            path.name: path.read_bytes() for path in folder.iterdir()
        }
        done = upload(hub.environment(tmp_path / "home"), "no", "not/an/id")
        assert done.returncode == 2
        assert not (tmp_path / "no").exists()
        closed = hub.endpoint

    done = upload(hub_environment(closed, tmp_path / "home"), "second", "moon/luna")
    assert done.returncode == 1
    assert "The folder is kept" in done.stderr
    assert (tmp_path / "second" / "model.safetensors").is_file()


# Memory.

CONVERT_AND_MEASURE = """
import sys
from common.hardware import peak_memory
from modeling_luna.convert_luna_fairseq_to_hf import main
import torch
code = main(sys.argv[1:])
print("peak", peak_memory(torch.device("cpu")))
sys.exit(code)
"""


@pytest.mark.slow
def test_memory_of_the_base_model(subprocess_environment: dict[str, str], tmp_path: Path):
    weights = {name: torch.full(shape, 0.5) for name, shape in official_shapes(LunaConfig(), {}).items()}
    weights["encoder.lm_head.weight"] = weights[SENTENCE_ENCODER + "embed_tokens.weight"]
    options = load(TIED / "checkpoint.pt")["args"]
    vars(options).update(
        encoder_layers=12, encoder_embed_dim=768, encoder_ffn_embed_dim=3072, encoder_attention_heads=12
    )
    vars(options).update(projection_length=128, max_positions=512)
    # fairseq keeps the state of the optimizer in the same file.
    state = {"exp_avg": torch.zeros(131_902_041)}
    torch.save({"args": options, "model": weights, "last_optimizer_state": state}, tmp_path / "model.pt")
    del weights, state
    (tmp_path / "dict.txt").write_text("".join(f"{i} 0\n" for i in range(50_260)))

    done = subprocess.run(
        [sys.executable, "-c", CONVERT_AND_MEASURE]
        + ["--checkpoint_path", tmp_path / "model.pt", "--dict_path", tmp_path / "dict.txt"]
        + ["--output_dir", tmp_path / "out"],
        env=subprocess_environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert "131,902,041 parameters" in done.stdout
    peak = int(done.stdout.split("peak ")[1])
    assert 500e6 < peak < 2 * 2**30, f"{peak / 2**30:.2f} GiB"
