"""Code that a folder brings along is never run without the flag, nor asked for, whatever loads the folder."""

import builtins
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_masked_models import build, save, train_bpe


CODE = """
from pathlib import Path
Path({marker!r}).touch()
from modeling_luna import LunaConfig, LunaForMaskedLM, LunaForSequenceClassification
from transformers import RobertaTokenizer
class OwnConfig(LunaConfig):
    model_type = "own"
class OwnModel(LunaForMaskedLM):
    pass
class OwnTokenizer(RobertaTokenizer):
    pass
"""
AUTO_MAP = {
    "AutoConfig": "own.OwnConfig",
    "AutoModel": "own.OwnModel",
    "AutoModelForMaskedLM": "own.OwnModel",
    "AutoModelForSequenceClassification": "own.OwnModel",
    "AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"],
}


def change(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")


@pytest.fixture
def folder(corpus: Path, tmp_path: Path) -> Path:
    """A model and a tokenizer of classes of their own, which leave a file where their code runs."""
    tokenizer = train_bpe(corpus.read_text(encoding="utf-8").splitlines())
    folder = save(tmp_path / "own", build("luna", tokenizer), tokenizer)
    for file in folder.glob("*.py"):
        file.unlink()
    (folder / "own.py").write_text(CODE.format(marker=str(tmp_path / "ran")), encoding="utf-8")
    change(folder / "config.json", model_type="own", auto_map=AUTO_MAP)
    change(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=AUTO_MAP)
    return folder


@pytest.fixture
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(question: str) -> str:
        raise AssertionError(question)

    monkeypatch.setattr(builtins, "input", answer)


@pytest.mark.usefixtures("nobody_is_asked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tokenizer": "FOLDER"},
            "tokenizer: FOLDER brings code of its own, which is not run here: give a tokenizer",
        ),
        ({"init_from": "FOLDER", "model": {}}, "init_from: FOLDER is a own model, not Luna."),
    ],
)
def test_pretraining(
    build_config: Callable, write_config: Callable, script: Callable, folder: Path, tmp_path: Path, changes, message
):
    changes = {key: str(folder) if value == "FOLDER" else value for key, value in changes.items()}
    config = build_config(tmp_path / "run", **changes)
    config.model = changes.get("model", config.model)
    for program in ("pretrain/prepare.py", "pretrain/run_mlm.py"):
        if program == "pretrain/prepare.py" and "init_from" in changes:
            continue
        code, output, errors = script(program, write_config(config, tmp_path / "run.yaml"))
        assert code == 2 and f"error: {message.replace('FOLDER', str(folder))}" in errors, errors
        assert "Traceback" not in errors + output
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("nobody_is_asked")
def test_a_run_starts_from_a_model_without_its_code(
    build_config: Callable, train: Callable, folder: Path, tmp_path: Path
):
    """Its weights are read by Luna's own classes, whatever `auto_map` names."""
    change(folder / "config.json", model_type="luna")
    change(folder / "tokenizer_config.json", tokenizer_class="RobertaTokenizer", auto_map={})
    config = build_config(tmp_path / "run", init_from=str(folder), max_steps=1, warmup_steps=1)
    config.model = {}
    assert len(train(config)) == 2
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("nobody_is_asked")
def test_evaluation(script: Callable, folder: Path, corpus: Path, tmp_path: Path):
    arguments = ("evaluation/evaluate.py", folder, "--data", corpus, "--max_documents", 20)
    code, output, errors = script(*arguments)
    assert code == 1 and "- own: it brings code of its own; set trust_remote_code if it may run here" in output
    assert "Traceback" not in errors + output and not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("nobody_is_asked")
def test_fine_tuning(script: Callable, folder: Path, tmp_path: Path):
    (tmp_path / "task").mkdir()
    for split in ("train", "dev"):
        lines = [f"gj04\t{number % 2}\t\ta text of number {number}" for number in range(8)]
        (tmp_path / "task" / "CoLA").mkdir(exist_ok=True)
        (tmp_path / "task" / "CoLA" / f"{split}.tsv").write_text("\n".join(lines), encoding="utf-8")
    config = tmp_path / "glue.yaml"
    config.write_text(f"output_dir: {tmp_path}/glue\nmodel: {folder}\ntasks: cola\ndata: {tmp_path}/task\nseeds: 1\n")
    code, output, errors = script("finetune_glue/run_glue.py", config)
    assert code == 2 and re.search("error: The model .*/own cannot be fine-tuned: it brings code of its own", errors)
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_a_folder_of_luna_needs_no_code(python: Callable, folder: Path, tmp_path: Path):
    """In a process that has loaded no model yet."""
    change(folder / "config.json", model_type="luna")
    change(folder / "tokenizer_config.json", tokenizer_class="RobertaTokenizer", auto_map={})
    program = "from pretrain.data.tokenizer import load_tokenizer; print(type(load_tokenizer({!r})).__name__)"
    finished = python("-c", program.format(str(folder)))
    assert finished.stdout == "RobertaTokenizer\n", finished.stderr
    assert not (tmp_path / "ran").exists()
