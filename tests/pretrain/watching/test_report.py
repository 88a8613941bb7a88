"""The report of a run: summary, picture of the curves, and masked sentences."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from modeling_luna import LunaConfig, LunaForMaskedLM
from pretrain.data.manifest import read_manifest
from pretrain.data.packed_data import PackedRows
from pretrain.data.tokenizer import load_tokenizer
from pretrain.preparation import prepare
from pretrain.watching import report
from pretrain.watching.curves import Curves, draw_curves
from pretrain.watching.report import fill_masked_sentences, plot_runs


@pytest.fixture
def run(build_config: Callable, train: Callable, tmp_path: Path) -> Callable[..., Path]:
    """Train a run of a few steps in a folder of this name."""

    def run(name: str, **changes) -> Path:
        train(build_config(tmp_path / name, max_steps=6, eval_steps=3, **changes))
        return tmp_path / name

    return run


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n") and len(content) > 5_000
    return struct.unpack(">II", content[16:24])


def test_report_of_a_run(run: Callable, build_config: Callable, tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = run("first")
    output = capsys.readouterr().out
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    manifest = read_manifest(prepare(build_config(tmp_path)))
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["validation_loss"] == metrics[-1]["validation_loss"]
    assert summary["unigram_entropy"] == manifest["splits"]["validation"]["unigram_entropy"]
    assert summary["tokens_per_second"] > 0
    assert f"{summary['validation_loss']:.3f}" in output and f"{summary['unigram_entropy']:.3f}" in output
    for name in ("curves.png", "metrics.jsonl", "model"):
        assert str(folder / name) in output
    assert output.count("____") == output.count("[was: ") == 5

    width, height = png_size(folder / "curves.png")
    assert 600 <= width <= 2000 and 400 <= height <= 1500


@pytest.mark.slow
def test_curves_of_several_runs(run: Callable, script: Callable, tmp_path: Path):
    folders = [run("first"), run("second", seed=1)]
    picture = tmp_path / "both.png"
    code, output, errors = script("pretrain/report.py", *folders, "--output", picture)
    assert code == 0, errors
    assert output.strip() == str(picture)
    assert png_size(picture) == png_size(folders[0] / "curves.png")
    assert picture.read_bytes() != (folders[0] / "curves.png").read_bytes()


@pytest.mark.slow
def test_curves_are_drawn_over_tokens_steps_or_time(run: Callable, script: Callable, tmp_path: Path):
    folder, picture = run("first"), tmp_path / "curves.png"
    pictures = []
    for axis in ("tokens", "step", "time"):
        code, _, errors = script("pretrain/report.py", folder, "--output", picture, "--over", axis)
        assert code == 0, errors
        pictures.append(picture.read_bytes())
    assert pictures[0] == (folder / "curves.png").read_bytes()  # the report's is over tokens
    assert len(set(pictures)) == 3

    metrics = folder / "metrics.jsonl"
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    points = Curves(records, "tokens", "first").points("validation_loss")
    tokens = {record["step"]: record["tokens"] for record in records if "tokens" in record}
    assert points == ([tokens[3], tokens[6]], [r["validation_loss"] for r in records if "validation_loss" in r])
    assert Curves(records, "step", "first").points("effective_rank")[0] == [3, 6]
    seconds = [record["training_seconds"] for record in records if "training_seconds" in record]
    minutes = Curves(records, "time", "first").points("loss")[0]
    assert minutes == [value / 60 for value in seconds] and sorted(seconds) == seconds

    # The metrics of an older release hold no tokens.
    metrics.write_text('{"step": 1, "loss": 2.0}\n', encoding="utf-8")
    code, _, errors = script("pretrain/report.py", folder, "--output", picture)
    assert code == 2 and "draw them with `--over step`" in errors


def test_damage_is_named_and_not_drawn(run: Callable, script: Callable, tmp_path: Path, monkeypatch):
    folder, drawn = run("first"), []
    monkeypatch.setattr(report, "draw_curves", lambda *arguments: drawn.append(arguments))
    plot_runs([folder], tmp_path / "curves.png")
    for name, written in (("metrics.jsonl", '"step": 3, "loss": '), ("summary.json", '"unigram_entropy": ')):
        content = (folder / name).read_text(encoding="utf-8")
        assert written in content
        (folder / name).write_text(content.replace(written, f"{written}1"), encoding="utf-8")
    plot_runs([folder], tmp_path / "curves.png")
    (whole, _, entropies, _), (damaged, _, none, _) = drawn
    assert damaged["first"] == [record for record in whole["first"] if not (record["step"] == 3 and "loss" in record)]
    assert len(whole["first"]) == 8 and len(entropies) == 1 and none == []


def test_folder_without_a_run_cannot_be_drawn(run: Callable, script: Callable, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    picture = tmp_path / "both.png"
    code, _, errors = script("pretrain/report.py", run("first"), tmp_path / "empty", "--output", picture)
    assert code == 2
    assert errors.count("\nerror: ") == 1 and str(tmp_path / "empty") in errors and "Traceback" not in errors
    assert not picture.exists()


def test_names_of_runs_are_shown_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    legends: list[list[str]] = []
    draw = Axes.legend

    def legend(axes: Axes, **options):
        legends.append([text.get_text().strip() for text in draw(axes, **options).get_texts()])

    monkeypatch.setattr(Axes, "legend", legend)
    names = ("_a", r"b$\frac$")
    draw_curves({name: [{"step": 1, "tokens": 2, "loss": 3.0}] for name in names}, tmp_path / "curves.png")
    assert legends == [[f"{name}: training loss" for name in names]]


@pytest.mark.parametrize("name", ["curves.xyz", "curves", "folder.png"])
def test_output_must_be_a_picture(script: Callable, tmp_path: Path, name: str):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "tokens": 2, "loss": 3.0}\n', encoding="utf-8")
    (tmp_path / "folder.png").mkdir()
    code, _, errors = script("pretrain/report.py", tmp_path, "--output", tmp_path / name)
    assert code == 2 and f"{name} must be a file that ends in ." in errors


def test_summary_of_somebody_else_is_an_error_or_ignored(script: Callable, tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "tokens": 2, "loss": 3.0}\n', encoding="utf-8")
    for summary, expected in (("{}", 0), ("", 2)):
        (tmp_path / "summary.json").write_text(summary, encoding="utf-8")
        code, _, errors = script("pretrain/report.py", tmp_path, "--output", tmp_path / "curves.png")
        assert code == expected and (code == 0 or "summary.json is not JSON" in errors)


def test_diverged_run_is_reported(run: Callable, capsys: pytest.CaptureFixture):
    folder = run("diverged", learning_rate=1e6, max_grad_norm=1e6)
    assert "a model that has diverged" in capsys.readouterr().out
    text = (folder / "summary.json").read_text(encoding="utf-8")
    assert "NaN" not in text and json.loads(text)["validation_loss"] is None


@pytest.fixture(scope="module")
def model_and_rows(build_config: Callable, sentences: Callable, tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """A model with fresh weights, the tokenizer, and the validation rows of a text."""
    folder = tmp_path_factory.mktemp("sentences")

    def build(text: Path | None = None):
        config = build_config(folder, data=str(text or sentences(folder / "text.txt", documents=100)))
        prepared = prepare(config)
        tokenizer = load_tokenizer(str(prepared / "tokenizer"))
        model = LunaForMaskedLM(LunaConfig(**config.model, vocab_size=len(tokenizer)))
        return model, tokenizer, PackedRows.open(prepared, "validation", config.max_length)

    return build


def test_masked_sentences_and_guesses(model_and_rows: Callable):
    model, tokenizer, rows = model_and_rows()
    filled = fill_masked_sentences(model, tokenizer, rows)
    assert len(filled) == 5
    bounds = zip(rows.documents[:-1], rows.documents[1:], strict=True)
    validation = [" ".join(tokenizer.decode(rows.stream[first : last - 1]).split()) for first, last in bounds]
    for example in filled:
        assert example.sentence.count("____") == 1
        assert len(example.answer) >= 4 and example.answer.isalpha()
        whole = example.sentence.replace("____", example.answer)
        assert any(whole in document for document in validation)
        probabilities = [probability for _, probability in example.guesses]
        assert len(probabilities) == 3
        assert 0 < sum(probabilities) <= 1
        assert probabilities == sorted(probabilities, reverse=True)
    assert fill_masked_sentences(model, tokenizer, rows) == filled


def test_text_without_plain_sentences_has_no_examples(model_and_rows: Callable, tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"{number} = x; y[{number}]" for number in range(40)), encoding="utf-8")
    assert fill_masked_sentences(*model_and_rows(text)) == []
