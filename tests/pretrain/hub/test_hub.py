"""Checkpoints on the Hub: each a commit and a tag, whatever happens to the Hub or to the run."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from hub_stand_in import HubStandIn, hub_stand_in
from huggingface_hub import constants

from modeling_luna import LunaForMaskedLM
from pretrain.checkpointing.folders import TRAINING_STATE, write_state
from pretrain.configuration import PretrainConfig
from pretrain.hub.outbox import HubOutbox
from pretrain.hub.upload import HubError, waiting
from pretrain.stopping import StopRequest


ROOT = Path(__file__).parents[3]
ID = "tester/luna"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """A Hub that this process and those that it starts take for the real one."""
    with hub_stand_in(tmp_path / "hub") as running:
        for name in [name for name in os.environ if name.startswith("HF_")]:
            monkeypatch.delenv(name)
        for name, value in running.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        yield running
        assert running.unknown_requests == []


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., PretrainConfig]:
    """A run's folder with its configuration, and no training."""

    def write(**changes) -> PretrainConfig:
        config = PretrainConfig(output_dir=str(tmp_path / "run"), push_to_hub=ID, **({"max_steps": 20} | changes))
        config.validate()
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(vars(config)), encoding="utf-8")
        return config

    return write


def write_checkpoint(run: Path, step: int) -> Path:
    """Something that looks like a checkpoint to those who do not open it."""
    folder = run / f"checkpoint-{step}"
    (folder / TRAINING_STATE).mkdir(parents=True)
    for name in ("model.safetensors", "curves.png", "config.json", "README.md"):
        (folder / name).write_text(f"{name} of step {step}\n")
    write_state(folder, {})
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    """What is to be on the Hub of a checkpoint or model."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def upload(run: Path) -> subprocess.CompletedProcess:
    """Try once to upload what waits, as a person does."""
    return subprocess.run(
        [sys.executable, ROOT / "pretrain/hub/upload.py", run],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def queued(write_run: Callable) -> Path:
    """A run with a checkpoint in its outbox, which nobody uploads yet."""
    run = Path(write_run().output_dir)
    shutil.copytree(write_checkpoint(run, 5), run / "hub/step-5", ignore=shutil.ignore_patterns(TRAINING_STATE))
    return run


def config_of(run: Path) -> PretrainConfig:
    return PretrainConfig(**yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")))


def ended_within(run: Path, seconds: float) -> bool:
    """Whether no process uploads the run any more, or ends soon."""
    with FileLock(run / "hub/.lock", timeout=seconds):
        return True


# The whole of it.


@pytest.mark.slow
def test_each_checkpoint_is_a_commit_and_a_tag(
    build_config: Callable, train: Callable, hub: HubStandIn, tmp_path: Path
):
    run = tmp_path / "run"
    train(build_config(run, push_to_hub=ID, hub_private_repo=True, save_steps=5, save_total_limit=1, max_steps=12))
    repository = hub.repository(ID)
    assert list(repository.tags) == ["step-5", "step-10", "step-12", "final"]
    assert hub.private == {ID}
    assert waiting(run) == [] and not (run / "checkpoint-5").exists()
    for tag, folder in {"step-12": run / "checkpoint-12", "final": run / "model", "main": run / "model"}.items():
        assert repository.at(tag).files == files_of(folder)
    for step in (5, 10):
        files = repository.at(f"step-{step}").files
        assert files.keys() == files_of(run / "model").keys()
        assert f"after {step} of 12 steps" in files["README.md"].decode()
    assert "curves.png" in files and not any(TRAINING_STATE in name for name in files)


# Arguments: the model card, which of its Python blocks to run, and tags. Prints a sum of the logits of each tag.
LOAD = f"""
import json, re, sys
card, number, *tags = sys.argv[1:]
if number == "1":
    class Hidden:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "modeling_luna":
                raise ModuleNotFoundError(name)
    sys.meta_path.insert(0, Hidden())
names = {{}}
exec(re.findall("```python\\n(.*?)```", open(card).read(), re.DOTALL)[int(number)], names)
if number == "1":
    Model, arguments = names["AutoModelForMaskedLM"], {{"trust_remote_code": True}}
else:
    from modeling_luna import LunaForMaskedLM as Model
    arguments = {{}}
inputs = names["tokenizer"]("The moon follows the<mask>.", return_tensors="pt")
models = {{tag: Model.from_pretrained("{ID}", revision=tag, **arguments) for tag in tags}} | {{"main": names["model"]}}
print(json.dumps({{tag: model(**inputs).logits.double().sum().item() for tag, model in models.items()}}))
"""


@pytest.mark.slow
def test_killed_run_goes_on_in_the_same_repository_and_every_tag_loads(
    build_config: Callable, write_config: Callable, hub: HubStandIn, tmp_path: Path
):
    run = tmp_path / "run"
    config = write_config(build_config(run, push_to_hub=ID, save_steps=5, max_steps=20), tmp_path / "run.yaml")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    kill_at_step_13 = f"""
import os, signal
from pretrain import run_mlm
from pretrain.watching.monitoring import Monitor

step_done = Monitor.step_done

def killing(self, progress, *arguments):
    step_done(self, progress, *arguments)
    if progress.step == 13:
        os.kill(os.getpid(), signal.SIGKILL)

Monitor.step_done = killing
run_mlm.main(run_mlm.load_config(["{config}"]))
"""
    hub.fail("PUT /lfs/", how="hang", times=None)  # so that nothing is there when it is killed
    killed = subprocess.run([sys.executable, "-c", kill_at_step_13], env=environment, capture_output=True, timeout=240)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert ended_within(run, 10)
    assert hub.repository(ID).tags == {}
    hub.heal()

    launch = ["-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/cpu_2_processes.yaml"]
    resumed = subprocess.run(
        [sys.executable, *launch, "pretrain/run_mlm.py", config],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert "Going on from step 10 of 20" in resumed.stdout
    assert hub.requests.count("GET /api/whoami-v2") == 2  # of two processes one uploads
    tags = ["step-5", "step-10", "step-15", "step-20", "final"]
    assert list(hub.repository(ID).tags) == tags

    sums = []
    for block in (0, 1):
        loaded = subprocess.run(
            [sys.executable, "-c", LOAD, run / "model/README.md", str(block), *tags],
            env=environment | ({"PYTHONPATH": ""} if block else {}),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert loaded.returncode == 0, loaded.stderr
        sums.append(json.loads(loaded.stdout.splitlines()[-1]))
    assert sums[0] == sums[1]
    assert len(set(sums[0].values())) == 4 and sums[0]["step-20"] == sums[0]["final"] == sums[0]["main"]
    saved = LunaForMaskedLM.from_pretrained(run / "checkpoint-15").state_dict()
    (tmp_path / "step-15").mkdir()
    for name, content in hub.repository(ID).at("step-15").files.items():
        (tmp_path / "step-15" / name).write_bytes(content)
    uploaded = LunaForMaskedLM.from_pretrained(tmp_path / "step-15").state_dict()
    assert all(torch.equal(uploaded[name], tensor) for name, tensor in saved.items())


# Failures.


@pytest.mark.parametrize(
    ("pattern", "failure", "message"),
    [
        ("POST .*/commit/", {"how": "cut"}, "step-5 is not uploaded: "),
        ("POST .*/commit/", {"how": "late"}, "step-5 is not uploaded: HfHubHTTPError: Server error '500"),
        ("POST .*/tag/", {"how": "late"}, "step-5 is not uploaded: HfHubHTTPError: Server error '500"),
        ("GET .*/whoami", {"status": 429}, "step-5 is not uploaded: HfHubHTTPError: You've hit the rate limit"),
        ("PUT /lfs/", {"status": 403}, "step-5 is not uploaded: HfHubHTTPError: 403 Forbidden: ordered"),
    ],
)
def test_what_fails_once_is_whole_at_the_next_attempt(
    queued: Path, hub: HubStandIn, pattern: str, failure: dict, message: str
):
    hub.fail(pattern, **failure)
    failed = upload(queued)
    assert failed.returncode == 2 and message in failed.stderr and "Traceback" not in failed.stderr
    assert [path.name for path in waiting(queued)] == ["step-5"]

    succeeded = upload(queued)
    assert succeeded.returncode == 0, succeeded.stderr
    assert f"step-5 uploaded: {hub.endpoint}/{ID}/tree/step-5" in succeeded.stdout
    repository = hub.repository(ID)
    assert repository.at("step-5").files == files_of(queued / "checkpoint-5")
    assert [commit.title for commit in repository.history.commits[1:]] == ["step-5"]
    assert waiting(queued) == []


def test_upload_that_is_cut_in_the_middle_is_done_again(queued: Path, hub: HubStandIn):
    hub.fail("PUT /lfs/", how="cut")
    assert upload(queued).returncode == 0
    assert hub.repository(ID).at("step-5").files == files_of(queued / "checkpoint-5")


def test_snapshot_that_is_damaged_is_set_aside(write_run: Callable, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch):
    run = Path(write_run().output_dir)
    outbox = HubOutbox(config_of(run))
    (run / "hub").mkdir()
    monkeypatch.setattr(outbox, "_notify", lambda: None)
    for step in (5, 10):
        outbox.add(write_checkpoint(run, step))
    (run / "hub/step-5/model.safetensors").write_text("model.safetensors of step 6\n")
    failed = upload(run)
    assert failed.returncode == 2 and "Traceback" not in failed.stderr
    message = "step-5 is not uploaded, since it is damaged: model.safetensors is not as it was written. It lies in "
    assert f"error: {message}{run}/hub/step-5.damaged" in failed.stderr
    assert upload(run).returncode == 0
    assert list(hub.repository(ID).tags) == ["step-10"]
    assert hub.repository(ID).at("step-10").files == files_of(run / "checkpoint-10")


def test_record_of_uploads_that_is_damaged_is_named(queued: Path, hub: HubStandIn):
    assert upload(queued).returncode == 0
    path = queued / "hub/uploaded.json"
    path.write_text(path.read_text().replace("step-5", "step-4"))
    shutil.copytree(queued / "checkpoint-5", queued / "hub/step-5")
    failed = upload(queued)
    assert failed.returncode == 2
    assert f"error: {path} is damaged. Delete it, and give --hub_overwrite true" in failed.stderr


def test_card_that_the_hub_refuses_keeps_no_model_back(queued: Path, hub: HubStandIn):
    hub.fail("POST /api/validate-yaml", status=400, body={"errors": [{"message": '"license" must be one of'}]})
    uploaded = upload(queued)
    assert uploaded.returncode == 0 and '"license" must be one of' in uploaded.stdout
    expected = files_of(queued / "checkpoint-5")
    del expected["README.md"]
    assert hub.repository(ID).at("step-5").files == expected


def test_tag_of_a_step_that_was_trained_again_is_moved(queued: Path, hub: HubStandIn):
    assert upload(queued).returncode == 0
    first = hub.repository(ID).tags["step-5"]
    (queued / "checkpoint-5/model.safetensors").write_text("other weights")
    outbox = HubOutbox(config_of(queued))
    outbox.open()
    outbox.add(queued / "checkpoint-5")
    outbox.finish(StopRequest(time.monotonic() + 60))
    assert hub.repository(ID).at("step-5").files["model.safetensors"] == b"other weights"
    assert hub.repository(ID).tags["step-5"] != first


def test_hub_that_is_down_at_the_start_is_found_later(
    write_run: Callable, hub: HubStandIn, capsys: pytest.CaptureFixture
):
    config = write_run()
    outbox = HubOutbox(config)
    with hub.down():
        outbox.open()
        assert "Hub: cannot be reached (ConnectError: " in capsys.readouterr().out
        for step in (5, 10):
            outbox.add(write_checkpoint(Path(config.output_dir), step))
        output, end = "", time.monotonic() + 60
        while "next attempt in 2 s" not in output and time.monotonic() < end:
            time.sleep(0.05)
            output += capsys.readouterr().out
    assert "step-5 is not uploaded (ConnectError: " in output
    outbox.finish(StopRequest(time.monotonic() + 60))
    assert list(hub.repository(ID).tags) == ["step-5", "step-10"]
    assert "not uploaded:" not in capsys.readouterr().out


@pytest.mark.slow
def test_run_behind_a_wall_leaves_its_checkpoints_to_be_uploaded_later(
    build_config: Callable, train: Callable, hub: HubStandIn, tmp_path: Path, monkeypatch, capsys
):
    run = tmp_path / "run"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    train(build_config(run, push_to_hub=ID, save_steps=5, max_steps=10, save_total_limit=1, hub_wait="00:00:20"))
    output = capsys.readouterr().out
    assert "waiting at most" not in output  # it could not succeed
    assert "Hub: cannot be reached (OfflineModeIsEnabled: HF_HUB_OFFLINE is set)" in output
    assert f"Hub: not uploaded: step-5, step-10, final. They wait in {run}/hub" in output
    assert f"`python pretrain/hub/upload.py {run}`" in output
    assert hub.requests == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_TOKEN", "hf_stand_in")
    uploaded = upload(run)
    assert uploaded.returncode == 0, uploaded.stderr
    assert list(hub.repository(ID).tags) == ["step-5", "step-10", "final"]


@pytest.mark.slow
def test_upload_that_hangs_blocks_neither_the_steps_nor_the_end(
    build_config: Callable, train: Callable, hub: HubStandIn, tmp_path: Path, capsys: pytest.CaptureFixture
):
    run = tmp_path / "run"
    hub.fail("PUT /lfs/", how="hang", times=None)
    options = {"save_steps": 5, "max_steps": 30, "save_total_limit": 2, "hub_max_waiting": 1, "hub_wait": "00:00:01"}
    config = build_config(run, push_to_hub=ID, **options)
    metrics = train(config)
    assert [record["step"] for record in metrics if "loss" in record] == list(range(1, 31))
    output = capsys.readouterr().out
    assert "Hub: waiting at most 1 s for uploads: step-5, " in output
    # The first is being uploaded, one waits whose checkpoint is deleted, and two whose checkpoints are there.
    assert "Hub: not uploaded: step-5, step-20, step-25, step-30, final. They wait in" in output
    assert "Hub: given up: step-10, step-15" in output
    assert ended_within(run, 0)

    hub.heal()
    train(dataclasses.replace(config, hub_wait="00:01:00"))
    assert list(hub.repository(ID).tags) == ["step-5", "step-20", "step-25", "step-30", "final"]
    assert waiting(run) == []


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["in_training", "at_the_end"])
def test_stopped_run_does_not_wait_for_uploads(
    build_config: Callable, write_config: Callable, hub: HubStandIn, tmp_path: Path, moment: str
):
    run, steps = tmp_path / "run", 1_000_000 if moment == "in_training" else 10
    config = build_config(run, push_to_hub=ID, save_steps=5, eval_steps=0, max_steps=steps, save_total_limit=2)
    hub.fail("PUT /lfs/", how="hang", times=None)
    process = subprocess.Popen(
        [sys.executable, "pretrain/run_mlm.py", write_config(config, tmp_path / "run.yaml")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    sign = "step-10" if moment == "in_training" else "final"
    deadline = time.monotonic() + 120
    while not (run / "hub" / sign).exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    if moment == "at_the_end":
        for line in process.stdout:
            if line.startswith("Hub: waiting at most 1,800 s"):
                break
    process.send_signal(signal.SIGTERM)
    signalled = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert json.loads((run / "status.json").read_text())["state"] == "stopped"
    assert time.monotonic() - signalled < 15
    assert "Hub: not uploaded: step-5" in output
    assert ended_within(run, 0)


def test_program_that_was_killed_is_started_again(write_run: Callable, hub: HubStandIn):
    config = write_run()
    outbox = HubOutbox(config)
    outbox.open()
    outbox.program.kill()
    outbox.program.wait()
    outbox.add(write_checkpoint(Path(config.output_dir), 5))
    outbox.finish(StopRequest(time.monotonic() + 60))
    assert list(hub.repository(ID).tags) == ["step-5"]


def test_disk_that_takes_no_snapshot_ends_nothing(write_run: Callable, hub: HubStandIn, capsys: pytest.CaptureFixture):
    config = write_run()
    run = Path(config.output_dir)
    outbox = HubOutbox(config)
    outbox.open()
    (run / "hub/step-5.partial").write_text("in the way")
    outbox.add(write_checkpoint(run, 5))
    (run / "hub/step-5.partial").unlink()
    outbox.add(write_checkpoint(run, 10))
    outbox.finish(StopRequest(time.monotonic() + 60))
    assert list(hub.repository(ID).tags) == ["step-10"]
    output = capsys.readouterr().out
    assert "Hub: step-5 cannot be queued (" in output and "Hub: given up: step-5" in output


def test_checkpoints_of_earlier_launches_are_queued(write_run: Callable, hub: HubStandIn):
    run = Path(write_run().output_dir)
    for step in (9, 10, 11):
        write_checkpoint(run, step)
    (run / "checkpoint-11/config.json").write_text("damaged")
    for _ in range(2):
        outbox = HubOutbox(write_run())
        outbox.open()
        outbox.add_missing()
        outbox.finish(StopRequest(time.monotonic() + 60))
        assert list(hub.repository(ID).tags) == ["step-9", "step-10"]
    assert [commit.title for commit in hub.repository(ID).history.commits[1:]] == ["step-9", "step-10"]


# What is wrong at the start.


def no_token(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_TOKEN")


def unknown_token(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_revoked")


def token_of_other_letters(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_schlüssel")


def refused_without_a_reason_in_the_first_line(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch):
    hub.fail("POST /api/repos/create", status=400, body={"error": "This name is reserved"})


def damaged_record(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch):
    (hub.folder.parent / "run/hub").mkdir()
    (hub.folder.parent / "run/hub/uploaded.json").write_text("")


def token_that_may_only_read(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch):
    hub.tokens["hf_reader"] = "read"
    hub.repository(ID).folder.mkdir(parents=True)
    monkeypatch.setenv("HF_TOKEN", "hf_reader")


def namespace_of_others(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch):
    hub.fail("POST /api/repos/create", status=403, body={"error": "You don't have the rights to create a model"})


def public_repository(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch):
    hub.repository(ID).folder.mkdir(parents=True)


def repository_of_another_model(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch):
    hub.repository(ID).folder.mkdir(parents=True)
    (hub.repository(ID).folder / "config.json").write_text("{}")
    (hub.repository(ID).folder / ".gitattributes").write_text("")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (no_token, "there is no token. Log in with `hf auth login`, or set HF_TOKEN."),
        (unknown_token, f"{ID} cannot be written: HfHubHTTPError: Invalid user token."),
        (token_of_other_letters, "the token holds characters that no token has"),
        (refused_without_a_reason_in_the_first_line, "This name is reserved"),
        (damaged_record, "uploaded.json is not JSON"),
        (
            token_that_may_only_read,
            f"{ID} cannot be written: HfHubHTTPError: 403 Forbidden: This needs a token with the role write",
        ),
        (namespace_of_others, f"{ID} cannot be written: HfHubHTTPError: 403 Forbidden: You don't have the rights"),
        (public_repository, f"{ID} is there and is public, but hub_private_repo is true."),
        (repository_of_another_model, rf"{ID} holds what this run has not written \(config.json\). .*hub_overwrite"),
    ],
)
def test_what_keeps_a_run_from_uploading_ends_it_at_the_start(
    write_run: Callable, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch, prepare: Callable, message: str
):
    config = write_run(hub_private_repo=prepare is public_repository or None)
    prepare(hub, monkeypatch)
    with pytest.raises(HubError, match=message):
        HubOutbox(config).open()
    assert ended_within(Path(config.output_dir), 0)
    assert hub.repository(ID).tags == {}


def test_run_ends_before_it_reads_the_corpus(
    build_config: Callable, write_config: Callable, script: Callable, hub: HubStandIn, tmp_path: Path, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_revoked")
    config = build_config(tmp_path / "run", push_to_hub=ID, prepared_dir=str(tmp_path / "prepared"))
    code, output, errors = script("pretrain/run_mlm.py", write_config(config, tmp_path / "run.yaml"))
    assert code == 2
    assert f"error: push_to_hub: {ID} cannot be written: HfHubHTTPError: Invalid user token." in errors
    assert "Traceback" not in errors and not (tmp_path / "prepared").exists()


def test_repository_that_is_to_be_overwritten_keeps_its_other_files(queued: Path, hub: HubStandIn):
    repository = hub.repository(ID)
    repository.folder.mkdir(parents=True)
    for name in ("README.md", "LICENSE"):
        (repository.folder / name).write_text(f"{name} of before")
    before = repository.head().id
    repository.tags["step-5"] = before
    assert "(LICENSE, README.md, step-5)" in upload(queued).stderr
    (queued / "config.yaml").write_text(yaml.safe_dump(vars(config_of(queued)) | {"hub_overwrite": True}))
    uploaded = upload(queued)
    assert f"the tag step-5 was moved from commit {before[:10]}" in uploaded.stdout
    assert repository.at("step-5").files == files_of(queued / "checkpoint-5") | {"LICENSE": b"LICENSE of before"}
    assert repository.at(before).files["README.md"] == b"README.md of before"


@pytest.mark.slow
def test_what_a_person_writes_into_the_repository_stays(queued: Path, hub: HubStandIn):
    assert upload(queued).returncode == 0
    repository = hub.repository(ID)
    (repository.folder / "README.md").write_text("A better card")
    (repository.folder / "notes.txt").write_text("What we found")
    outbox = HubOutbox(config_of(queued))
    outbox.open()
    for step in (10, 15):
        outbox.add(write_checkpoint(queued, step))
    outbox.finish(StopRequest(time.monotonic() + 60))
    expected = files_of(queued / "checkpoint-15") | {"README.md": b"A better card", "notes.txt": b"What we found"}
    assert repository.at("step-15").files == repository.head().files == expected


def test_run_without_a_repository_has_nothing_to_upload(tmp_path: Path, hub: HubStandIn):
    failed = upload(tmp_path)
    assert failed.returncode == 2
    assert f"{tmp_path} is no folder of a run with --push_to_hub" in failed.stderr
    (tmp_path / "hub").mkdir(exist_ok=True)
    failed = upload(tmp_path)
    assert failed.returncode == 2
    assert "config.yaml cannot be read: No such file or directory" in failed.stderr
