# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Whatever class a model has, its saved folder names the nearest class of Luna, and holds all the code it names."""

import copy
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist
from hub_stand_in import hub_stand_in
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import fully_shard
from transformers import AutoTokenizer, RobertaTokenizer
from transformers.dynamic_module_utils import get_relative_import_files

from modeling_luna import (
    LunaConfig,
    LunaForMaskedLM,
    LunaForSequenceClassification,
    LunaTokenizer,
)
from modeling_luna.modeling_luna import AUTO_CLASSES


# A user's module.
USERS_CODE = '''
from torch import nn
from modeling_luna import LunaConfig, LunaForMaskedLM, LunaForSequenceClassification, LunaModel, LunaPreTrainedModel
from modeling_luna import LunaTokenizer

class UsersConfig(LunaConfig):
    taste: int = 3

class UsersMaskedLM(LunaForMaskedLM):
    config: UsersConfig

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = outputs.logits + 1
        return outputs

class UsersClassifier(LunaForSequenceClassification):
    pass

class UsersRegressor(LunaPreTrainedModel):
    """A head of one's own on Luna."""

    def __init__(self, config):
        super().__init__(config)
        self.luna = LunaModel(config)
        self.head = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def forward(self, input_ids):
        return self.head(self.luna(input_ids).last_hidden_state[:, 0])

class UsersTokenizer(LunaTokenizer):
    pass
'''


@pytest.fixture
def users_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = tmp_path / "users_models.py"
    path.write_text(USERS_CODE)
    spec = importlib.util.spec_from_file_location("users_models", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "users_models", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def one_rank(tmp_path: Path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def files_that_travel() -> set[str]:
    """The model's file and all that it imports, by way of others too."""
    modeling = sys.modules["modeling_luna.modeling_luna"].__file__
    return {Path(file).name for file in (modeling, *get_relative_import_files(modeling))}


def check_folder(folder: Path, architecture: str) -> dict:
    """The configuration of a folder, which has to name Luna's classes alone and to hold Luna's files."""
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == {"AutoConfig": "configuration_luna.LunaConfig"} | {
        auto_class: f"modeling_luna.{model_class.__name__}" for auto_class, model_class in AUTO_CLASSES.items()
    }
    assert config["architectures"] == [architecture]
    assert {path.name for path in folder.glob("*.py")} == files_that_travel()
    return config


def in_main(model_class: type) -> type:
    """The class as it were defined in the script, or the notebook, that runs."""
    return type(f"Main{model_class.__name__}", (model_class,), {"__module__": "__main__"})


@pytest.mark.parametrize("defined_in_main", [False, True])
@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("UsersMaskedLM", "LunaForMaskedLM"),
        ("UsersClassifier", "LunaForSequenceClassification"),
        ("UsersRegressor", "LunaModel"),
    ],
)
def test_subclass(
    users_module: ModuleType,
    tiny_config: Callable,
    tmp_path: Path,
    name: str,
    architecture: str,
    defined_in_main: bool,
):
    users_class = getattr(users_module, name)
    users_class = in_main(users_class) if defined_in_main else users_class
    model = users_class(tiny_config())
    model.save_pretrained(tmp_path / "saved")
    config = check_folder(tmp_path / "saved", architecture)
    assert "saved_model_classes" not in config

    reloaded = users_class.from_pretrained(tmp_path / "saved")
    for key, weight in model.state_dict().items():
        torch.testing.assert_close(reloaded.state_dict()[key], weight, atol=0, rtol=0)


@pytest.mark.parametrize("defined_in_main", [False, True])
def test_subclass_of_the_configuration(
    users_module: ModuleType, tiny_config: Callable, tmp_path: Path, defined_in_main: bool
):
    config_class = in_main(users_module.UsersConfig) if defined_in_main else users_module.UsersConfig
    fields = {key: value for key, value in tiny_config().to_dict().items() if key != "transformers_version"}
    model = LunaForMaskedLM(config_class(**fields, taste=5))
    model.save_pretrained(tmp_path / "saved")
    assert check_folder(tmp_path / "saved", "LunaForMaskedLM")["taste"] == 5
    assert config_class.from_pretrained(tmp_path / "saved").taste == 5

    config_class(**fields).save_pretrained(tmp_path / "alone")
    alone = json.loads((tmp_path / "alone/config.json").read_text())
    assert alone["auto_map"] == {"AutoConfig": "configuration_luna.LunaConfig"}
    assert (tmp_path / "alone/configuration_luna.py").exists()
    assert not (tmp_path / "alone/users_models.py").exists()


def test_configuration_alone_names_no_model(saved_folder: Path, tmp_path: Path):
    config = LunaConfig.from_pretrained(saved_folder)
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_luna.LunaConfig"
    }
    assert not (tmp_path / "modeling_luna.py").exists()

    # Where the code lies already, as after an edit of the configuration of a saved model, it is named still.
    model = LunaForMaskedLM.from_pretrained(saved_folder)
    model.save_pretrained(tmp_path)
    LunaConfig.from_pretrained(saved_folder).save_pretrained(tmp_path)
    check_folder(tmp_path, "LunaForMaskedLM")


def test_registered_code_of_a_user_is_saved_beside_lunas(
    users_module: ModuleType, tiny_config: Callable, tmp_path: Path
):
    users_module.UsersMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
    users_module.UsersMaskedLM(tiny_config()).save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved/config.json").read_text())
    assert config["auto_map"]["AutoModelForMaskedLM"] == "users_models.UsersMaskedLM"
    assert config["auto_map"]["AutoModel"] == "modeling_luna.LunaModel"
    assert config["architectures"] == ["UsersMaskedLM"]
    assert {path.name for path in (tmp_path / "saved").glob("*.py")} == files_that_travel() | {"users_models.py"}


def test_fsdp2(one_rank: None, tiny_model: Callable, tmp_path: Path):
    model = tiny_model(LunaForMaskedLM)
    weights = {key: weight.clone() for key, weight in model.state_dict().items()}
    for layer in model.luna.layers:
        fully_shard(layer)
    fully_shard(model)
    assert type(model).__name__ == "FSDPLunaForMaskedLM"
    gathered = {key: weight.full_tensor() for key, weight in model.state_dict().items()}
    model.save_pretrained(tmp_path / "saved", state_dict=gathered)
    check_folder(tmp_path / "saved", "LunaForMaskedLM")
    reloaded = LunaForMaskedLM.from_pretrained(tmp_path / "saved").state_dict()
    for key, weight in weights.items():
        torch.testing.assert_close(reloaded[key], weight, atol=0, rtol=0)


def test_wrapped_models(one_rank: None, tiny_model: Callable, tmp_path: Path):
    torch.compile(tiny_model(LunaForMaskedLM)).save_pretrained(tmp_path / "compiled")
    check_folder(tmp_path / "compiled", "LunaForMaskedLM")

    parallel = torch.nn.parallel.DistributedDataParallel(tiny_model(LunaForMaskedLM))
    parallel.module.save_pretrained(tmp_path / "parallel")
    check_folder(tmp_path / "parallel", "LunaForMaskedLM")

    lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj", "kv_proj"], init_lora_weights=False)
    merged = get_peft_model(tiny_model(LunaForSequenceClassification), lora).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    check_folder(tmp_path / "merged", "LunaForSequenceClassification")


def test_only_the_main_process_writes_code(tiny_model: Callable, tmp_path: Path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "saved", is_main_process=False)
    assert not list((tmp_path / "saved").glob("*.py"))
    assert copy.deepcopy(model.config).to_json_string() == model.config.to_json_string()


@pytest.mark.parametrize("defined_in_main", [False, True])
def test_subclass_of_the_tokenizer(
    users_module: ModuleType, saved_folder: Path, tmp_path: Path, defined_in_main: bool
):
    users_class = in_main(users_module.UsersTokenizer) if defined_in_main else users_module.UsersTokenizer
    roberta = RobertaTokenizer.from_pretrained(saved_folder)
    tokenizer = users_class(
        tokenizer_object=roberta.backend_tokenizer, dictionary_size=len(roberta) - 9, **roberta.special_tokens_map
    )
    tokenizer.save_pretrained(tmp_path / "saved")
    stored = json.loads((tmp_path / "saved/tokenizer_config.json").read_text())
    assert stored["tokenizer_class"] == "LunaTokenizer"
    assert stored["auto_map"] == {"AutoTokenizer": ["tokenization_luna.LunaTokenizer", None]}
    assert (tmp_path / "saved/tokenization_luna.py").exists()
    assert not (tmp_path / "saved/users_models.py").exists()
    reloaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert type(reloaded) is LunaTokenizer
    text = "The moon goes round the earth."
    assert reloaded(text)["input_ids"] == tokenizer(text)["input_ids"]


# Arguments: folders of masked-LM models. Loads each, saves it from a subclass, loads that, and prints the logits.
WITHOUT_THE_PACKAGE = """
import json, sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling_luna", "users_models"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

logits = []
for folder in sys.argv[1:]:
    assert type(AutoModel.from_pretrained(folder, trust_remote_code=True)).__name__ == "LunaModel"
    model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)
    assert type(AutoTokenizer.from_pretrained(folder, trust_remote_code=True)).__name__ == "LunaTokenizer"

    class Sub(type(model)):
        pass

    Sub.from_pretrained(folder).save_pretrained(folder + "-again")
    again = AutoModelForMaskedLM.from_pretrained(folder + "-again", trust_remote_code=True)
    assert type(again).__name__ == type(model).__name__ == "LunaForMaskedLM"
    with torch.no_grad():
        logits.append([loaded(torch.tensor([[0, 5, 6, 7, 2]])).logits[0, :, :5].tolist() for loaded in (model, again)])
print(json.dumps(logits))
"""


@pytest.mark.slow
def test_loads_without_the_package(
    users_module: ModuleType,
    saved_folder: Path,
    tiny_model: Callable,
    subprocess_environment: dict[str, str],
    tmp_path: Path,
):
    roberta = RobertaTokenizer.from_pretrained(saved_folder)
    fields = {"tokenizer_object": roberta.backend_tokenizer, "dictionary_size": 53} | roberta.special_tokens_map
    folders, expected = [], []
    for model_class, tokenizer_class in (
        (users_module.UsersMaskedLM, users_module.UsersTokenizer),
        (in_main(users_module.UsersMaskedLM), in_main(users_module.UsersTokenizer)),
        (in_main(LunaForMaskedLM), in_main(LunaTokenizer)),
    ):
        folder = tmp_path / f"{len(folders)}"
        model = model_class(users_module.UsersConfig(**tiny_model().config.to_dict()))
        model.save_pretrained(folder)
        tokenizer_class(**fields).save_pretrained(folder)
        with torch.no_grad():
            logits = LunaForMaskedLM.from_pretrained(folder)(torch.tensor([[0, 5, 6, 7, 2]])).logits
        folders.append(str(folder))
        expected.append(logits[0, :, :5])

    environment = subprocess_environment | {"PYTHONPATH": "", "HF_HOME": str(tmp_path / "cache")}
    environment["HF_MODULES_CACHE"] = str(tmp_path / "cache/modules")
    command = [sys.executable, "-c", WITHOUT_THE_PACKAGE, *folders]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for found, logits in zip(json.loads(done.stdout.splitlines()[-1]), expected, strict=True):
        for loaded in found:
            torch.testing.assert_close(torch.tensor(loaded), logits, atol=1e-6, rtol=1e-6)
    for folder in folders:
        check_folder(Path(folder + "-again"), "LunaForMaskedLM")


PUSH = """
import sys
import modeling_luna
from modeling_luna import LunaForMaskedLM

class InMain(LunaForMaskedLM):
    pass

folder, local = sys.argv[1:]
InMain.from_pretrained(folder).save_pretrained(local, push_to_hub=True, repo_id="tester/by-saving")
InMain.from_pretrained(folder).push_to_hub("tester/by-pushing")
"""


@pytest.mark.slow
def test_pushed_to_the_hub(saved_folder: Path, subprocess_environment: dict[str, str], tmp_path: Path):
    with hub_stand_in(tmp_path / "hub") as hub:
        environment = hub.environment(tmp_path / "home") | {"PYTHONPATH": subprocess_environment["PYTHONPATH"]}
        command = [sys.executable, "-c", PUSH, str(saved_folder), str(tmp_path / "local")]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    for name in ("by-saving", "by-pushing"):
        check_folder(tmp_path / "hub/models/tester" / name, "LunaForMaskedLM")
