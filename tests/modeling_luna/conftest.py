# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""A tiny model whose weights are large enough that every part of it shows in the output."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import RobertaTokenizer

import modeling_luna
from modeling_luna import LunaConfig, LunaForMaskedLM, LunaModel


TINY = {
    "vocab_size": 53,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "projection_length": 6,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
CORPUS = (
    "Luna packs the tokens of a sentence into a few slots, and unpacks the slots into the tokens.",
    "The moon goes round the earth, and the earth goes round the sun.",
    "A short row uses fewer slots than a long row.",
)


def build_config(**fields) -> LunaConfig:
    return LunaConfig(**(TINY | fields))


def build_model(
    model_class: type = LunaModel, attn_implementation: str = "eager", seed: int = 0, **fields
) -> LunaModel | LunaForMaskedLM:
    """A model in eval mode; every parameter, biases and convolution kernels too, moves away from its start."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = model_class._from_config(build_config(**fields), attn_implementation=attn_implementation)
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., LunaConfig]:
    return build_config


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., LunaModel | LunaForMaskedLM]:
    return build_model


@pytest.fixture(scope="session")
def subprocess_environment() -> dict[str, str]:
    """An environment in which a fresh Python finds this modeling_luna, and uses one thread and no network."""
    root = str(Path(modeling_luna.__file__).parents[1])
    return os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def saved_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a masked-LM model and the byte-level BPE tokenizer it belongs to."""
    folder = tmp_path_factory.mktemp("tiny-luna")
    trained = ByteLevelBPETokenizer()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(CORPUS, vocab_size=320, min_frequency=1, special_tokens=specials, show_progress=False)
    trained.save_model(str(folder))
    tokenizer = RobertaTokenizer.from_pretrained(folder, model_max_length=TINY["max_position_embeddings"])
    tokenizer.save_pretrained(folder)
    build_model(LunaForMaskedLM, vocab_size=len(tokenizer)).save_pretrained(folder)
    return folder
