"""Each architecture with a masked-LM head trains in Luna's place, or is refused before data are prepared."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from common.config.yaml_config import ConfigurationError
from common.labels import IGNORED
from pretrain.models.configuration import model_configuration
from pretrain.models.model import new_model
from pretrain.models.peers import REFUSED, TESTED, WITH_UNUSED_PARTS, peer_config


ROOT = Path(__file__).parents[3]
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
# What some architectures want besides, or instead.
OWN = {
    "distilbert": {"hidden_dim": 64},
    "funnel": {"d_head": 16, "d_inner": 64, "block_sizes": [1, 1]},
    "luke": {"entity_vocab_size": 10, "entity_emb_size": 8},
    "mobilebert": {"embedding_size": 16, "intra_bottleneck_size": 32},
    "neomme": {"num_key_value_heads": 1, "head_dim": 16},
    "perceiver": {
        "d_model": 32,
        "d_latents": 32,
        "num_latents": 8,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 2,
        "num_cross_attention_heads": 2,
    },
    "reformer": {
        "is_decoder": False,
        "axial_pos_shape": [4, 8],
        "axial_pos_embds_dim": [16, 16],
        "attn_layers": ["local", "local"],
        "local_attn_chunk_length": 8,
        "feed_forward_size": 64,
        "attention_head_size": 16,
        "hidden_dropout_prob": 0.0,
        "local_attention_probs_dropout_prob": 0.0,
    },
    "squeezebert": {"embedding_size": 32},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
}
ENCODER_DECODERS = ("bart", "mbart", "mvp")


def tiny(model_type: str) -> dict:
    """The fields of a tiny model."""
    config_class = CONFIG_MAPPING[model_type]
    known = {*inspect.signature(config_class).parameters, *config_class.attribute_map}
    return {key: value for key, value in SIZES.items() if key in known} | OWN.get(model_type, {})


def test_every_architecture_is_tested_or_refused():
    assert sorted((*TESTED, *REFUSED, *ENCODER_DECODERS)) == sorted(MODEL_FOR_MASKED_LM_MAPPING_NAMES)
    page = (ROOT / "docs/pretraining-recipes.md").read_text(encoding="utf-8")
    listed = re.search(r"These are tested: (.*?)\.\n", page, re.DOTALL)
    assert listed and re.findall("`(.+?)`", listed[1]) == list(TESTED)


@pytest.mark.parametrize("model_type", [*REFUSED, *ENCODER_DECODERS])
def test_refused(build_config: Callable, tmp_path: Path, model_type: str):
    config = build_config(tmp_path / "run")
    config.model_type, config.model = model_type, {}
    with pytest.raises(ConfigurationError, match=f"^model_type: {model_type} (is no encoder alone|cannot be trained)"):
        model_configuration(config, None)


@pytest.mark.parametrize("model_type", TESTED)
def test_the_loss_is_that_of_the_architecture(model_type: str):
    """Of the predicted tokens, with padding beside them."""
    tokens = {"vocab_size": 90, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    config = peer_config(model_type, tiny(model_type), tokens)
    torch.manual_seed(0)
    peer = new_model(config).eval()
    plain = MODEL_FOR_MASKED_LM_MAPPING[type(config)](config).eval()
    plain.load_state_dict(peer.state_dict())
    if model_type == "reformer":  # learns in training mode alone; `tiny` leaves dropout out
        peer.train()
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(4, 90, (2, 32), generator=generator)
    mask = torch.ones_like(input_ids)
    mask[1, 20:] = 0
    labels = torch.where((torch.rand(2, 32, generator=generator) < 0.3) & (mask > 0), input_ids, IGNORED)
    logits = plain(input_ids, attention_mask=mask).logits[:, :32]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    outputs = peer(input_ids, labels, mask.bool(), num_predicted=int((labels != IGNORED).sum()))
    torch.testing.assert_close(outputs.loss, expected)
    assert outputs.logits.shape == ((labels != IGNORED).sum(), 90)
    outputs.loss.backward()
    unused = [
        name for name, parameter in peer.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert bool(unused) == (model_type in WITH_UNUSED_PARTS), unused


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TESTED)
def test_a_short_run(build_config: Callable, train: Callable, tmp_path: Path, model_type: str):
    config = build_config(tmp_path / "run", max_steps=4, eval_steps=2, save_steps=2, warmup_steps=1)
    config.model_type, config.model = model_type, tiny(model_type)
    metrics = train(config)
    assert [record["step"] for record in metrics if "loss" in record] == [1, 2, 3, 4]
    for record in metrics:
        accuracy = record.get("accuracy", record.get("validation_accuracy"))
        assert 0 <= accuracy < 0.5 and 2 < record.get("loss", record.get("validation_loss")) < 20
    _, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "run/model", output_loading_info=True)
    assert not any(info.values())


@pytest.mark.slow
def test_parts_that_nothing_reaches_under_ddp(
    build_config: Callable, write_config: Callable, python: Callable, tmp_path: Path
):
    config = build_config(tmp_path / "run", max_steps=3, warmup_steps=1)
    config.model_type, config.model = "layoutlm", tiny("layoutlm")
    launcher = ("-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/cpu_2_processes.yaml")
    finished = python(*launcher, "pretrain/run_mlm.py", write_config(config, tmp_path / "run.yaml"))
    assert finished.returncode == 0, finished.stderr


BAD = {
    "no heads": ("roberta", {"num_attention_heads": 0}, "model.num_attention_heads is 0: it must be at least 1."),
    "negative size": ("roberta", {"hidden_size": -32}, "model.hidden_size is -32: it must be at least 1."),
    "negative layers": ("bert", {"num_hidden_layers": -1}, "model.num_hidden_layers is -1"),
    "heads that do not divide": ("bert", {"num_attention_heads": 5}, "model: "),
    "unknown activation": ("bert", {"hidden_act": "gelou"}, "model: "),
    "dropout of two": ("bert", {"hidden_dropout_prob": 2.0}, "model: "),
    "attention dropout of two": ("roberta", {"attention_probs_dropout_prob": 2.0}, "model"),
    "no types": ("bert", {"type_vocab_size": 0}, "model"),
    "padding outside": ("roberta", {"vocab_size": 10}, "model.vocab_size is 10, but the tokenizer has"),
    "no result": ("roberta", {"return_dict": False}, "model.return_dict is False: leave it out"),
    "a decoder": ("roberta", {"is_decoder": True}, "model.is_decoder is True: leave it out"),
    "a decoder of Reformer": ("reformer", {}, "model"),
    "no language": ("xmod", SIZES, "model_type: a step of xmod"),
    "no embedding of SqueezeBERT": ("squeezebert", SIZES | {"embedding_size": 48}, "model: "),
    "text for a number": ("fnet", {"hidden_size": "large"}, "model: "),
    "a list for a number": ("xlm", {"n_layers": [1]}, "model: "),
    "no size": ("esm", {"intermediate_size": -5}, "model.intermediate_size is -5"),
}


@pytest.mark.parametrize("name", BAD)
def test_fields_that_cannot_be(build_config: Callable, train: Callable, tmp_path: Path, name: str):
    model_type, fields, message = BAD[name]
    config = build_config(tmp_path / "run", prepared_dir=str(tmp_path / "prepared"), max_steps=1, warmup_steps=1)
    config.model_type = model_type
    config.model = tiny(model_type) | fields if fields not in ({}, SIZES) else fields
    with pytest.raises(ConfigurationError) as error:
        train(config)
    assert str(error.value).startswith(message) and len(str(error.value)) < 500
    assert not (tmp_path / "prepared").exists()
