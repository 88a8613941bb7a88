"""What is wrong with the input ends in exit code 2 and one message that says where, and leaves nothing half-made."""

from collections.abc import Callable
from pathlib import Path

import pytest


LINES = '{"text": "A first document."}\n{"text": "A second document."}\n'


@pytest.fixture
def config_file(build_config: Callable, write_config: Callable, tmp_path: Path) -> Callable[..., Path]:
    """Write the configuration of a run whose prepared data and output go below `tmp_path`."""

    def write(**changes) -> Path:
        changes = {"prepared_dir": str(tmp_path / "prepared"), "max_steps": 5} | changes
        return write_config(build_config(tmp_path / "run", **changes), tmp_path / "run.yaml")

    return write


def assert_one_message(code: int, output: str, errors: str, parts: list[str]):
    assert code == 2, errors
    assert errors.count("\nerror: ") == 1
    assert "Traceback" not in errors + output
    message = errors[errors.index("error: ") :]
    for part in parts:
        assert part in message


def assert_nothing_whole(folder: Path):
    """No prepared data, checkpoint or model that a later run would take up."""
    left = [path.name for path in folder.glob("prepared/*") if path.is_dir()] + [
        path.name for path in folder.glob("run/*") if path.is_dir()
    ]
    assert left == []


BAD_FILES = {
    "empty.txt": (b"", ["empty.txt", "empty"]),
    "white_space.txt": (b" \n\n\t\n", ["white_space.txt", "white space"]),
    "latin.txt": ("Plain.\n\nGar\xe7on.\n".encode("latin-1"), ["latin.txt:3", "UTF-8"]),
    "broken.jsonl": (LINES.encode() + b'{"text": "no end\n', ["broken.jsonl:3", "JSON"]),
    "column.jsonl": (
        LINES.replace("text", "content").encode(),
        ["column.jsonl:1", "'text'", "'content'", "text_column"],
    ),
    "number.jsonl": (b'{"text": "A document."}\n{"text": 5}\n', ["number.jsonl:2", "'text'", "5"]),
    "column.csv": (b"id,body\n1,one\n2,two\n", ["column.csv:1", "'text'", "'body'"]),
    "one.txt": (b"Only one document.", ["1 document", "at least two"]),
    "picture.png": (b"\x89PNG", ["picture.png", "not supported"]),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file(config_file: Callable, script: Callable, tmp_path: Path, name: str):
    content, parts = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    result = script("pretrain/run_mlm.py", config_file(data=str(tmp_path / name)))
    assert_one_message(*result, parts)
    assert_nothing_whole(tmp_path)


@pytest.mark.slow
def test_bad_file_in_a_folder_of_good_ones(config_file: Callable, script: Callable, tmp_path: Path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.jsonl").write_text(LINES.replace("document", "text" + 20 * " of words"), encoding="utf-8")
    (folder / "b.jsonl").write_text(LINES + "not JSON\n", encoding="utf-8")
    result = script("pretrain/run_mlm.py", config_file(data=str(folder)))
    assert_one_message(*result, [f"{folder}/b.jsonl:3"])
    assert_nothing_whole(tmp_path)

    # Once it is mended the same command works.
    (folder / "b.jsonl").write_text(LINES.replace("document", "document" + 20 * " of words"), encoding="utf-8")
    code, _, errors = script("pretrain/run_mlm.py", tmp_path / "run.yaml")
    assert code == 0, errors
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_folder_without_files(config_file: Callable, script: Callable, tmp_path: Path):
    (tmp_path / "texts").mkdir()
    result = script("pretrain/run_mlm.py", config_file(data=str(tmp_path / "texts")))
    assert_one_message(*result, [str(tmp_path / "texts"), "holds no file"])
    assert_nothing_whole(tmp_path)


def test_file_that_is_not_there(config_file: Callable, script: Callable, tmp_path: Path):
    result = script("pretrain/run_mlm.py", config_file(data=str(tmp_path / "absent.txt")))
    assert_one_message(*result, [str(tmp_path / "absent.txt"), "no such file"])
    assert_nothing_whole(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--learning_rte", "1"], ["learning_rte", "'learning_rate'"]),
        (["--batch_size", "many"], ["batch_size", "'many'", "whole number"]),
        (["--model.hiden_size", "32"], ["hiden_size", "'hidden_size'"]),
        (["--model.vocab_size", "100"], ["model.vocab_size", "100", "400"]),
        (["--max_time", "soon"], ["max_time is 'soon'", "HH:MM:SS"]),
        (["--hub_wait", "10"], ["hub_wait is '10'", "HH:MM:SS"]),
        (["--push_to_hub", "luna"], ["push_to_hub is 'luna'", "USER/NAME"]),
        (["--push_to_hub", "me/my luna"], ["push_to_hub: Repo id must use alphanumeric chars", "'me/my luna'"]),
        (["--max_length", "64"], ["max_length is 64", "max_position_embeddings"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_bad_value(config_file: Callable, script: Callable, tmp_path: Path, arguments: list[str], parts: list[str]):
    result = script("pretrain/run_mlm.py", config_file(), *arguments)
    assert_one_message(*result, parts)
    assert_nothing_whole(tmp_path)


def test_tokenizer_larger_than_the_vocabulary_of_the_model(
    config_file: Callable, script: Callable, build_config: Callable, tmp_path: Path
):
    from pretrain.preparation import prepare

    tokenizer = prepare(build_config(tmp_path)) / "tokenizer"
    result = script("pretrain/run_mlm.py", config_file(tokenizer=str(tokenizer)), "--model.vocab_size", "350")
    assert_one_message(*result, ["model.vocab_size is 350", "400"])
    assert not (tmp_path / "run" / "model").exists()


def test_tokenizer_that_is_not_there(config_file: Callable, script: Callable, tmp_path: Path):
    result = script("pretrain/run_mlm.py", config_file(tokenizer=str(tmp_path / "absent")))
    assert_one_message(*result, ["tokenizer", str(tmp_path / "absent")])
    assert_nothing_whole(tmp_path)


@pytest.mark.slow
def test_command_line_of_its_own_process(config_file: Callable, python: Callable, tmp_path: Path):
    (tmp_path / "broken.jsonl").write_text(LINES + "{\n", encoding="utf-8")
    finished = python("pretrain/run_mlm.py", config_file(data=str(tmp_path / "broken.jsonl")))
    assert_one_message(finished.returncode, finished.stdout, finished.stderr, [f"{tmp_path}/broken.jsonl:3"])
    assert_nothing_whole(tmp_path)


@pytest.mark.slow
def test_batch_of_fewer_rows_than_processes(config_file: Callable, python: Callable, tmp_path: Path):
    launcher = ("-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/cpu_2_processes.yaml")
    finished = python(*launcher, "pretrain/run_mlm.py", config_file(batch_size=1))
    assert finished.returncode != 0
    assert "A step has 1 rows, too few for 2 processes: raise batch_size" in finished.stderr
    assert_nothing_whole(tmp_path)


@pytest.mark.slow
def test_bad_file_ends_both_processes(config_file: Callable, python: Callable, tmp_path: Path):
    (tmp_path / "broken.jsonl").write_text(LINES + "{\n", encoding="utf-8")
    launcher = ("-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/cpu_2_processes.yaml")
    finished = python(*launcher, "pretrain/run_mlm.py", config_file(data=str(tmp_path / "broken.jsonl")))
    assert finished.returncode != 0
    assert f"error: {tmp_path}/broken.jsonl:3" in finished.stderr
    assert_nothing_whole(tmp_path)


@pytest.mark.parametrize("key", ["output_dir", "prepared_dir"])
def test_folder_that_cannot_be_made(config_file: Callable, script: Callable, tmp_path: Path, key: str):
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    result = script("pretrain/run_mlm.py", config_file(), f"--{key}", str(tmp_path / "file" / "below"))
    assert_one_message(*result, [key, "file/below", "cannot be made"])


def test_unknown_attention_implementation(config_file: Callable, script: Callable):
    result = script("pretrain/run_mlm.py", config_file(), "--attn_implementation", "none_such")
    assert_one_message(*result, ["attn_implementation", "none_such"])


def test_attention_that_has_no_dropout(config_file: Callable, script: Callable):
    arguments = ["--attn_implementation", "flex_attention", "--model.attention_probs_dropout_prob", "0.1"]
    result = script("pretrain/run_mlm.py", config_file(), *arguments)
    assert_one_message(*result, ["attn_implementation", "flex_attention", "model.attention_probs_dropout_prob 0"])
