"""The best models on the Hub: a repository each, whatever happens to the Hub; nothing ends the run."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cell_folders import write_cell, write_model
from hub_stand_in import HubStandIn, hub_environment, hub_stand_in

from experiments.push import push_models
from experiments.results import read_results
from finetune_glue.data.tasks import SUITE, TASKS


ROOT = Path(__file__).parents[2]
# Arguments: the run, push_to_hub. Writes the cards and pushes, as run_glue.py does; prints the failures as JSON.
PUSH = """
import json, sys
from pathlib import Path
from experiments import push
from experiments.report import write_cards
from experiments.results import read_results
from finetune_glue.data.tasks import SUITE
from finetune_glue.model_card import model_card

push.WAITS = (0.0, 0.0)
run, push_to_hub = Path(sys.argv[1]), sys.argv[2]
results = read_results(run, SUITE)
write_cards(results, model_card, push.repository_ids(results, push_to_hub))
failures = push.push_models(results, run, push_to_hub, private=True if "private" in sys.argv else None)
print(json.dumps(failures))
"""
CHECK = "import sys\nfrom experiments.push import check_push\ncheck_push(sys.argv[1])"
# Arguments: ids. Prints the logits of each model for a sentence.
LOAD = """
import json, sys
import modeling_luna
from transformers import AutoModelForSequenceClassification, AutoTokenizer

for id in sys.argv[1:]:
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(id), AutoTokenizer.from_pretrained(id)
    inputs = tokenizer("The moon.", return_tensors="pt")
    print(json.dumps([type(model).__name__, model(**inputs).logits[0].tolist()]))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubStandIn]:
    with hub_stand_in(tmp_path / "hub") as running:
        yield running
        assert running.unknown_requests == []


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run of one model on two tasks; of RTE the second of two seeds is the best."""
    folder = tmp_path / "run"
    write_cell(folder, "rte", 1, {"accuracy": 0.5})
    for task in ("rte", "cola"):
        metrics = dict.fromkeys(TASKS[task].metrics, 0.6)
        write_model(write_cell(folder, task, 2, metrics) / "model", TASKS[task])
    return folder


def program(code: str, *arguments: object, env: dict[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=env | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )


def push(hub: HubStandIn, run: Path, push_to_hub: str = "tester/luna", *options: str) -> tuple[list[str], str]:
    """The failures, and what was said before."""
    ended = program(PUSH, run, push_to_hub, *options, env=hub.environment(run.parent / "home"))
    assert ended.returncode == 0, ended.stderr
    *said, failures = ended.stdout.splitlines()
    return json.loads(failures), "\n".join(said)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_pushed_models_load_in_a_fresh_process(hub: HubStandIn, run_folder: Path, tmp_path: Path):
    failures, said = push(hub, run_folder, "tester/luna", "private")
    assert failures == []
    assert f"{hub.endpoint}/tester/luna-rte" in said and hub.private == {"tester/luna-rte", "tester/luna-cola"}
    model = run_folder / "cells/luna/rte/default/seed-2/model"
    assert hub.repository("tester/luna-rte").head().files == files_of(model)
    assert 'model="tester/luna-rte"' in (model / "README.md").read_text()
    loaded = program(LOAD, "tester/luna-rte", "tester/luna-cola", env=hub.environment(tmp_path / "another home"))
    local = [run_folder / f"cells/luna/{task}/default/seed-2/model" for task in ("rte", "cola")]
    here = program(LOAD, *local, env=hub.environment(tmp_path / "another home"))
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout == here.stdout and loaded.stdout.count("LunaForSequenceClassification") == 2


@pytest.mark.slow
def test_second_call_sends_what_is_new_alone(hub: HubStandIn, run_folder: Path):
    push(hub, run_folder)
    commits = [hub.repository(f"tester/luna-{task}").head().id for task in ("rte", "cola")]
    hub.requests.clear()
    assert push(hub, run_folder)[0] == []
    assert not [request for request in hub.requests if "/commit/" in request or request.startswith("PUT")]
    better = write_cell(run_folder, "rte", 3, {"accuracy": 0.9})
    write_model(better / "model", TASKS["rte"])
    assert push(hub, run_folder)[0] == []
    rte, cola = (hub.repository(f"tester/luna-{task}").head() for task in ("rte", "cola"))
    assert rte.id != commits[0] and cola.id == commits[1]
    assert rte.files == files_of(better / "model") and "Fine-tuned model (seed-3)" in rte.title


@pytest.mark.parametrize("how", ["refuse", "cut", "late"])
def test_passing_failures_are_tried_again(hub: HubStandIn, run_folder: Path, how: str):
    hub.fail("POST .*/commit/", how=how, times=2)
    assert push(hub, run_folder)[0] == []
    for task in ("rte", "cola"):
        model = run_folder / f"cells/luna/{task}/default/seed-2/model"
        assert hub.repository(f"tester/luna-{task}").head().files == files_of(model)


@pytest.mark.slow
def test_lasting_failures_are_told_and_the_next_call_mends_them(hub: HubStandIn, run_folder: Path):
    hub.fail("POST .*luna-cola/commit/", status=503, times=None)
    failures, said = push(hub, run_folder)
    assert len(failures) == 1 and failures[0].startswith("tester/luna-cola is not on the Hub: ")
    assert "luna-rte" in said and sum("luna-cola/commit" in request for request in hub.requests) >= 3
    hub.heal()
    assert push(hub, run_folder)[0] == []


def test_refusal_is_not_tried_again(hub: HubStandIn, run_folder: Path):
    hub.fail("POST /api/repos/create", status=403, times=None, body={"error": "no rights in this organisation"})
    failures, _ = push(hub, run_folder, "others/luna")
    assert [failure.split()[0] for failure in failures] == ["others/luna-cola", "others/luna-rte"]
    assert all("no rights in this organisation" in failure or "403" in failure for failure in failures)
    assert hub.requests.count("POST /api/repos/create") == 2


def test_hub_that_is_not_there_ends_nothing(hub: HubStandIn, run_folder: Path):
    with hub.down():
        failures, _ = push(hub, run_folder)
    assert len(failures) == 2 and "not tried, since the Hub cannot be reached" in failures[1]


@pytest.mark.parametrize("content", ['{"tester/lu', "[]"])
def test_a_damaged_list_of_repositories_is_told(tmp_path: Path, content: str):
    (tmp_path / "pushed.json").write_text(content, encoding="utf-8")
    (line,) = push_models(read_results(tmp_path, SUITE), tmp_path, "tester/luna")
    assert line.startswith(f"nothing is on the Hub: {tmp_path / 'pushed.json'}, which lists the repositories")


def test_repository_of_others_is_not_touched(hub: HubStandIn, run_folder: Path):
    theirs = hub.repository("tester/luna-rte").folder
    theirs.mkdir(parents=True)
    (theirs / "notes.txt").write_text("mine")
    failures, _ = push(hub, run_folder)
    assert failures == [
        "tester/luna-rte is not on the Hub: it holds what this run has not written: name another PREFIX, or delete it "
        "there"
    ]
    assert files_of(theirs) == {"notes.txt": b"mine"}
    assert "config.json" in hub.repository("tester/luna-cola").head().files


@pytest.mark.slow
def test_card_that_was_edited_on_the_hub_stays(hub: HubStandIn, run_folder: Path):
    push(hub, run_folder)
    card = hub.repository("tester/luna-rte").folder / "README.md"
    card.write_text("My own words.\n")
    write_cell(run_folder, "rte", 5, {"accuracy": 0.1})  # changes the card, not the best model
    failures, said = push(hub, run_folder)
    assert failures == [] and "the model card of tester/luna-rte was edited there and stays as it is" in said
    assert card.read_text() == "My own words.\n"


def test_names_of_repositories(tmp_path: Path):
    from experiments.push import repository_ids

    write_cell(tmp_path, "rte", 1, {"accuracy": 0.5}, model="luna")
    one = read_results(tmp_path, SUITE)
    assert repository_ids(one, "me/luna-base") == {("luna", "rte"): "me/luna-base-rte"}
    assert repository_ids(one, "me") == {("luna", "rte"): "me/luna-rte"}
    write_cell(tmp_path, "rte", 1, {"accuracy": 0.5}, model="bert@v1 x")
    two = read_results(tmp_path, SUITE)
    assert sorted(repository_ids(two, "me/x").values()) == ["me/x-bert-v1-x-rte", "me/x-luna-rte"]


def test_models_that_were_not_kept_are_told(hub: HubStandIn, tmp_path: Path):
    write_cell(tmp_path / "run", "rte", 1, {"accuracy": 0.5})
    (failure,), _ = push(hub, tmp_path / "run")
    assert "seed-1/model was not kept: run with save_models best" in failure


@pytest.mark.parametrize(
    ("push_to_hub", "changes", "message"),
    [
        ("tester/luna", {}, ""),
        ("tester", {}, ""),
        ("tester/luna/base", {}, "push_to_hub is 'tester/luna/base': it must be NAMESPACE or NAMESPACE/PREFIX"),
        ("tester/luna", {"HF_TOKEN": ""}, "push_to_hub: there is no token. Log in with `hf auth login`"),
        ("tester/luna", {"HF_TOKEN": "hf_wrong"}, "push_to_hub: the Hub refuses the token"),
    ],
)
def test_check_at_the_start(hub: HubStandIn, tmp_path: Path, push_to_hub: str, changes: dict, message: str):
    ended = program(CHECK, push_to_hub, env=hub.environment(tmp_path / "home") | changes)
    assert ended.returncode == int(bool(message)), ended.stderr
    assert message in ended.stderr


def test_check_lets_a_run_begin_without_the_hub(tmp_path: Path):
    ended = program(
        CHECK, "tester/luna", env=hub_environment("http://127.0.0.1:9", tmp_path / "home") | dict(os.environ)
    )
    assert ended.returncode == 0, ended.stderr
