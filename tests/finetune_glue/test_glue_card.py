"""The card of a fine-tuned model: metadata that the Hub takes, figures of this very model, examples that run."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cell_folders import HYPERPARAMETERS, edit_result, own_task, write_cell, write_model
from huggingface_hub import ModelCard

from experiments.report import write_cards
from experiments.results import read_results
from finetune_glue.data.tasks import SUITE, TASKS, Source
from finetune_glue.model_card import model_card


ROOT = Path(__file__).parents[2]


def card_of(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "model/README.md")


def cell(card: str, name: str) -> str:
    """The rest of the row of a table that begins with a name."""
    return re.search(rf"^\| {re.escape(name)} \| (.*) \|$", card, re.MULTILINE)[1]


@pytest.fixture
def mrpc(tmp_path: Path) -> Path:
    """The folder of the best of three seeds."""
    for seed, shift in ((1, 0.0), (2, 0.02), (3, 0.01)):
        folder = write_cell(tmp_path, "mrpc", seed, {"accuracy": 0.8 + shift, "f1": 0.85 + shift})
        if seed == 2:
            (folder / "model").mkdir()
            best = folder
    return best


def test_metadata(mrpc: Path, tmp_path: Path):
    write_cards(read_results(tmp_path, SUITE), model_card, {("luna", "mrpc"): "me/luna-mrpc"})
    data = card_of(mrpc).data.to_dict()
    (model,) = data.pop("model-index")
    assert data == {
        "language": "en",
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["luna", "linear-attention", "glue"],
        "datasets": ["nyu-mll/glue"],
        "metrics": ["accuracy", "f1"],
    }  # the base model is a folder, which nobody else has
    assert model == {
        "name": "luna-mrpc",
        "results": [
            {
                "task": {"type": "text-classification"},
                "dataset": {
                    "name": "GLUE MRPC",
                    "type": "nyu-mll/glue",
                    "config": "mrpc",
                    "split": "validation",
                    "revision": "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c",
                },
                "metrics": [
                    {"type": "f1", "value": 0.87, "name": "F1"},
                    {"type": "accuracy", "value": 0.82, "name": "acc"},
                ],
            }
        ],
    }


def test_both_splits_of_mnli_are_results(tmp_path: Path):
    of_splits = {"validation_matched": {"accuracy": 0.7}, "validation_mismatched": {"accuracy": 0.71}}
    folder = write_cell(tmp_path, "mnli", 1, of_splits, model="FacebookAI-roberta", model_type="roberta")
    edit_result(folder, model="FacebookAI/roberta-base@main")
    (folder / "model").mkdir()
    write_cards(read_results(tmp_path, SUITE), model_card, {})
    card = card_of(folder)
    results = {result.dataset_split: result.metric_value for result in card.data.eval_results}
    assert results == {"validation_matched": 0.7, "validation_mismatched": 0.71}
    assert card.data.base_model == "FacebookAI/roberta-base" and card.data.tags == ["glue"]
    assert "luna" not in card.content.lower() and "wang2019glue" in card.text
    assert "An encoder of the type `roberta` of 1,234,567 parameters, fine-tuned on MNLI" in card.text


def test_figures_and_sections(mrpc: Path, tmp_path: Path):
    write_cards(read_results(tmp_path, SUITE), model_card, {})
    card = card_of(mrpc)
    assert re.findall(r"^## (.*)$", card.text, re.MULTILINE) == [
        *("Use", "Task and data", "Results", "Training", "Limits", "Versions", "Citation"),
    ]
    assert "| split | metric | this model | median ± standard deviation of 3 seeds |" in card.text
    assert cell(card.text, "validation | F1") == "87.0 | 86.0 ± 1.0"
    assert "This is the best of 3 seeds, judged by these very rows" in card.text
    assert cell(card.text, "train") == "1,000 | 3" and cell(card.text, "test") == "6 | 0"
    assert cell(card.text, "base model") == "`runs/luna/model`" and cell(card.text, "seed") == "2"
    assert cell(card.text, "learning_rate") == "2e-05" and cell(card.text, "torch") == "2.13.0"
    assert "| max_steps" not in card.text
    assert "gives one of the labels 0 (not_equivalent), 1 (equivalent)" in card.text
    assert "[nyu-mll/glue](https://huggingface.co/datasets/nyu-mll/glue), configuration mrpc, commit bcd" in card.text
    assert "ma2021luna" in card.text and "wang2019glue" in card.text
    assert not re.search(r"\b(None|nan)\b", card.content)
    assert not list(tmp_path.glob("cells/luna/mrpc/default/seed-1/model"))


def test_settings_are_told_of_the_chosen_one_alone(tmp_path: Path):
    folders = {}
    for setting, score in (("a", 0.6), ("b", 0.7)):
        values = HYPERPARAMETERS | {"model": {"classifier_pooling": "mean"}}
        folders[setting] = write_cell(
            *(tmp_path, "rte", 1, {"accuracy": score}), setting=setting, hyperparameters=values, init_from_task="mnli"
        )
        (folders[setting] / "model").mkdir()
    write_cards(read_results(tmp_path, SUITE), model_card, {("luna", "rte"): "me/x-rte"})
    chosen, other = card_of(folders["b"]), card_of(folders["a"])
    assert "the best of 2 settings" in chosen.text and "the best of" not in other.text
    assert 'model="me/x-rte"' in chosen.text and 'model="PATH_OR_ID"' in other.text
    assert cell(chosen.text, "model.classifier_pooling") == "mean"
    assert cell(chosen.text, "base model") == "`runs/luna/model`, fine-tuned on MNLI first"


def test_task_of_ones_own(tmp_path: Path):
    own = own_task(label_names=("rude", "polite"), source=Source())
    folder = write_cell(tmp_path, own, 1, {"accuracy": 0.75}, data="/home/somebody/secret/data", model="m")
    (folder / "model").mkdir()
    write_cards(read_results(tmp_path, SUITE, [own]), model_card, {})
    card = card_of(folder)
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.dataset_name, result.dataset_config) == ("polite", "Polite", None)
    assert card.data.datasets is None and card.data.language is None
    assert "somebody" not in card.content and "files in `data`" in card.text and "wang2019glue" not in card.text
    hub = dataclasses.replace(own, source=Source("org/politeness", None, {"validation": "dev"}))
    folder = write_cell(tmp_path / "hub", hub, 1, {"accuracy": 0.75}, data="org/politeness@abc123", model="m")
    (folder / "model").mkdir()
    write_cards(read_results(tmp_path / "hub", SUITE, [hub]), model_card, {})
    (result,) = card_of(folder).data.eval_results
    assert (result.dataset_type, result.dataset_split) == ("org/politeness", "dev")
    assert result.dataset_revision == "abc123"


# Arguments: the card, the folder of the model, which of the card's Python blocks to run, whether to hide the package.
RUN_EXAMPLE = """
import re, sys
card, folder, number, hide = sys.argv[1:]
if hide == "yes":
    class Hidden:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "modeling_luna":
                raise ModuleNotFoundError(name)
    sys.meta_path.insert(0, Hidden())
code = re.findall("```python\\n(.*?)```", open(card).read(), re.DOTALL)[int(number)]
exec(code.replace("PATH_OR_ID", folder))
"""


def run_example(folder: Path, number: int = 0, hide: bool = False) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", RUN_EXAMPLE, folder / "README.md", folder, str(number), "yes" if hide else "no"],
        env=os.environ
        | {"PYTHONPATH": "" if hide else str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")},
        cwd=folder.parent,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "model_type", "printed"),
    [
        ("rte", "luna", r"\{'label': '(not_)?entailment', 'score': [\d.]+\}"),
        ("cola", "roberta", r"\[\{'label': '(un)?acceptable', 'score': [\d.]+\}\]"),
        ("stsb", "luna", r"\{'label': 'LABEL_0', 'score': -?[\d.]+\}"),
        ("choice", "luna", r"choice [123]"),
    ],
)
def test_examples_run_in_a_fresh_process(tmp_path: Path, task: str, model_type: str, printed: str):
    described = dataclasses.replace(
        *(TASKS["rte"],),
        name="choice",
        problem="multiple_choice",
        text_columns=("question",),
        choice_columns=("a", "b", "c"),
        labels=("0", "1", "2"),
        label_names=(),
        metrics=("accuracy",),
        source=Source(),
    )
    own = described if task == "choice" else TASKS[task]
    metrics = dict.fromkeys(own.metrics, 0.5)
    folder = write_cell(tmp_path, own, 1, metrics, model=model_type, model_type=model_type)
    write_model(folder / "model", own, model_type)
    write_cards(read_results(tmp_path, SUITE, [own]), model_card, {})
    output = run_example(folder / "model")
    assert re.fullmatch(printed, output.strip().splitlines()[-1])
    if model_type == "luna":
        assert run_example(folder / "model", number=1, hide=True) == output
