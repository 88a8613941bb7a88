# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Transformers' Trainer: each head's loss on one process, on two and under accumulation; evaluation and resuming."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from head_tasks import HEAD_TASKS, head_batch, head_examples, head_model, number_of_labels
from transformers import EvalPrediction, Trainer, TrainingArguments

from modeling_luna import LunaForSequenceClassification


SCRIPT = Path(__file__).parent / "trainer_two_ranks.py"
specification = importlib.util.spec_from_file_location("trainer_two_ranks", SCRIPT)
trainer_two_ranks = importlib.util.module_from_spec(specification)
specification.loader.exec_module(trainer_two_ranks)

each_task = pytest.mark.parametrize("task", HEAD_TASKS)


def train_by_hand(task: str) -> dict:
    """The same steps without the Trainer, each on all its rows at once."""
    model = head_model(task).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=trainer_two_ranks.LEARNING_RATE)
    losses = []
    for step in range(trainer_two_ranks.STEPS):
        rows = trainer_two_ranks.ROWS
        loss = model(**head_batch(task, step * rows, (step + 1) * rows)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return {"losses": losses, "parameters": model.state_dict()}


def assert_same_training(result: dict, expected: dict):
    assert result["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    torch.testing.assert_close(result["parameters"], expected["parameters"], atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory, subprocess_environment: dict[str, str]) -> dict:
    folder = tmp_path_factory.mktemp("trainer")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    path = os.pathsep.join((subprocess_environment["PYTHONPATH"], str(SCRIPT.parents[1])))
    process = subprocess.run(
        [*launch, str(SCRIPT), str(folder)],
        env=subprocess_environment | {"PYTHONPATH": path, "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return torch.load(folder / "trained.pt", weights_only=True)


@pytest.mark.parametrize("task", ["masked_lm", "masked_lm_sparse", "token"])
def test_micro_batches_have_different_numbers_of_labels(task: str):
    counts = [number_of_labels(head_batch(task, first, first + 2)) for first in range(0, 12, 2)]
    assert all(first != second for first, second in zip(counts[::2], counts[1::2], strict=True))


@each_task
@pytest.mark.parametrize("accumulation", [1, 4])
def test_one_process(tmp_path: Path, task: str, accumulation: int):
    batch_size = trainer_two_ranks.ROWS // accumulation
    result = trainer_two_ranks.train(task, tmp_path, batch_size, accumulation)
    assert_same_training(result, train_by_hand(task))


@pytest.mark.slow
@each_task
def test_two_processes(two_ranks: dict, task: str):
    assert_same_training(two_ranks[task], train_by_hand(task))


def arguments(folder: Path, **fields) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        learning_rate=3e-3,
        seed=1,
        disable_tqdm=True,
        **fields,
    )


@pytest.mark.parametrize("task", ["class", "masked_lm"])
def test_evaluation(tmp_path: Path, task: str):
    """Predictions are the logits alone, in the order of the examples."""
    found = []

    def accuracy(prediction: EvalPrediction) -> dict[str, float]:
        found.append(prediction)
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    model = head_model(task)
    trainer = Trainer(
        model,
        arguments(tmp_path, num_train_epochs=2, eval_strategy="epoch", save_strategy="no"),
        train_dataset=head_examples(task, 12),
        eval_dataset=head_examples(task, 12),
        compute_metrics=accuracy,
    )
    trainer.train()
    assert len([entry for entry in trainer.state.log_history if "eval_loss" in entry]) == 2
    metrics = trainer.evaluate()

    model.eval()
    with torch.no_grad():
        batches = [head_batch(task, first, first + 4) for first in (0, 4, 8)]
        outputs = [model(**batch) for batch in batches]
    np.testing.assert_allclose(
        found[-1].predictions, torch.cat([output.logits for output in outputs]).numpy(), atol=1e-5
    )
    assert metrics["eval_loss"] == pytest.approx(np.mean([output.loss.item() for output in outputs]), rel=1e-5)
    labels = torch.cat([batch["labels"] for batch in batches])
    right = torch.cat([output.logits for output in outputs]).argmax(-1) == labels
    assert metrics["eval_accuracy"] == pytest.approx(right.float().mean().item())


@pytest.mark.parametrize("task", ["class", "classes", "masked_lm"])
def test_resuming_goes_on_as_if_there_had_been_no_stop(tmp_path: Path, task: str):
    def trainer(folder: Path, **fields) -> Trainer:
        return Trainer(
            head_model(task, **fields),
            arguments(folder, max_steps=5, save_steps=2, logging_steps=1),
            train_dataset=head_examples(task, 12),
        )

    whole = trainer(tmp_path / "whole")
    whole.train()
    # Other weights, which those of the checkpoint take the place of.
    resumed = trainer(tmp_path / "resumed", initializer_range=0.01)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))

    losses = [
        {entry["step"]: entry["loss"] for entry in t.state.log_history if "loss" in entry} for t in (whole, resumed)
    ]
    assert list(losses[0]) == list(losses[1]) == [1, 2, 3, 4, 5]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), atol=1e-6, rtol=1e-6)


def test_best_model_is_loaded_and_predicts(tmp_path: Path):
    """Saved with its labels, the best checkpoint is a model by itself."""
    examples = head_examples("class", 12)
    trainer = Trainer(
        head_model("class"),
        arguments(
            tmp_path, num_train_epochs=3, eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True
        ),
        train_dataset=examples,
        eval_dataset=examples,
    )
    trainer.train()
    trainer.save_model()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.state.best_metric == min(losses)
    assert min(losses) < losses[0]

    predictions = trainer.predict(examples).predictions
    loaded = LunaForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.problem_type == "single_label_classification"
    with torch.no_grad():
        logits = loaded(**head_batch("class", 0, 12)).logits
    np.testing.assert_allclose(predictions, logits.numpy(), atol=1e-5)
