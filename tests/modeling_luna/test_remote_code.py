# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""A saved folder opens without this package by its own code, which is never executed where the package is imported."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, RobertaTokenizer, pipeline
from transformers.dynamic_module_utils import get_relative_import_files

from modeling_luna import LunaTokenizer
from modeling_luna.modeling_luna import AUTO_CLASSES


PACKAGE = Path(sys.modules["modeling_luna"].__file__).parent
# The model's file and all that it imports, by way of others too.
CODE_FILES = {"modeling_luna.py"} | {
    Path(file).name for file in get_relative_import_files(PACKAGE / "modeling_luna.py")
}
AUTO_MAP = {"AutoConfig": "configuration_luna.LunaConfig"} | {
    auto_class: f"modeling_luna.{model_class.__name__}" for auto_class, model_class in AUTO_CLASSES.items()
}
SENTENCE = "Luna packs the <mask> of a sentence."

# Arguments: the folder, and one to save into. Prints a JSON object.
WITHOUT_THE_PACKAGE = """
import json, sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "modeling_luna":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
import torch, transformers

folder, saved_again = sys.argv[1:]
result = {}
try:
    transformers.AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=False)
except ValueError as error:
    result["refusal"] = str(error)
auto_classes = [name for name in json.load(open(f"{folder}/config.json"))["auto_map"] if name != "AutoConfig"]
models = {
    name: getattr(transformers, name).from_pretrained(folder, trust_remote_code=True) for name in auto_classes
}
result["classes"] = {name: type(model).__name__ for name, model in models.items()}
result["modules"] = sorted({type(model).__module__.split(".")[0] for model in models.values()})

tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
result["tokenizer"] = type(tokenizer).__name__
inputs = tokenizer("Luna packs the <mask> of a sentence.", return_tensors="pt")

def logits_of(model):
    with torch.no_grad():
        return model(**inputs).logits[0, :, :5].tolist()

result["logits"] = logits_of(models["AutoModelForMaskedLM"])
filler = transformers.pipeline("fill-mask", model=folder, trust_remote_code=True)
result["answer"] = filler("Luna packs the <mask> of a sentence.")[0]["token"]

config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True, projection_length=3)
built = transformers.AutoModelForTokenClassification.from_config(config, trust_remote_code=True)
result["built"] = [type(built).__name__, list(built.luna.embeddings.packed_embeddings.shape)]

models["AutoModelForMaskedLM"].save_pretrained(saved_again)
tokenizer.save_pretrained(saved_again)
again = transformers.AutoModelForMaskedLM.from_pretrained(saved_again, trust_remote_code=True)
result["logits_again"] = logits_of(again)
result["imported"] = [name for name in sys.modules if name.split(".")[0] == "modeling_luna"]
print(json.dumps(result))
"""


def logits_here(folder: Path) -> torch.Tensor:
    inputs = AutoTokenizer.from_pretrained(folder)(SENTENCE, return_tensors="pt")
    with torch.no_grad():
        return AutoModelForMaskedLM.from_pretrained(folder)(**inputs).logits[0, :, :5]


@pytest.mark.slow
def test_without_the_package(saved_folder: Path, tmp_path: Path, subprocess_environment: dict[str, str]):
    folder = shutil.copytree(saved_folder, tmp_path / "tiny-luna")
    # No path leads to the package, were it not for an installed one.
    environment = subprocess_environment | {"PYTHONPATH": "", "HF_HOME": str(tmp_path / "cache")}
    environment["HF_MODULES_CACHE"] = str(tmp_path / "cache/modules")
    command = [sys.executable, "-c", WITHOUT_THE_PACKAGE, str(folder), str(tmp_path / "saved-again")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])

    assert "trust_remote_code=True" in result["refusal"]
    assert result["classes"] == {name: model_class.__name__ for name, model_class in AUTO_CLASSES.items()}
    assert result["modules"] == ["transformers_modules"]
    assert result["imported"] == []
    assert result["tokenizer"] == "RobertaTokenizer"
    assert result["built"] == ["LunaForTokenClassification", [3, 24]]
    expected = logits_here(saved_folder)
    torch.testing.assert_close(torch.tensor(result["logits"]), expected, atol=1e-5, rtol=1e-5)
    assert result["logits_again"] == result["logits"]
    assert result["answer"] == pipeline("fill-mask", model=str(saved_folder))(SENTENCE)[0]["token"]

    saved_again = tmp_path / "saved-again"
    assert json.loads((saved_again / "config.json").read_text())["auto_map"] == AUTO_MAP
    for file in CODE_FILES:
        assert (saved_again / file).read_bytes() == (saved_folder / file).read_bytes()
    torch.testing.assert_close(logits_here(saved_again), expected, atol=0, rtol=0)


def test_saved_code_is_this_code(saved_folder: Path):
    assert json.loads((saved_folder / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert {path.name for path in saved_folder.glob("*.py")} == CODE_FILES
    for file in CODE_FILES:
        assert (saved_folder / file).read_bytes() == (PACKAGE / file).read_bytes()


@pytest.mark.parametrize("auto_class", AUTO_CLASSES)
def test_every_class_saves_the_whole_map(saved_folder: Path, tmp_path: Path, auto_class: str):
    """A folder saved from any head opens as any other one."""
    model = getattr(transformers, auto_class).from_pretrained(saved_folder)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert {path.name for path in tmp_path.glob("*.py")} == CODE_FILES


@pytest.fixture(autouse=True)
def modules_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Where remote code would be copied to, were it taken."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))  # to which Transformers adds the folder


@pytest.fixture
def tampered_folder(saved_folder: Path, tmp_path: Path) -> Path:
    """A folder whose code leaves a file behind when it is executed."""
    folder = shutil.copytree(saved_folder, tmp_path / "tampered")
    tamper(folder)
    return folder


def tamper(folder: Path):
    for file in folder.glob("*.py"):
        file.write_text(f"open({str(folder / 'executed')!r}, 'a').close()\nraise SystemExit(1)\n")


def test_nothing_remote_is_executed_where_the_package_is_imported(tampered_folder: Path):
    trusting = {"trust_remote_code": True}
    config = AutoConfig.from_pretrained(tampered_folder, **trusting)
    assert type(config).__module__ == "modeling_luna.configuration_luna"
    for name, model_class in AUTO_CLASSES.items():
        auto_class = getattr(transformers, name)
        assert type(auto_class.from_pretrained(tampered_folder, **trusting)) is model_class
        assert type(auto_class.from_config(config, **trusting)) is model_class
    AutoTokenizer.from_pretrained(tampered_folder, **trusting)
    pipeline("fill-mask", model=str(tampered_folder), **trusting)(SENTENCE)
    SentenceTransformer(str(tampered_folder), device="cpu", **trusting).encode("moon")
    assert not (tampered_folder / "executed").exists()


def test_saving_replaces_tampered_code(tampered_folder: Path, saved_folder: Path, tmp_path: Path):
    AutoModelForMaskedLM.from_pretrained(tampered_folder, trust_remote_code=True).save_pretrained(tmp_path / "saved")
    for file in CODE_FILES:
        assert (tmp_path / "saved" / file).read_bytes() == (saved_folder / file).read_bytes()
    assert not (tampered_folder / "executed").exists()


def test_no_remote_tokenizer_is_executed_where_the_package_is_imported(saved_folder: Path, tmp_path: Path):
    roberta = RobertaTokenizer.from_pretrained(saved_folder)
    tokenizer = LunaTokenizer(
        tokenizer_object=roberta.backend_tokenizer, dictionary_size=len(roberta), **roberta.special_tokens_map
    )
    folder = shutil.copytree(saved_folder, tmp_path / "tampered")
    tokenizer.save_pretrained(folder)
    assert (folder / "tokenization_luna.py").exists()
    tamper(folder)
    for trust in (False, True):
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
        assert type(loaded) is LunaTokenizer
        assert loaded(SENTENCE)["input_ids"] == roberta(SENTENCE)["input_ids"]
    assert not (folder / "executed").exists()
