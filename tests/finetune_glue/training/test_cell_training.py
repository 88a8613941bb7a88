"""A cell from end to end: what it learns and leaves, that it can be repeated, on several processes, and errors."""

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from glue_folder import write_glue_folder
from safetensors.torch import load_file, save_file
from tiny_masked_models import ARCHITECTURES, build, build_wordpiece, save, train_bpe
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from benchmarks.finetuning import measure_speed
from common.checksums import hash_file
from common.errors import UserError
from experiments.cells import Cell
from finetune_glue.data.encoding import encode
from finetune_glue.data.task_data import TaskData, load_task
from finetune_glue.data.tasks import TASKS, Task
from finetune_glue.training import training
from finetune_glue.training.cell_trainer import CellTrainer
from finetune_glue.training.settings import Hyperparameters
from finetune_glue.training.starting_model import check_starting_model, load_starting_model
from finetune_glue.training.training import run_cell


SCRIPT = Path(__file__).parent / "cell_two_ranks.py"
specification = importlib.util.spec_from_file_location("cell_two_ranks", SCRIPT)
cell_two_ranks = importlib.util.module_from_spec(specification)
specification.loader.exec_module(cell_two_ranks)

PEERS = ("luna", "roberta", "bert", "modernbert", "distilbert", "nystromformer")
VARYING = ("seconds", "tokens_per_second", "xxh3")
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LEARNS = {
    "learning_rate": 1e-2,
    "num_train_epochs": 10.0,
    "batch_size": 8,
    "max_grad_norm": 1.0,
    "model": NO_DROPOUT,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GLUE's files in `glue`, and a tiny model of each architecture."""
    folder = tmp_path_factory.mktemp("cells")
    write_glue_folder(folder / "glue", rows=49)  # the last of 16 has a batch of its own
    texts = [path.read_text(encoding="utf-8") for path in sorted((folder / "glue").rglob("*.tsv"))]
    tokenizers = {"bpe": train_bpe(texts), "wordpiece": build_wordpiece(texts)}
    for name in PEERS:
        tokenizer = tokenizers[ARCHITECTURES[name][1]]
        save(folder / name, build(name, tokenizer), tokenizer)
    return folder


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Callable[..., dict]:
    """Fine-tune a model on a task; the cell is in `tmp_path / into`."""

    def run(
        task: str | Task,
        encoder: str | Path = "luna",
        seed: int = 1,
        into: str = "cell",
        data: TaskData | None = None,
        options: dict | None = None,
        **hyperparameters,
    ) -> dict:
        task = TASKS[task] if isinstance(task, str) else task
        values = {"learning_rate": 1e-3, "num_train_epochs": 2.0, "batch_size": 16, "max_length": 48} | hyperparameters
        (tmp_path / into).mkdir(parents=True, exist_ok=True)
        model = str(folder / encoder)
        cell = Cell(task, model, Path(model).name, "default", Hyperparameters(**values), seed, tmp_path / into)
        return run_cell(cell, data or load_task(task, str(folder / "glue")), **(options or {}))

    return run


def predictions(path: Path) -> list[str]:
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    assert header == "index\tprediction"
    assert [int(line.split("\t")[0]) for line in lines] == list(range(len(lines)))
    return [line.split("\t")[1] for line in lines]


def test_what_a_cell_learns_and_leaves(run: Callable, folder: Path, tmp_path: Path):
    progress = []
    result = run("rte", options={"on_progress": lambda *steps: progress.append(steps)}, **LEARNS)
    assert result["score"] == result["metrics"]["validation"]["accuracy"] > 0.9
    assert result["steps"] == 70
    assert result["weights"] == {"model.safetensors": hash_file(tmp_path / "cell" / "model" / "model.safetensors")}
    assert [steps for what, *steps in progress if what == "training"] == [[step, 70] for step in range(1, 71)]
    assert {what for what, *_ in progress} == {
        *("loading the model", "training", "evaluation"),
        *(f"tokenising {split}" for split in ("train", "validation", "test")),
    }
    assert [steps for what, *steps in progress if what == "evaluation"][-1] == [1, 1]
    assert result["rows"] == {"train": 49, "validation": 24, "test": 12}
    assert result["truncated"] == {"train": 0, "validation": 0, "test": 0}
    assert 0 <= result["padding_share"]["grouped"] < result["padding_share"]["random"]
    assert result["tokens_per_second"] > 0 and result["seconds"] > 0
    assert (result["model_type"], result["data"]) == ("luna", str(folder / "glue"))

    cell = tmp_path / "cell"
    assert {path.name for path in cell.iterdir()} == {"log.jsonl", "model", "predictions", "result.json"}
    assert not [path for path in cell.rglob("*") if "optim" in path.name or "checkpoint" in path.name]
    assert json.loads((cell / "result.json").read_text(encoding="utf-8")).keys() == result.keys()
    losses = [record["loss"] for record in log_of(cell) if "loss" in record]
    assert len(losses) == 70 and losses[-1] < 0.5 * losses[0]

    # The saved model is the one that was judged, and knows the names of its labels.
    data = load_task(TASKS["rte"], str(folder / "glue"))
    classify = pipeline("text-classification", model=str(cell / "model"))
    pairs = data.splits["validation"]
    found = [
        classify({"text": first, "text_pair": second})["label"]
        for first, second in zip(pairs["sentence1"][:], pairs["sentence2"][:], strict=True)
    ]
    assert found == predictions(cell / "predictions" / "validation.tsv")
    right = [TASKS["rte"].labels[label] for label in pairs["label"]]
    accuracy = np.mean([one == other for one, other in zip(found, right, strict=True)])
    assert accuracy == pytest.approx(result["score"])
    assert len(predictions(cell / "predictions" / "test.tsv")) == 12


@pytest.mark.slow
def test_the_same_again_bit_by_bit(run: Callable, folder: Path, tmp_path: Path):
    """With dropout; another seed gives another head, order and result."""
    results = [run("cola", seed=seed, into=into) for into, seed in (("first", 1), ("second", 1), ("third", 2))]
    first, second, third = ({key: value for key, value in result.items() if key not in VARYING} for result in results)
    assert first == second and first["history"] != third["history"]
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("first", "second")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    heads = [
        load_starting_model(str(folder / "luna"), TASKS["cola"], {}, seed).model.classifier.dense.weight
        for seed in (1, 1, 2)
    ]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


@pytest.mark.slow
def test_rows_are_tokenised_once_for_all_seeds(run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also for other settings and for fresh weights; the results are those of cells that tokenise on their own."""
    encoded: dict = {}
    calls = []
    monkeypatch.setattr(training, "encode", lambda *given: calls.append(given[1:2] + given[3:4]) or encode(*given))
    short = {"max_steps": 2, "max_length": 34}  # some rows are cut
    run("rte", into="first", options={"encoded": encoded}, **short)
    shared = run("rte", seed=2, into="shared", options={"encoded": encoded}, **short)
    run("rte", into="other", options={"encoded": encoded}, learning_rate=1e-2, **short)
    assert calls == [("train", 34), ("validation", 34), ("test", 34)]
    alone = run("rte", seed=2, into="alone", **short)
    assert {key: value for key, value in shared.items() if key not in VARYING} == {
        key: value for key, value in alone.items() if key not in VARYING
    }
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "shared/model" / name).read_bytes() == (tmp_path / "alone/model" / name).read_bytes()
    calls.clear()
    run("rte", options={"encoded": encoded}, max_steps=1, max_length=30)
    run("rte", "roberta", options={"encoded": encoded}, max_steps=1, max_length=30)
    run("cola", options={"encoded": encoded}, max_steps=1, max_length=30)
    assert len(calls) == 9


@pytest.mark.parametrize("model", PEERS)
def test_any_encoder_on_pairs_and_numbers(run: Callable, model: str, tmp_path: Path):
    for task in ("mrpc", "stsb"):
        result = run(task, model, into=task, max_steps=4)
        assert result["model_type"] == model and np.isfinite(result["score"])
        AutoModelForSequenceClassification.from_pretrained(tmp_path / task / "model")
    assert set(result["metrics"]["validation"]) == {"pearson", "spearman", "loss"}
    numbers = [float(value) for value in predictions(tmp_path / "stsb" / "predictions" / "test.tsv")]
    assert len(numbers) == 12 and len(set(numbers)) > 1


@pytest.mark.slow
def test_a_regression_learns(run: Callable):
    result = run("stsb", **LEARNS)
    assert result["score"] > 0.8
    values = result["metrics"]["validation"]
    assert result["score"] == pytest.approx((values["pearson"] + values["spearman"]) / 2)


def test_mnli_has_two_validation_splits_and_diagnostics(run: Callable, folder: Path, tmp_path: Path):
    diagnostics = load_task(TASKS["ax"], str(folder / "glue"))
    result = run("mnli", options={"diagnostics": [diagnostics], "save_model": False})
    metrics = result["metrics"]
    assert result["score"] == metrics["validation_matched"]["accuracy"]
    assert metrics["validation_matched"] != metrics["validation_mismatched"]
    assert all("accuracy" in entry for entry in result["history"])
    files = {path.stem for path in (tmp_path / "cell" / "predictions").iterdir()}
    splits = {f"{kind}_{place}" for kind in ("validation", "test") for place in ("matched", "mismatched")}
    assert files == splits | {"ax"}
    found = predictions(tmp_path / "cell" / "predictions" / "ax.tsv")
    assert len(found) == 12 and set(found) <= set(TASKS["mnli"].labels)
    assert not (tmp_path / "cell" / "model").exists()
    assert set(metrics["ax"]) == {"matthews_correlation", "loss"}


@pytest.mark.parametrize("model", ["luna", "bert"])
@pytest.mark.slow
def test_multiple_choice(run: Callable, model: str, tmp_path: Path):
    """The right choice is the one with the word of the question."""
    labels = ("A", "B", "C")
    task = dataclasses.replace(
        TASKS["rte"],
        name="reading",
        problem="multiple_choice",
        text_columns=("question",),
        choice_columns=("choice0", "choice1", "choice2"),
        labels=labels,
        label_names=labels,
    )
    generator = np.random.default_rng(0)

    def split(rows: int) -> datasets.Dataset:
        names = (*task.text_columns, *task.choice_columns, "label", "index")
        columns: dict[str, list] = {name: [] for name in names}
        for row in range(rows):
            label = int(generator.integers(3))
            columns["question"].append("which is good")
            for choice in range(3):
                columns[f"choice{choice}"].append("it is good" if choice == label else "it is bad bad")
            columns["label"].append(label)
            columns["index"].append(row)
        return datasets.Dataset.from_dict(columns)

    data = TaskData(task, {"train": split(64), "validation": split(20)}, "here")
    result = run(task, model, data=data, **LEARNS)
    assert result["score"] > 0.9
    right = [labels[label] for label in data.splits["validation"]["label"]]
    found = predictions(tmp_path / "cell" / "predictions" / "validation.tsv")
    assert np.mean([one == other for one, other in zip(found, right, strict=True)]) == pytest.approx(result["score"])


def test_steps_are_those_of_a_bare_loop(folder: Path, tmp_path: Path):
    """Loss, optimiser and schedule: the same weights in the end, over an epoch's end."""
    hyperparameters = Hyperparameters(learning_rate=1e-3, batch_size=16, max_steps=6, weight_decay=0.0)
    data = load_task(TASKS["rte"], str(folder / "glue"))
    weights = []
    for by_trainer in (True, False):
        start = load_starting_model(str(folder / "luna"), TASKS["rte"], NO_DROPOUT, seed=1)
        rows = encode(data, "train", start.tokenizer, 48, start.vocab_size)
        if by_trainer:
            trainer = CellTrainer(start, TASKS["rte"], rows, None, hyperparameters, measure_speed.SEED, tmp_path)
            trainer.train()
        else:
            batches = measure_speed.first_batches(rows, hyperparameters)
            assert sorted(map(len, batches)) == [1, 16, 16, 16, 16, 16]
            measure_speed.time_bare_loop(start, TASKS["rte"], rows, hyperparameters, batches)
        weights.append(start.model.state_dict())
    torch.testing.assert_close(weights[0], weights[1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("task", ["rte", "stsb"])
@pytest.mark.slow
def test_accumulation_gives_the_same_curve(run: Callable, task: str, tmp_path: Path):
    for limit in (None, 3):
        # With so large an epsilon, gradients of another size give other steps.
        options = {"per_device_train_batch_size": limit}
        run(task, into=f"limit {limit}", options=options, model=NO_DROPOUT, adam_epsilon=1e-2)
    assert_same_curve(tmp_path / "limit None", tmp_path / "limit 3")


def assert_same_curve(first: Path, second: Path):
    """The losses of all steps, all evaluations and the final metrics of two cells agree within 1e-4."""
    results = [json.loads((folder / "result.json").read_text(encoding="utf-8")) for folder in (first, second)]
    curves = [
        [
            *({"loss": record["loss"]} for record in log_of(folder) if "loss" in record),
            *result["history"],
            *result["metrics"].values(),
            {name: result[name] for name in ("steps", "best_step")},
        ]
        for folder, result in zip((first, second), results, strict=True)
    ]
    assert len(curves[0]) > results[0]["steps"]
    for one, other in zip(*curves, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["rte", "stsb"])
def test_two_processes_give_the_same_curve(folder: Path, tmp_path: Path, task: str):
    cell_two_ranks.run(folder / "luna", folder / "glue", tmp_path / "alone", task)
    root = SCRIPT.parents[3]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    process = subprocess.run(
        [*launch, str(folder / "luna"), str(folder / "glue"), str(tmp_path / "together"), task],
        env=os.environ | {"PYTHONPATH": str(root), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    assert_same_curve(tmp_path / "alone", tmp_path / "together")
    for split in ("validation", "test"):
        alone, together = (
            predictions(tmp_path / name / "predictions" / f"{split}.tsv") for name in ("alone", "together")
        )
        if task == "stsb":
            np.testing.assert_allclose(np.array(alone, dtype=float), np.array(together, dtype=float), atol=1e-3)
        else:
            assert alone == together
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("alone", "together")]
    torch.testing.assert_close(weights[0], weights[1], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("best", [True, False])
@pytest.mark.slow
def test_the_best_evaluation_or_the_last(run: Callable, best: bool):
    """The first with the highest score, long before the end; its weights are those that are judged and saved."""
    result = run("cola", load_best_model_at_end=best, evaluations_per_epoch=2, **LEARNS)
    history = {entry["step"]: entry for entry in result["history"]}
    scores = {step: entry["matthews_correlation"] for step, entry in history.items()}
    step = max(scores, key=scores.__getitem__) if best else result["steps"]
    assert len(history) > 15 and max(history) == result["steps"] == 70
    assert result["best_step"] == step and (step < 70) == best
    assert result["score"] == scores[step]
    losses = [entry["loss"] for entry in history.values()]
    assert len(set(losses)) == len(losses)
    assert result["metrics"]["validation"]["loss"] == pytest.approx(history[step]["loss"], abs=1e-6)


def test_early_stopping(run: Callable):
    """Nothing changes at so low a rate: the third evaluation is the second without a better score."""
    result = run("cola", early_stopping_patience=2, learning_rate=1e-9, num_train_epochs=9.0)
    assert [entry["epoch"] for entry in result["history"]] == [1.0, 2.0, 3.0]
    assert result["steps"] == 12 and result["best_step"] == 4


def test_steps_and_the_last_evaluation(run: Callable):
    result = run("rte", max_steps=6, evaluations_per_epoch=2, num_train_epochs=50.0)
    assert result["steps"] == 6 and [entry["step"] for entry in result["history"]] == [2, 4, 6]


@pytest.mark.slow
def test_a_warm_up_longer_than_the_training_is_said(run: Callable, capsys: pytest.CaptureFixture):
    note = "warmup_steps is 7, but the training has 6 steps: it ends below the learning rate 0.001"
    assert note in run("rte", max_steps=6, warmup_steps=7.0)["notes"]
    assert f"    RTE: {note}\n" in capsys.readouterr().out
    for fitting in ({"warmup_steps": 6.0}, {"warmup_steps": 7.0, "lr_scheduler_type": "constant"}):
        assert not [note for note in run("rte", max_steps=6, **fitting)["notes"] if "warmup" in note]
    assert "warmup_steps" not in capsys.readouterr().out


def test_rows_longer_than_the_positions(run: Callable):
    """RoBERTa's table has two rows more than it can use."""
    for encoder in ("luna", "roberta"):
        result = run("rte", encoder, into=encoder, max_length=512, max_steps=1)
        (note,) = [note for note in result["notes"] if "max_length" in note]
        assert note.startswith("max_length is 512, but the model has 64 positions")


def test_truncated_rows_are_counted(run: Callable, folder: Path):
    tokenizer = AutoTokenizer.from_pretrained(folder / "luna")
    rows = load_task(TASKS["rte"], str(folder / "glue")).splits["train"]
    lengths = [len(ids) for ids in tokenizer(rows["sentence1"][:], rows["sentence2"][:])["input_ids"]]
    assert min(lengths) < 34 < max(lengths)
    result = run("rte", max_length=34, max_steps=1)
    assert result["truncated"]["train"] == sum(length > 34 for length in lengths)


def test_fields_of_the_model(run: Callable, tmp_path: Path):
    """Those that an architecture has are set, and saved with it; the others are left out, which is said."""
    fields = {"hidden_dropout_prob": 0.25, "classifier_pooling": "mean", "activation_dropout": 0.1}
    assert not [note for note in run("rte", model=fields, max_steps=1)["notes"] if note.startswith("model.")]
    config = AutoConfig.from_pretrained(tmp_path / "cell" / "model")
    assert {name: getattr(config, name) for name in fields} == fields
    notes = run("rte", "roberta", model=fields, max_steps=1)["notes"]
    left_out = [note.split()[0] for note in notes if note.startswith("model.")]
    assert left_out == ["model.classifier_pooling", "model.activation_dropout"]
    assert AutoConfig.from_pretrained(tmp_path / "cell" / "model").hidden_dropout_prob == 0.25


@pytest.mark.parametrize("encoder", ["luna", "roberta", "bert", "modernbert"])
@pytest.mark.slow
def test_transfer_takes_the_encoder_and_not_the_head(run: Callable, folder: Path, tmp_path: Path, encoder: str):
    run("mnli", encoder, into="mnli", max_steps=2)
    source = tmp_path / "mnli" / "model"
    fresh = load_starting_model(str(folder / encoder), TASKS["rte"], {}, seed=5)
    start = load_starting_model(str(folder / encoder), TASKS["rte"], {}, seed=5, init_from=source)
    tuned = AutoModel.from_pretrained(source).state_dict()
    for name, values in start.model.base_model.state_dict().items():
        torch.testing.assert_close(values, tuned[name], atol=0, rtol=0)
    prefix = f"{start.model.base_model_prefix}."
    heads = [
        {name: values for name, values in one.model.state_dict().items() if not name.startswith(prefix)}
        for one in (fresh, start)
    ]
    assert all(torch.equal(values, heads[1][name]) for name, values in heads[0].items())
    assert start.model.config.num_labels == 2
    assert run("rte", encoder, options={"init_from": source}, max_steps=2)["steps"] == 2


def test_bf16(run: Callable):
    """Close to float32, in the loss at least, and recorded."""
    results = [run("rte", into=str(kind), options={"mixed_precision": kind}) for kind in ("no", "bf16")]
    assert [result["mixed_precision"] for result in results] == ["no", "bf16"]
    losses = [result["metrics"]["validation"]["loss"] for result in results]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], abs=0.05)


def test_predictions_that_are_all_the_same(run: Callable):
    result = run("cola", learning_rate=1e-9)
    assert result["score"] == 0.0
    assert any(note.startswith("validation: all predictions are the same") for note in result["notes"])


def test_a_loss_that_is_no_number(run: Callable, tmp_path: Path):
    with pytest.raises(UserError, match=r"loss is nan at step \d+ of 8: the training has diverged. Lower learning"):
        run("cola", learning_rate=1e30, warmup_steps=0.0)
    assert not (tmp_path / "cell" / "result.json").exists()
    assert (tmp_path / "cell" / "log.jsonl").stat().st_size > 0


def broken(source: Path, folder: Path, break_it: Callable[[Path], object]) -> Path:
    shutil.copytree(source, folder)
    break_it(folder)
    return folder


def without_tokenizer(folder: Path):
    for path in folder.glob("tokenizer*"):
        path.unlink()


def without_weights(folder: Path):
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file({name: values for name, values in weights.items() if "layers.1" not in name}, path, {"format": "pt"})


def cut_short(folder: Path):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def not_finite(folder: Path):
    weights = load_file(folder / "model.safetensors")
    weights["luna.embeddings.word_embeddings.weight"][3, 5] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def old_weights(folder: Path):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"not found" * 100)


def change(name: str, **values) -> Callable[[Path], object]:
    def change(folder: Path):
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(content | values), encoding="utf-8")

    return change


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (without_tokenizer, "the files of its tokenizer are not there"),
        (lambda folder: (folder / "config.json").unlink(), "model_type"),
        (change("config.json", model_type="vit"), "vit"),
        (change("config.json", model_type="no-such"), "trust_remote_code"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (without_weights, "weights of its encoder are not there"),
        (cut_short, "cannot be fine-tuned"),
        (not_finite, "it holds numbers that are not finite, in luna.embeddings.word_embeddings.weight."),
        (change("tokenizer_config.json", pad_token=None), "no padding token"),
        (
            change("config.json", vocab_size=99),
            r"embeddings.* has the shape .*, but by its config.* \(99, 32\)",
        ),
        (lambda folder: (folder / "config.json").write_text("null", encoding="utf-8"), "TypeError"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("[]", encoding="utf-8"), "AttributeError"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}", encoding="utf-8"), "KeyError: 'added_tokens'"),
        (old_weights, "its pickled weights are damaged"),
    ],
)
def test_a_folder_that_is_not_whole(run: Callable, folder: Path, tmp_path: Path, break_it: Callable, message: str):
    model = broken(folder / "luna", tmp_path / "model", break_it)
    with pytest.raises(UserError, match=message) as error:
        run("rte", model)
    with pytest.raises(UserError) as before:
        check_starting_model(str(model), TASKS["rte"], {}, trust_remote_code=False)
    assert str(before.value) == str(error.value)
    assert str(error.value).startswith(f"The model {model} cannot be fine-tuned: ")
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


def test_a_tokenizer_of_another_model(run: Callable, folder: Path, tmp_path: Path):
    """One that knows more tokens than the model embeds."""
    larger = AutoTokenizer.from_pretrained(folder / "luna")
    embedded = len(larger)
    larger.add_tokens(["surely"])
    model = broken(folder / "luna", tmp_path / "model", larger.save_pretrained)
    message = rf"rte, train, row \d+: the token 'surely' has the id {embedded}, but the model embeds {embedded} tokens"
    with pytest.raises(UserError, match=message):
        run("rte", model)


@pytest.mark.parametrize(("name", "message"), [("nobody/nothing", "connect"), ("no such model!", "neither a folder")])
def test_a_name_that_is_no_model(monkeypatch: pytest.MonkeyPatch, name: str, message: str):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=message):
        load_starting_model(name, TASKS["rte"], {}, seed=1)


def test_a_value_that_a_field_cannot_have(folder: Path):
    with pytest.raises(UserError, match=r"luna.*classifier_pooling"):
        load_starting_model(str(folder / "luna"), TASKS["rte"], {"classifier_pooling": "maen"}, seed=1)


def test_a_model_that_has_changed_since_the_call_began(folder: Path, tmp_path: Path):
    made_from = {"model": {"config.json": "", "model.safetensors": "of other weights"}}
    cell = Cell(
        TASKS["rte"], str(folder / "luna"), "m", "default", Hyperparameters(), 1, tmp_path, made_from=made_from
    )
    with pytest.raises(UserError, match="luna has changed while this call was running: it must be started again"):
        run_cell(cell, load_task(TASKS["rte"], str(folder / "glue")))
    assert not (tmp_path / "result.json").exists()


def test_fields_that_are_arguments_of_loading(run: Callable):
    notes = run("rte", model={"trust_remote_code": True, "return_unused_kwargs": False}, max_steps=1)["notes"]
    left_out = [note.split()[0] for note in notes if note.startswith("model.")]
    assert left_out == ["model.trust_remote_code", "model.return_unused_kwargs"]


def test_a_model_that_was_fine_tuned_on_other_labels(run: Callable, folder: Path, tmp_path: Path):
    run("mnli", into="mnli", max_steps=1)
    source = str(tmp_path / "mnli" / "model")
    first, second = (load_starting_model(source, TASKS["rte"], {}, seed).model.state_dict() for seed in (1, 2))
    tuned = AutoModel.from_pretrained(source).state_dict()
    assert all(torch.equal(first[f"luna.{name}"], values) for name, values in tuned.items())
    new = [name for name in first if not torch.equal(first[name], second[name])]
    assert new and not any(name.startswith("luna.") for name in new)


def test_an_architecture_without_a_head(folder: Path):
    choice = dataclasses.replace(TASKS["rte"], problem="multiple_choice")
    with pytest.raises(UserError, match="AutoModelForMultipleChoice has no class for the architecture vit"):
        load_starting_model(str(write_config(folder / "vit", "vit")), choice, {}, seed=1)


def write_config(folder: Path, model_type: str) -> Path:
    AutoConfig.for_model(model_type).save_pretrained(folder)
    return folder
