"""The configurations of configs/pretrain and configs/model: each is valid, and says what the paper does."""

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedConfig

from modeling_luna import LunaConfig
from pretrain.command_line import load_config
from pretrain.configuration import PretrainConfig
from pretrain.models.configuration import model_configuration
from pretrain.models.model import new_model
from pretrain.steps.batches import BatchSizes
from pretrain.steps.schedules import Schedule


FOLDER = Path(__file__).parents[2] / "configs"
PARAMETERS = {
    "luna-base-16gb": 131_902_041,
    "luna-base-160gb": 131_902_041,
    "luna-base-untied-16gb": 146_076_249,
    "luna-base-untied-160gb": 146_076_249,
    "luna-base-2048": 133_179_993,
    "luna-large": 380_783_705,
    "luna-modern-24h": 118_895_360,
    "luna-tiny": 1_575_552,
    "demo": 1_014_400,
    "demo-roberta": 975_104,
    "learning": 811_136,
    "learning-roberta": 694_528,
}
# Steps, rows of a step, places of a row, learning rate, warm-up and slots.
PAPER = {
    "luna-base-16gb": (250_000, 2048, 512, 6e-4, 15_000, 128),
    "luna-base-untied-16gb": (250_000, 2048, 512, 6e-4, 15_000, 128),
    "luna-base-160gb": (500_000, 8192, 512, 6e-4, 24_000, 128),
    "luna-base-untied-160gb": (500_000, 8192, 512, 6e-4, 24_000, 128),
    "luna-base-2048": (250_000, 512, 2048, 6e-4, 15_000, 256),
    "luna-large": (500_000, 8192, 512, 4e-4, 30_000, 128),
}


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(FOLDER.parent)  # the files name others from there


def load(name: str) -> PretrainConfig:
    return load_config([f"configs/pretrain/{name}.yaml"])


def count_parameters(config: PreTrainedConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in new_model(config).parameters())


def test_every_file_is_known_here():
    assert sorted(path.stem for path in (FOLDER / "pretrain").glob("*.yaml")) == sorted(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_configuration_gives_the_model_it_names(name: str):
    config = load(name)
    vocabulary = None if config.tokenizer else config.vocab_size
    model_config = model_configuration(config, vocabulary)
    assert count_parameters(model_config) == PARAMETERS[name]
    assert config.output_dir == f"runs/{name}"
    assert model_config.max_position_embeddings >= config.max_length
    schedule = Schedule.from_config(config, BatchSizes.from_config(config))
    assert 0 < schedule.learning_rate(0, 0.0) < config.learning_rate
    for source in config.sources():
        if source.path != "python-docs":
            assert "/" in source.path and not Path(source.path).exists()
            validate_repo_id(source.path)
    if config.per_device_train_batch_size is not None:
        assert config.batch_size % config.per_device_train_batch_size == 0


@pytest.mark.parametrize("name", PAPER)
def test_numbers_of_the_paper(name: str):
    config = load(name)
    steps, rows, places, rate, warmup, slots = PAPER[name]
    assert (config.max_steps, config.batch_size, config.max_length) == (steps, rows, places)
    assert (config.learning_rate, config.warmup_steps, config.lr_scheduler_type) == (rate, warmup, "linear")
    assert (config.adam_beta1, config.adam_beta2, config.adam_epsilon, config.weight_decay) == (0.9, 0.98, 1e-6, 0.01)
    assert (config.mask_probability, config.masking, config.optimizer) == (0.15, "token", "adamw")
    assert config.packing == "full_sentences" and all(source.weight for source in config.sources())
    luna_config = model_configuration(config, None)
    assert luna_config.projection_length == slots
    assert luna_config.tie_key_value == ("untied" not in name)
    assert luna_config.hidden_dropout_prob == luna_config.attention_probs_dropout_prob == 0.1
    assert luna_config.initializer_range == 0.02
    assert luna_config.conv_kernel_size == 0


def test_the_modern_recipe_lasts_a_day():
    config = load("luna-modern-24h")
    sizes = BatchSizes.from_config(config)
    schedule = Schedule.from_config(config, sizes)
    assert schedule.total_steps is None
    assert schedule.finished(0, 24 * 3600.0)
    assert schedule.learning_rate(100, 12 * 3600.0) == config.learning_rate
    assert schedule.learning_rate(100, 23.9 * 3600.0) < 0.02 * config.learning_rate
    assert sizes.rows(0) * config.max_length == 2**18
    assert sizes.rows(config.batch_size_ramp_steps) * config.max_length == 2**20
    assert model_configuration(config, None).initializer_range == pytest.approx(768**-0.5, rel=0.01)
    assert (config.optimizer, config.lr_scheduler_type) == ("stable_adamw", "trapezoidal")
    assert config.mask_probability > config.mask_probability_end


@pytest.mark.parametrize("name", ["demo", "learning"])
def test_the_peer_is_trained_as_luna_is(name: str):
    luna, roberta = (dataclasses.asdict(load(config)) for config in (name, f"{name}-roberta"))
    assert {key for key in luna if luna[key] != roberta[key]} == {"output_dir", "model_type", "model"}
    common = luna["model"].keys() & roberta["model"].keys()
    differing = {key for key in common if luna["model"][key] != roberta["model"][key]}
    assert differing == {"max_position_embeddings"} and "hidden_size" in common


MODELS = {
    "luna-tiny": 1_574_016,
    "luna-base": 131_902_041,
    "luna-base-untied": 146_076_249,
    "luna-base-2048": 133_179_993,
    "luna-large": 380_783_705,
}


def test_models():
    assert sorted(path.stem for path in (FOLDER / "model").glob("*.json")) == sorted(MODELS)
    for name, parameters in MODELS.items():
        assert count_parameters(LunaConfig.from_pretrained(FOLDER / f"model/{name}.json")) == parameters


def test_files_for_the_launcher():
    """Of configs/accelerate and configs/deepspeed; the launches themselves are tested in `test_scale`."""
    for path in (*(FOLDER / "accelerate").glob("*.yaml"), *(FOLDER / "deepspeed").glob("*.json")):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert values and all(isinstance(key, str) for key in values), path
        if path.parent.name == "accelerate":
            load_config_from_file(str(path))
