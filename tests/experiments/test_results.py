"""What the cells of a run come to: statistics over seeds, best settings, GLUE averages, and what is not there."""

import json
import re
import shutil
import statistics
from pathlib import Path

import pytest
from cell_folders import own_task, write_cell, write_error

from common.files import write_json
from experiments.cell_folder import DamagedResult, read_result, write_result
from experiments.results import read_results
from finetune_glue.data.tasks import GLUE, SUITE, TASKS


def test_median_mean_and_deviation_of_a_sample(tmp_path: Path):
    for seed, (accuracy, f1) in enumerate([(0.80, 0.90), (0.70, 0.86), (0.84, 0.88), (0.60, 0.70)], start=1):
        write_cell(tmp_path, "mrpc", seed, {"accuracy": accuracy, "f1": f1})
    results = read_results(tmp_path, SUITE)
    group = results.best("luna", TASKS["mrpc"])
    accuracy, score = group.metric("validation", "accuracy"), group.score
    assert (accuracy.median, accuracy.mean, accuracy.n) == (pytest.approx(0.75), pytest.approx(0.735), 4)
    assert accuracy.std == pytest.approx((sum((x - 0.735) ** 2 for x in (0.8, 0.7, 0.84, 0.6)) / 3) ** 0.5)
    assert score.median == pytest.approx((0.85 + 0.78) / 2) and score.n == 4
    assert group.best.seed == 3  # 0.86


def test_a_single_seed_has_no_deviation(tmp_path: Path):
    write_cell(tmp_path, "rte", 1, {"accuracy": 0.6})
    group = read_results(tmp_path, SUITE).best("luna", TASKS["rte"])
    assert (group.score.median, group.score.std, group.score.n) == (0.6, None, 1)


def test_best_setting_has_the_highest_median_and_ties_go_to_the_first(tmp_path: Path):
    scores = {"b": (0.5, 0.7, 0.99), "a": (0.7, 0.71, 0.72), "c": (0.71, 0.71, 0.71), "d": ()}
    planned = []
    for setting, of_seeds in scores.items():
        for seed, score in enumerate(of_seeds, start=1):
            planned.append(write_cell(tmp_path, "rte", seed, {"accuracy": score}, setting=setting))
    planned.append(tmp_path / "cells/luna/rte/d/seed-1")
    results = read_results(tmp_path, SUITE, planned=planned)
    assert [group.setting for group in results.of("luna", TASKS["rte"])] == ["b", "a", "c", "d"]
    best = results.best("luna", TASKS["rte"])
    assert (best.setting, best.best.seed) == ("a", 3)
    assert read_results(tmp_path, SUITE, planned=planned[::-1]).best("luna", TASKS["rte"]).setting == "c"


def test_glue_average_is_the_mean_over_tasks_of_the_mean_of_their_metrics(tmp_path: Path):
    values = {
        **{"cola": 0.4, "sst2": 0.9, "mrpc": (0.8, 0.9), "stsb": (0.7, 0.6), "qqp": (0.85, 0.75)},
        **{"qnli": 0.8, "rte": 0.6, "wnli": 0.5},
    }
    shifts = (0.0, 0.01, 0.03)
    for seed, shift in enumerate(shifts, start=1):
        for name, value in values.items():
            numbers = value if isinstance(value, tuple) else (value,)
            metrics = {metric: number + shift for metric, number in zip(TASKS[name].metrics, numbers, strict=True)}
            write_cell(tmp_path, name, seed, metrics)
        matched, mismatched = {"accuracy": 0.7 + shift}, {"accuracy": 0.6 + shift}
        write_cell(tmp_path, "mnli", seed, {"validation_matched": matched, "validation_mismatched": mismatched})
    results = read_results(tmp_path, SUITE)
    tasks = [0.4, 0.9, 0.85, 0.65, 0.8, 0.65, 0.8, 0.6]
    average, without = results.average("luna"), results.average("luna", without=("wnli",))
    assert average.tasks == GLUE and average.value == pytest.approx((sum(tasks) + 0.5) / 9 + 0.01)
    assert average.over_seeds.std == pytest.approx(statistics.stdev(shifts)) and average.over_seeds.n == 3
    assert without.tasks == tuple(name for name in GLUE if name != "wnli")
    assert without.value == pytest.approx(sum(tasks) / 8 + 0.01)
    # The best checkpoint of MNLI is that of matched, and so is its score outside the average.
    assert results.best("luna", TASKS["mnli"]).score.median == pytest.approx(0.71)


def test_average_over_some_tasks_names_them_and_takes_seeds_that_all_have(tmp_path: Path):
    for seed, score in ((1, 0.5), (2, 0.7), (3, 0.6)):
        write_cell(tmp_path, "cola", seed, {"matthews_correlation": score})
    write_cell(tmp_path, "rte", 2, {"accuracy": 0.8})
    write_cell(tmp_path, own_task(), 2, {"accuracy": 0.1})
    results = read_results(tmp_path, SUITE, [own_task()])
    average = results.average("luna")
    assert (average.tasks, average.value) == (("cola", "rte"), pytest.approx(0.7))
    assert average.by_seed == {2: pytest.approx(0.75)}
    stored = results.to_json()["averages"]["luna"]
    assert stored["glue"]["missing_tasks"] == [name for name in GLUE if name not in ("cola", "rte")]
    assert "wnli" not in stored["glue_without_wnli"]["missing_tasks"]


def test_failed_and_missing_cells_are_counted(tmp_path: Path):
    planned = [tmp_path / f"cells/luna/rte/default/seed-{seed}" for seed in range(1, 6)]
    for seed in (1, 2):
        write_cell(tmp_path, "rte", seed, {"accuracy": 0.6})
    write_error(planned[1], "an older attempt")  # has been mended since
    write_error(planned[2], "CUDA out of memory")
    write_cell(tmp_path, "rte", 4, {"accuracy": float("nan")})
    results = read_results(tmp_path, SUITE, planned=planned)
    (group,) = results.groups
    assert [run.seed for run in group.finished] == [1, 2] and [run.seed for run in group.missing] == [5]
    assert [(run.seed, run.error) for run in group.failed] == [
        (3, "CUDA out of memory"),
        (4, f"its score is nan: {planned[3] / 'result.json'} has the metrics"),
    ]
    assert results.to_json()["cells"] == {"runs": 5, "finished": 2, "failed": 2, "missing": 1}


WHOLE = '{"metrics": {"validation": {"accuracy": 1}}, "score": 1, "hyperparameters": {}, "seconds": 2.5, "rows": {}}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{\n  "metrics": {},\n  "sco', "result.json, line 3: cut short or damaged"),
        ("", "result.json, line 1: cut short or damaged"),
        ("[" * 200_000 + "]" * 200_000, "result.json cannot be read (it is nested too deeply)"),
        ('{"metrics": {}, "score": "high"}', "result.json: score, hyperparameters is missing or of the wrong type"),
        ("[]", "result.json: metrics, score, hyperparameters is missing or of the wrong type"),
        (b"\xff\xfe", "result.json cannot be read"),
        (WHOLE.replace("1}}", '1}, "test": null}'), "result.json: metrics.test is missing or of the wrong type"),
        (WHOLE.replace("1}}", '"high"}}'), "result.json: metrics.validation is missing or of the wrong type"),
        (WHOLE.replace("2.5", "null"), "result.json: seconds is missing or of the wrong type"),
        (WHOLE.replace('"rows": {}', '"rows": [1]'), "result.json: rows is missing or of the wrong type"),
    ],
)
def test_damaged_result_counts_as_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture, content: str | bytes, message: str
):
    folder = write_cell(tmp_path, "rte", 1, {"accuracy": 0.6})
    (folder / "result.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DamagedResult, match=re.escape(message)):
        read_result(folder)
    (group,) = read_results(tmp_path, SUITE).groups
    printed = capsys.readouterr().out
    assert message in printed and "counts as missing and is run again" in printed
    assert [run.seed for run in group.missing] == [1] and group.score is None and group.best is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": 0.9}, "has been changed since it was written"),
        ({"metrics": {"validation": {"loss": 0.5, "accuracy": 0.9}}}, "has been changed since it was written"),
        ({"seed": 2}, "has been changed since it was written"),
        ({"xxh3": "0" * 64}, "has been changed since it was written"),
        ({"xxh3": None}, "has no checksum: an earlier version has written it"),
    ],
)
def test_a_result_that_was_edited_does_not_count(
    tmp_path: Path, capsys: pytest.CaptureFixture, change: dict, message: str
):
    path = write_cell(tmp_path, "rte", 1, {"accuracy": 0.6}) / "result.json"
    content = json.loads(path.read_text(encoding="utf-8")) | change
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")
    (group,) = read_results(tmp_path, SUITE).groups
    assert [run.seed for run in group.missing] == [1] and group.score is None
    assert f"{path} {message}: its cell counts as missing and is run again" in capsys.readouterr().out
    write_result(path.parent, {key: value for key, value in content.items() if key != "xxh3"})
    assert len(read_results(tmp_path, SUITE).groups[0].finished) == 1


def test_digits_of_another_script_are_no_seed(tmp_path: Path):
    folder = write_cell(tmp_path, "rte", 1, {"accuracy": 0.6})
    shutil.copytree(folder, folder.with_name("seed-٣"))
    (group,) = read_results(tmp_path, SUITE).groups
    assert [run.seed for run in group.runs] == [1]


def test_order_of_models_and_tasks(tmp_path: Path, capsys: pytest.CaptureFixture):
    for model in ("b", "a"):
        for task in ("wnli", "cola", own_task("zeal"), own_task("aim"), own_task("unknown")):
            name = task if isinstance(task, str) else task.name
            write_cell(tmp_path, task, 1, {TASKS.get(name, own_task()).metrics[0]: 0.5}, model=model)
    planned = [tmp_path / "cells/b/cola/default/seed-1"]
    results = read_results(tmp_path, SUITE, [own_task("zeal"), own_task("aim")], planned)
    assert results.models == ("b", "a")  # as planned, not by the alphabet
    assert [task.name for task in results.tasks] == ["cola", "wnli", "zeal", "aim"]
    assert "cells of unknown, which is none of the tasks of this call, are left out" in capsys.readouterr().out


def test_results_json_holds_all_of_it(tmp_path: Path):
    for seed, score in ((1, 0.5), (2, 0.7)):
        write_cell(tmp_path, "rte", seed, {"accuracy": score}, setting="small")
        write_cell(tmp_path, "rte", seed, {"accuracy": score - 0.1}, setting="large")
    write_json(tmp_path / "results.json", read_results(tmp_path, SUITE).to_json())
    stored = json.loads((tmp_path / "results.json").read_text())
    by_setting = {entry["setting"]: entry for entry in stored["results"]}
    assert by_setting["small"]["best_setting"] and not by_setting["large"]["best_setting"]
    assert by_setting["small"]["best_seed"] == 2
    assert by_setting["small"]["hyperparameters"]["learning_rate"] == 2e-5
    assert by_setting["small"]["source"] == "runs/luna/model"
    statistic = by_setting["small"]["metrics"]["validation"]["accuracy"]
    assert statistic == {"median": 0.6, "mean": 0.6, "std": pytest.approx(0.2 / 2**0.5), "n": 2}
    assert by_setting["large"]["seeds"]["2"]["metrics"] == {"validation": {"accuracy": pytest.approx(0.6)}}
