"""Datasets of the Hub that are prepared while they come: the same documents, and going on where it was interrupted."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_stand_in import HubStandIn, hub_stand_in

from pretrain.configuration import PretrainConfig


ROOT = Path(__file__).parents[3]
FILES, ROWS = 6, 40  # of the dataset, and of each file

# Reads so many documents of a source, or all, with a reader that goes on at a position, in a process of its own, since
# the libraries read the address of the Hub when they are imported. The Hub then loses the dataset where that is asked.
READ = """
import json, os, sys
from itertools import islice
from pretrain.data import hub_source
from pretrain.data.sources import DocumentReader, Source, SourceError

hub_source.RETRY_SECONDS, hub_source.BATCH_ROWS = (0,), 30
fields, position, count, lost = json.load(sys.stdin)
reader = DocumentReader(Source(**fields), 1, position)
documents, message = [], None
try:
    for document in islice(reader, count):
        documents.append(document.text.decode())
        if lost and len(documents) == 3:
            os.rename(lost, lost + "-lost")
except SourceError as error:
    message = str(error)
print(json.dumps([documents, reader.position, message]))
"""

# Shards of a kilobyte; killed when there are three of them.
PREPARE = """
import os, signal, sys
from pretrain import building, prepare
from pretrain.data import parts

parts.SHARD_BYTES = 1000
shared_out = building.shared_out

def killed(*arguments):
    for number, result in enumerate(shared_out(*arguments)):
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        yield result

if "kill" in sys.argv:
    building.shared_out = killed
prepare.main(sys.argv[1:2])
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubStandIn]:
    folder = tmp_path_factory.mktemp("hub")
    for name in ("long", "lost"):
        files = folder / "datasets" / "org" / name
        files.mkdir(parents=True)
        for number in range(FILES):
            lines = [json.dumps({"id": row, "text": f"Row {row} of file {number} has words."}) for row in range(ROWS)]
            (files / f"train-{number}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with hub_stand_in(folder) as running:
        yield running


@pytest.fixture
def environment(hub: HubStandIn, tmp_path: Path) -> dict[str, str]:
    return hub.environment(tmp_path / "home") | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def read(environment: dict[str, str], fields: dict, position: dict | None, count: int | None, lost: str = "") -> list:
    finished = subprocess.run(
        [sys.executable, "-c", READ],
        input=json.dumps([fields, position, count, lost]),
        env=environment,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def all_documents() -> list[str]:
    return [f"Row {row} of file {number} has words." for number in range(FILES) for row in range(ROWS)]


@pytest.mark.slow
def test_stream_goes_on_from_any_document(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    fields = {"path": "org/long", "streaming": True}
    documents, position, message = read(environment, fields, None, 95)
    assert message is None and documents == all_documents()[:95]
    assert json.loads(json.dumps(position)) == position
    documents, position, message = read(environment, fields, position, None)
    assert message is None and documents == all_documents()[95:]
    assert read(environment, fields, position, None)[0] == []


@pytest.mark.slow
def test_hub_that_goes_away_ends_the_reading_with_a_message(environment: dict[str, str], hub: HubStandIn):
    lost = hub.folder / "datasets" / "org" / "lost"
    documents, _, message = read(environment, {"path": "org/lost", "streaming": True}, None, None, str(lost))
    assert documents == all_documents()[: len(documents)] and len(documents) < FILES * ROWS
    assert message.startswith("The Hub cannot be reached any more for the dataset 'org/lost', after ")


@pytest.mark.slow
def test_killed_preparation_of_a_stream_goes_on(
    environment: dict[str, str], build_config: Callable, write_config: Callable, tmp_path: Path
):
    def run(prepared_dir: str, *arguments: str) -> subprocess.CompletedProcess:
        config: PretrainConfig = build_config(
            tmp_path, data=[{"path": "org/long", "streaming": True}], prepared_dir=str(tmp_path / prepared_dir)
        )
        return subprocess.run(
            [sys.executable, "-c", PREPARE, write_config(config, tmp_path / "run.yaml"), *arguments],
            env=environment,
            capture_output=True,
            text=True,
        )

    killed = run("prepared", "kill")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    records = sorted((tmp_path / "prepared").glob("*.partial/part-*/*.json"))
    assert len(records) == 3
    assert json.loads(records[-1].read_text(encoding="utf-8"))["next"]["group"]["row"] >= 0
    times = [path.stat().st_mtime_ns for path in records]

    gone_on = run("prepared")
    assert "Going on with 3 shards that are whole" in gone_on.stdout, gone_on.stderr
    assert "validation (stream)" in gone_on.stdout
    whole = run("other")
    one, other = (
        {path.relative_to(folder): path for path in folder.rglob("*.*") if path.name != "checked.json"}
        for folder in (next((tmp_path / name).glob("org-long*/")) for name in ("prepared", "other"))
    )
    assert whole.returncode == 0 and set(one) == set(other)
    assert all(one[name].read_bytes() == other[name].read_bytes() for name in one if one[name].is_file())
    assert [one[path.relative_to(path.parents[1])].stat().st_mtime_ns for path in records] == times
