"""Damaged and crafted model folders end in one message, whichever program loads them; none runs code."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_masked_models import build, save, train_bpe
from transformers import PreTrainedModel

from evaluation.models import MaskedModel, MaskedRow
from finetune_glue.data.tasks import TASKS
from finetune_glue.training.starting_model import check_starting_model, load_starting_model
from pretrain.configuration import PretrainConfig
from pretrain.models.model import build_model


EMBEDDINGS = "luna.embeddings.word_embeddings.weight"


def score(folder: Path):
    MaskedModel.open(str(folder), False).load(torch.float32, torch.device("cpu"), 100)


def begin(folder: Path) -> PreTrainedModel:
    config = PretrainConfig(output_dir="runs", data="text.txt", init_from=str(folder), max_length=16, max_steps=1)
    return build_model(config, train_bpe(["moon stone"]))


LOADERS = {
    "evaluation": score,
    "init_from": begin,
    "fine-tuning": lambda folder: check_starting_model(str(folder), TASKS["rte"], {}, trust_remote_code=False),
}


class RunsCode:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def pickled(content: Callable[[Path], bytes]) -> Callable[[Path], object]:
    def damage(folder: Path):
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(content(folder))

    return damage


def header(change: Callable[[dict], object]) -> Callable[[Path], object]:
    """Change the header of the weights; a result other than a dictionary takes its place."""

    def damage(folder: Path):
        path = folder / "model.safetensors"
        content = path.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        fields = json.loads(content[8:end])
        changed = json.dumps(change(fields) or fields).encode()
        path.write_bytes(len(changed).to_bytes(8, "little") + changed + content[end:])

    return damage


def replaced(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def indexed(index: str) -> Callable[[Path], object]:
    def damage(folder: Path):
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")

    return damage


def widened(folder: Path):
    weights = load_file(folder / "model.safetensors")
    weights[EMBEDDINGS] = torch.zeros(weights[EMBEDDINGS].shape[0], 35)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def without_file(folder: Path):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


DAMAGED_FILE = "one of its files is damaged, or is not what its name says"
DAMAGES = {
    "pickle that runs code": (
        pickled(lambda folder: pickle.dumps(RunsCode(folder / "executed"))),
        "save it with save_pretrained, which writes safetensors",
    ),
    "bytes that are no pickle": (pickled(lambda folder: b"not found" * 100), "its pickled weights are damaged"),
    "cut pickle": (pickled(lambda folder: b"\x80\x04junk" * 30), DAMAGED_FILE),
    "unknown type": (header(lambda fields: fields[EMBEDDINGS].update(dtype="F99")), "invalid JSON in header"),
    "offsets behind the end": (header(lambda fields: fields[EMBEDDINGS].update(data_offsets=[0, 10**12])), "header"),
    "shape that overflows": (header(lambda fields: fields[EMBEDDINGS].update(shape=[2**63, 2**63])), "header"),
    "header that is a list": (header(lambda fields: [1]), "invalid JSON in header"),
    "header of exabytes": (replaced("model.safetensors", (2**62).to_bytes(8, "little") + b"{}"), "header too large"),
    "no bytes": (replaced("model.safetensors", b""), "header too small"),
    "index that is a list": (indexed("[]"), DAMAGED_FILE),
    "weight map that is a list": (indexed('{"metadata": {}, "weight_map": []}'), DAMAGED_FILE),
    "shard elsewhere": (indexed('{"metadata": {}, "weight_map": {"a": "../../absent"}}'), "No such file or directory"),
    "other shapes": (widened, rf"the weight {EMBEDDINGS} has the shape \(300, 35\), but .* \(300, 32\)"),
    "folder in place of the weights": (without_file, "no file named model.safetensors"),
    "nested configuration": (replaced("config.json", b"[" * 10**5), "nested too deeply"),
    "tokenizer of other fields": (replaced("tokenizer.json", b'{"model": 3}'), "added_tokens"),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_model(tmp_path: Path, loader: str, damage: str):
    damage_it, message = DAMAGES[damage]
    tokenizer = train_bpe(["moon stone river"])
    folder = save(tmp_path / "model", build("luna", tokenizer, vocab_size=300), tokenizer)
    damage_it(folder)
    with pytest.raises(ValueError, match=message) as error:  # ConfigurationError, ModelError and UserError
        LOADERS[loader](folder)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    assert not (folder / "executed").exists()


def test_whole_folder_is_loaded(tmp_path: Path):
    """The folder that the damages start from is loaded by all."""
    tokenizer = train_bpe(["moon stone river"])
    folder = save(tmp_path / "model", build("luna", tokenizer, vocab_size=300), tokenizer)
    for load in LOADERS.values():
        load(folder)


def test_model_that_returns_tuples(tmp_path: Path):
    """What the programs make of it returns what they read by name."""
    tokenizer = train_bpe(["moon stone river"])
    model = build("luna", tokenizer, vocab_size=300, return_dict=False)
    folder = save(tmp_path / "model", model, tokenizer)
    assert isinstance(model(**tokenizer("moon", return_tensors="pt")), tuple)
    rows = [MaskedRow(np.array([0, 5, 2]), np.array([1]), np.array([5]))]
    scores = MaskedModel.open(str(folder), False).load(torch.float32, torch.device("cpu"), 100).score(rows, "moon")
    assert np.isfinite(scores.log_probabilities).all()
    assert load_starting_model(str(folder), TASKS["rte"], {}, seed=1).model.config.return_dict is True
    assert begin(folder).config.return_dict is True
