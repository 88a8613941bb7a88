"""Checkpoints: whole or not there, loadable anywhere, and resumed only by the same run."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from run_records import timeless
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, EvalPrediction, Trainer, TrainingArguments

from common.errors import STOPPED, Stopped
from modeling_luna import LunaForMaskedLM
from pretrain.checkpointing.folders import ResumeError, find_checkpoints, find_damage, read_state
from pretrain.data.tokenizer import load_tokenizer


SENTENCE = "Number 5 begins a text of some<mask> words."
LOADED_ELSEWHERE = """
import json, sys
import modeling_luna
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

folder = sys.argv[1]
model, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
fill = pipeline("fill-mask", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))
answers = fill(sys.argv[2])
print(json.dumps({
    "class": type(model).__name__,
    "problems": [name for names in info.values() for name in names],
    "answers": [[answer["token_str"], answer["score"]] for answer in answers],
}))
"""


def steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("checkpoint-")) for path in find_checkpoints(folder)]


@pytest.mark.slow
def test_saved_model_fills_masks_in_a_fresh_process(run: Callable, train: Callable, python: Callable, tmp_path: Path):
    metrics = train(run())
    weights = [tmp_path / folder / "model.safetensors" for folder in ("checkpoint-12", "model")]
    assert weights[0].read_bytes() == weights[1].read_bytes()

    finished = python("-c", LOADED_ELSEWHERE, tmp_path / "model", SENTENCE)
    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout.splitlines()[-1])
    assert result["class"] == "LunaForMaskedLM"
    assert result["problems"] == []
    model = LunaForMaskedLM.from_pretrained(tmp_path / "model")
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    encoded = tokenizer(SENTENCE, return_tensors="pt")
    place = encoded["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    best = model(**encoded).logits[0, place].softmax(dim=-1).topk(5)
    assert [word for word, _ in result["answers"]] == [tokenizer.decode([token]) for token in best.indices]
    assert [score for _, score in result["answers"]] == pytest.approx(best.values.tolist(), rel=1e-4)

    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n") and "pipeline_tag: fill-mask" in card.split("---")[1]
    assert f"{metrics[-1]['validation_loss']:.4f}" in card


def evaluate_as_run_mlm_does(folder: Path, rows: list[dict], output_dir: Path) -> tuple[dict, EvalPrediction]:
    """Metrics and predictions of Transformers' Trainer with the two functions of its masked-LM example."""
    found = []

    def accuracy(prediction: EvalPrediction) -> dict[str, float]:
        found.append(prediction)
        labels, predictions = prediction.label_ids.reshape(-1), prediction.predictions.reshape(-1)
        known = labels != -100
        return {"accuracy": float((predictions[known] == labels[known]).mean())}

    trainer = Trainer(
        AutoModelForMaskedLM.from_pretrained(folder),
        TrainingArguments(output_dir=str(output_dir), use_cpu=True, per_device_eval_batch_size=2, disable_tqdm=True),
        eval_dataset=rows,
        compute_metrics=accuracy,
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(dim=-1),
    )
    return trainer.evaluate(), found[0]


@pytest.mark.slow
def test_saved_model_under_the_trainer_of_transformers(run: Callable, train: Callable, tmp_path: Path):
    """What the run wants of its model, logits at the predicted tokens alone, is not what is saved."""
    train(run(model={"sparse_prediction": True}, max_steps=4, warmup_steps=2, weight_averaging="exponential"))
    for folder in ("checkpoint-4", "model"):
        assert json.loads((tmp_path / folder / "config.json").read_text())["sparse_prediction"] is False

    tokenizer = load_tokenizer(str(tmp_path / "model"))
    ids = [tokenizer(SENTENCE, truncation=True, max_length=length)["input_ids"] for length in (20, 14, 8, 17)]
    rows = []
    for row in ids:
        labels = [token if place % 3 == 1 else -100 for place, token in enumerate(row)]
        padding = max(map(len, ids)) - len(row)
        rows.append(
            {
                "input_ids": row + [tokenizer.pad_token_id] * padding,
                "attention_mask": [1] * len(row) + [0] * padding,
                "labels": labels + [-100] * padding,
            }
        )
    metrics, prediction = evaluate_as_run_mlm_does(tmp_path / "model", rows, tmp_path / "trainer")
    assert prediction.predictions.shape == prediction.label_ids.shape

    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "model")
    batches = [{name: torch.tensor([row[name] for row in rows[i : i + 2]]) for name in rows[0]} for i in (0, 2)]
    with torch.no_grad():
        outputs = [model(**batch) for batch in batches]
    assert metrics["eval_loss"] == pytest.approx(sum(output.loss.item() for output in outputs) / 2, rel=1e-5)
    best = torch.cat([output.logits.argmax(dim=-1) for output in outputs])
    labels = torch.cat([batch["labels"] for batch in batches])
    assert metrics["eval_accuracy"] == pytest.approx((best == labels)[labels != -100].float().mean().item())


@pytest.mark.slow
def test_run_with_sparse_prediction_goes_on_as_if_not_stopped(run: Callable, train: Callable, tmp_path: Path):
    def losses(config) -> dict[int, float]:
        return {record["step"]: record["loss"] for record in train(config) if "loss" in record}

    config = run(model={"sparse_prediction": True})
    whole = losses(config)
    for folder in ("checkpoint-12", "model"):
        shutil.rmtree(tmp_path / folder)
    assert losses(config) == whole


@pytest.mark.slow
def test_each_checkpoint_holds_model_tokenizer_card_and_progress(run: Callable, train: Callable, tmp_path: Path):
    train(run(save_total_limit=None))
    assert steps(tmp_path) == [4, 8, 12]
    for step in (4, 8, 12):
        folder = tmp_path / f"checkpoint-{step}"
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"):
            assert (folder / name).stat().st_size > 0
        progress = json.loads((folder / "training_state" / "progress.json").read_text(encoding="utf-8"))
        assert progress["progress"]["step"] == step
    first, last = (load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors") for step in (4, 12))
    assert first.keys() == last.keys()
    # No loss reaches the last norm of the packed sequence.
    assert {name for name in first if (first[name] == last[name]).all()} == {
        "luna.layers.1.packed_layer_norm.weight",
        "luna.layers.1.packed_layer_norm.bias",
    }
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_umask_decides_who_may_read(run: Callable, train: Callable, tmp_path: Path):
    before = os.umask(0o027)
    try:
        train(run(max_steps=5))
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]
    assert {path.parent.name for path in files} >= {"checkpoint-5", "training_state", "model"}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}


@pytest.mark.slow
def test_old_checkpoints_are_deleted_over_the_limit(run: Callable, train: Callable, tmp_path: Path):
    train(run(save_total_limit=2))
    assert steps(tmp_path) == [8, 12]


@pytest.mark.slow
def test_multiples_of_keep_every_and_the_best_checkpoint_stay(run: Callable, train: Callable, tmp_path: Path):
    metrics = train(run(max_steps=32, save_total_limit=1, keep_every=12, learning_rate=2e-2, eval_steps=8))
    losses = {record["step"]: record["validation_loss"] for record in metrics if "validation_loss" in record}
    best = min(losses, key=losses.get)
    assert steps(tmp_path) == sorted({12, 24, 32, best})


@pytest.mark.slow
def test_partial_checkpoint_is_ignored_and_replaced(run: Callable, train: Callable, tmp_path: Path, capsys):
    expected = train(run())
    shutil.rmtree(tmp_path / "checkpoint-8")
    # What a kill in the middle of the save at step 12 leaves.
    (tmp_path / "checkpoint-12").rename(tmp_path / "checkpoint-12.partial")
    (tmp_path / "checkpoint-12.partial" / "training_state" / "optimizer.safetensors").unlink()
    (tmp_path / "checkpoint-3.deleted.partial").mkdir()  # a deletion that was cut short
    capsys.readouterr()
    metrics = train(run())
    assert "Going on from step 4 of 12" in capsys.readouterr().out
    assert steps(tmp_path) == [4, 8, 12]
    assert (tmp_path / "checkpoint-12" / "training_state" / "optimizer.safetensors").exists()
    assert not list(tmp_path.glob("*.partial"))
    assert [record.get("loss") for record in metrics] == [record.get("loss") for record in expected]


@pytest.mark.slow
def test_run_on_text_that_has_changed_is_refused(run: Callable, train: Callable, sentences: Callable, tmp_path: Path):
    text = sentences(tmp_path / "text.txt", documents=20)
    config = run(max_steps=5, data=str(text))
    train(config)
    sentences(text, documents=21)
    with pytest.raises(ResumeError, match="checkpoint-5 was trained on other data"):
        train(config)


@pytest.mark.slow
def test_saved_tokenizer_has_the_row_length_of_its_run(build_config: Callable, train: Callable, tmp_path: Path):
    """Both runs share prepared data, which do not depend on the length of rows."""
    for length in (16, 32):
        train(build_config(tmp_path / str(length), max_steps=5, max_length=length))
        assert load_tokenizer(str(tmp_path / str(length) / "model")).model_max_length == length


@pytest.mark.slow
def test_fewer_steps_than_done_are_refused(run: Callable, train: Callable):
    train(run(max_steps=6))
    with pytest.raises(ResumeError, match=r"has done 6 steps, more than max_steps .* allow \(5\)"):
        train(run(max_steps=5))


def test_checkpoint_of_another_model_is_refused(run: Callable, train: Callable, tmp_path: Path):
    train(run(max_steps=5))
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(ResumeError, match="checkpoint-5 is of another model: luna.*is of the shape"):
        train(run(max_steps=6, model={"intermediate_size": 48}))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.slow
def test_signal_makes_a_checkpoint_and_ends_the_run(
    run: Callable, train: Callable, start: Callable, python: Callable, write_config: Callable, tmp_path: Path, number
):
    """Also where all processes get it, as from `timeout` or SLURM."""
    changes = {"max_steps": 400, "save_steps": 0, "eval_steps": 0, "logging_steps": 1, "dataloader_num_workers": 1}
    config = write_config(run(**changes, output_dir=str(tmp_path / "run")), tmp_path / "run.yaml")
    metrics = tmp_path / "run" / "metrics.jsonl"
    with start("pretrain/run_mlm.py", config) as process:
        while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 3):
            time.sleep(0.02)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in (*map(int, workers), process.pid):
            os.kill(pid, number)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == STOPPED and workers, errors
    (step,) = steps(tmp_path / "run")
    assert step < 400 and f"Stopped at step {step} of 400 with a checkpoint" in output
    assert json.loads(metrics.read_text().splitlines()[-1])["step"] == step


@pytest.mark.slow
def test_signal_during_preparation_ends_the_run_at_once(
    run: Callable, start: Callable, sentences: Callable, write_config: Callable, tmp_path: Path
):
    text = sentences(tmp_path / "text.txt", documents=30_000)
    changes = {"data": str(text), "prepared_dir": str(tmp_path / "prepared"), "num_proc": 2}
    config = write_config(run(**changes, output_dir=str(tmp_path / "run")), tmp_path / "run.yaml")
    with start("pretrain/run_mlm.py", config) as process:
        for line in process.stdout:
            if line.startswith("Reading"):
                break
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert not steps(tmp_path / "run") and not list((tmp_path / "prepared").glob("*/manifest.json"))


@pytest.mark.slow
def test_signal_to_the_launcher_of_two_processes(
    run: Callable, start: Callable, write_config: Callable, tmp_path: Path
):
    changes = {"max_steps": 2000, "save_steps": 0, "eval_steps": 0, "logging_steps": 1}
    config = write_config(run(**changes, output_dir=str(tmp_path / "run")), tmp_path / "run.yaml")
    launcher = ("-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/cpu_2_processes.yaml")
    metrics = tmp_path / "run" / "metrics.jsonl"
    with start(*launcher, "pretrain/run_mlm.py", config) as process:
        while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 3):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    (step,) = steps(tmp_path / "run")
    assert step < 2000 and find_damage(tmp_path / "run" / f"checkpoint-{step}") is None, errors
    with FileLock(tmp_path / "run" / ".lock", timeout=0):  # no process is left that trains
        pass


@pytest.mark.slow
def test_best_step_is_that_of_a_checkpoint(run: Callable, train: Callable, tmp_path: Path):
    train(run(max_steps=30, save_steps=10, eval_steps=3, save_total_limit=1, learning_rate=2e-2))
    for step in steps(tmp_path):
        progress = read_state(tmp_path / f"checkpoint-{step}")["progress"]
        assert progress["best_step"] == 30  # the only step that is evaluated and saved
    assert steps(tmp_path) == [30]


@pytest.mark.slow
def test_limit_of_time_makes_a_checkpoint_and_the_run_goes_on(run: Callable, train: Callable, tmp_path: Path):
    expected = train(run(output_dir=str(tmp_path / "whole")))
    for step in (3, 6):  # the request of the first step is known when the third begins
        with pytest.raises(Stopped, match=f"Stopped at step {step} of 12"):
            train(run(max_time="00:00:00", output_dir=str(tmp_path / "run")))
    metrics = train(run(output_dir=str(tmp_path / "run")))
    assert [(r["step"], r.get("loss")) for r in metrics] == [(r["step"], r.get("loss")) for r in expected]


@pytest.mark.slow
def test_stops_leave_no_trace_in_the_metrics(run: Callable, train: Callable, tmp_path: Path):
    """Neither a record of their own nor a mean over fewer steps, wherever they come: here at 3, 6 and 9."""
    values = {"logging_steps": 5, "save_steps": 0, "eval_steps": 6, "model": {"hidden_dropout_prob": 0.1}}
    expected = train(run(**values, output_dir=str(tmp_path / "whole")))
    for step in (3, 6, 9):
        with pytest.raises(Stopped, match=f"Stopped at step {step} of 12"):
            train(run(**values, max_time="00:00:00", output_dir=str(tmp_path / "run")))
    metrics = train(run(**values, output_dir=str(tmp_path / "run")))
    assert [(record["step"], "loss" in record) for record in metrics] == [
        *[(5, True), (6, False), (10, True), (12, True), (12, False)]
    ]
    assert timeless(metrics) == timeless(expected)
    card = (tmp_path / "run" / "checkpoint-9" / "README.md").read_text(encoding="utf-8")
    assert "tokens seen | 4,5" in card  # of 9 x 16 x 32 places, a few of them padding


def test_folder_of_a_run_that_goes_on_is_refused(run: Callable, train: Callable, tmp_path: Path):
    with FileLock(tmp_path / ".lock"), pytest.raises(ResumeError, match=f"Another process trains into {tmp_path}"):
        train(run())
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    "kilobytes", [pytest.param(120, marks=pytest.mark.slow), 400, pytest.param(560, marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_full_disk_while_saving(
    build_config: Callable, small_disk: Callable, write_config: Callable, tmp_path: Path, kilobytes: int
):
    """The disk ends within the weights, within the state of the optimiser, or at the second checkpoint."""
    config = build_config(tmp_path / "small" / "run", max_steps=9, save_steps=3, eval_steps=0)
    finished, left = small_disk(kilobytes, "pretrain/run_mlm.py", write_config(config, tmp_path / "run.yaml"))
    assert finished.returncode == 2, finished.stderr
    assert "Traceback" not in finished.stderr
    assert finished.stderr.count("\nerror: ") == 1
    assert "the disk is full" in finished.stderr and "--output_dir" in finished.stderr
    folders = {path.split("/")[1] for path in left if path.count("/") > 1}
    assert not any("partial" in folder for folder in folders)
    for folder in folders:
        assert f"run/{folder}/training_state/progress.json" in left
