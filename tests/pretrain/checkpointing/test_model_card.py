"""The card of each checkpoint: metadata that the Hub takes, and figures of this very checkpoint."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from modeling_luna import LunaConfig, LunaForMaskedLM
from pretrain.checkpointing.folders import read_state
from pretrain.checkpointing.model_card import Origin, model_card, write_card
from pretrain.configuration import PretrainConfig
from pretrain.data.manifest import read_manifest
from pretrain.preparation import prepare
from pretrain.watching.metrics import read_metrics
from pretrain.watching.progress import Progress


@pytest.fixture
def run(build_config: Callable, train: Callable, tmp_path: Path) -> Path:
    """A run with checkpoints at 5 (before any evaluation), 10 (evaluated) and 12 (the end)."""
    train(build_config(tmp_path, max_steps=12, save_steps=5, eval_steps=10, language="en", license="apache-2.0"))
    return tmp_path


def cell(card: str, name: str) -> str:
    """The second cell of the row of a table that begins with a name."""
    return re.search(rf"^\| {re.escape(name)} \| (.*) \|$", card, re.MULTILINE)[1]


@pytest.mark.slow
def test_figures_are_those_of_the_checkpoint(run: Path):
    metrics = read_metrics(run / "metrics.jsonl")
    losses = {record["step"]: record["validation_loss"] for record in metrics if "validation_loss" in record}
    for step, evaluated in ((5, None), (10, 10), (12, 12)):
        folder = run / f"checkpoint-{step}"
        card = ModelCard.load(folder / "README.md")
        progress = read_state(folder)["progress"]
        assert progress["tokens"] > 16 * 24 * step  # rows of 32 tokens, some of them padded
        assert cell(card.text, "steps done").startswith(f"{step}, 0 of them skipped")
        assert cell(card.text, "tokens seen") == f"{progress['tokens']:,} (padding left out)"
        speed = progress["tokens"] / progress["seconds"]
        assert f"{speed:,.0f} tokens/s" in cell(card.text, "time")
        assert ("finished model" in card.text) == (step == 12)
        assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
        assert not re.search(r"\b(None|nan|inf)\b", card.text)
        assert str(run) not in card.content and "text.txt" in card.text
        if evaluated is None:
            assert card.data.eval_results is None and "has not been evaluated" in card.text
        else:
            assert cell(card.text, f"masked loss at step {evaluated}").startswith(f"{losses[evaluated]:.4f} nats")
            values = {result.metric_type: result.metric_value for result in card.data.eval_results}
            perplexity = round(math.exp(losses[evaluated]), 4)
            assert values == {"loss": round(losses[evaluated], 4), "perplexity": perplexity}
    pictures = {(run / f"checkpoint-{step}/curves.png").read_bytes() for step in (5, 10, 12)}
    assert len(pictures) == 3
    assert (run / "model/README.md").read_text() == (run / "checkpoint-12/README.md").read_text()


@pytest.mark.slow
def test_loss_whose_perplexity_is_no_number(run: Path):
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 13, "validation_loss": 4000.0}\n')
    config = PretrainConfig(**yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")))
    origin = Origin(config, read_manifest(prepare(config)), "a CPU", "float32", "one process")
    write_card(run / "model", LunaForMaskedLM.from_pretrained(run / "model"), origin, Progress(step=13))
    card = ModelCard.load(run / "model/README.md")
    assert cell(card.text, "perplexity at step 13") == "too large for a number"
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {"loss": 4000.0}


def test_metadata_and_sections(run: Path):
    card = ModelCard.load(run / "model/README.md")
    data = card.data.to_dict()
    assert data | {"model-index": None} == {
        "language": "en",
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["luna", "linear-attention"],
        "model-index": None,
    }
    assert data["model-index"][0]["name"] == run.name
    sections = re.findall(r"^## (.*)$", card.text, re.MULTILINE)
    assert sections == ["Use", "Data", "Training", "Evaluation", "Limits", "Versions", "Citation"]
    assert cell(card.text, "torch") == torch.__version__
    assert "@inproceedings{ma2021luna" in card.text and "![Training and validation loss](curves.png)" in card.text
    assert cell(card.text, "launch") == "one process, float32" and "1 process of 1 thread on " in card.text
    assert cell(card.text, "learning_rate") == "0.005" and cell(card.text, "projection length") == "8"
    assert "output_dir" not in card.text


def test_datasets_of_the_hub_are_named_with_their_commits(tmp_path: Path):
    sources = [
        {"path": "org/plain", "config": "long", "weight": 3.0},
        {"path": "org/other", "split": "test", "weight": 1.0},
    ]
    config = PretrainConfig(output_dir=str(tmp_path), data=sources, tokenizer="/home/somebody/words", max_steps=10)
    split = {"tokens": 1000, "documents": 10, "unigram_entropy": 3.0}
    identities = [{"kind": "hub", "id": f"org/{name}", "commit": "c" * 40} for name in ("plain", "other")]
    manifest = {
        "identity": {"sources": identities},
        "splits": {"train": split, "validation": split},
        "vocab_size": 300,
    }
    model = LunaForMaskedLM(
        LunaConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )
    origin = Origin(config, manifest, "8 x GPU", "bf16", "DeepSpeed ZeRO-2")
    metrics = [{"step": 4, "validation_loss": 2.0}, {"step": 8, "validation_loss": 2.5, "validation_accuracy": 0.25}]
    card = ModelCard(model_card(model, origin, Progress(step=9, tokens=100, seconds=5400.0, skipped=2), metrics))
    assert card.data.datasets == ["org/plain", "org/other"]
    assert card.data.language is None and card.data.license is None and "license" not in card.data.to_dict()
    assert f"| dataset of the Hub | configuration long, split train, commit {'c' * 40}, weight 3.0 |" in card.text
    assert f"| dataset of the Hub | configuration default, split test, commit {'c' * 40}, weight 1.0 |" in card.text
    assert cell(card.text, "masked loss at step 8").startswith("2.5000")
    assert cell(card.text, "masked accuracy at step 8") == "0.2500"
    assert cell(card.text, "lowest masked loss so far, at step 4") == "2.0000"
    assert cell(card.text, "steps done").startswith("9, 2 of them skipped")
    assert cell(card.text, "time").startswith("1 h 30 min, ")
    assert cell(card.text, "hardware") == "8 x GPU" and cell(card.text, "launch") == "DeepSpeed ZeRO-2, bf16"
    assert cell(card.text, "deepspeed") and cell(card.text, "tokenizer") == "words"
    assert json.dumps(card.data.to_dict()["model-index"][0]["results"]).count("held-out documents") == 1
