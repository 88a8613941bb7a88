"""The evaluation's command line: several models in one table, what fails, wrong input, several processes."""

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_masked_models import ARCHITECTURES, MAX_LENGTH, build, build_wordpiece, save, save_all, train_bpe
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertModel,
    BigBirdConfig,
    BigBirdForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LongformerConfig,
    LongformerForMaskedLM,
)

from common import signs_of_life
from evaluation.models import MaskedModel
from pretrain.data.manifest import read_manifest
from pretrain.preparation import prepare


SCRIPT = "evaluation/evaluate.py"
PAIRS = [
    ("the moon follows the garden", "the moon follow the garden"),
    ("every quiet evening", "every evening quiet"),
    ("a small light near the river", "a small near light the river"),
]
NUMBERS = ("nats_per_word", "bits_per_byte", "word_accuracy", "loss", "accuracy")


@pytest.fixture(scope="module")
def lines(corpus: Path) -> list[str]:
    return corpus.read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def folders(lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_all(tmp_path_factory.mktemp("models"), lines)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    values = [{"sentence_good": good, "sentence_bad": bad, "field": "syntax"} for good, bad in PAIRS]
    (folder / "order.jsonl").write_text("\n".join(map(json.dumps, values)), encoding="utf-8")
    return folder


@pytest.fixture
def evaluate(script: Callable, tmp_path: Path) -> Callable[..., tuple[int, str, dict]]:
    """Run the script and return its exit code, what it printed, and its results."""

    def run(*arguments: object, files: Sequence[Path] = ()) -> tuple[int, str, dict]:
        output = tmp_path / "out" / "results.json"
        code, printed, errors = script(SCRIPT, *arguments, "--output", output, *files)
        assert code in (0, 1), errors
        return code, printed, json.loads(output.read_text(encoding="utf-8"))

    return run


@pytest.mark.slow
def test_many_architectures_side_by_side(evaluate: Callable, folders: dict, corpus: Path, pairs: Path, tmp_path: Path):
    files = (tmp_path / "out" / "results.csv", tmp_path / "out" / "results.md")
    code, printed, results = evaluate(
        *folders.values(), "--data", corpus, "--minimal_pairs", pairs, "--seed", 1, files=files
    )
    assert code == 0
    assert files[1].read_text(encoding="utf-8") == printed.removeprefix("\n").removesuffix("\n")
    assert results["max_length"] == MAX_LENGTH
    assert results["settings"]["seed"] == 1 and results["num_processes"] == 1
    assert results["versions"]["torch"] == torch.__version__
    (text,) = results["data"]
    assert (text["documents"], text["source"]) == (60, str(corpus))
    assert text["scored_words"] == text["hidden_words"] == pytest.approx(0.15 * text["words"], rel=0.1)
    assert results["minimal_pairs"] == {
        "path": str(pairs), "pairs": 3, "files": 1, "pseudo_log_likelihood": "original"
    }  # fmt: skip

    models = {Path(model["model"]).name: model for model in results["models"]}
    assert list(models) == list(ARCHITECTURES)
    for name, model in models.items():
        expected = AutoModelForMaskedLM.from_pretrained(model["model"])
        assert model["architecture"] == type(expected).__name__
        assert model["parameters"] == expected.num_parameters() > 10_000
        assert model["max_length"] == MAX_LENGTH and not model["errors"]
        values = model["data"][str(corpus)]
        assert values["nats_per_word"] > values["loss"] > 1
        assert model["minimal_pairs"]["files"].keys() == {"order"}
        row = next(line for line in printed.splitlines() if line.startswith(f"| {name} "))
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        assert cells[:4] == [
            name,
            f"{model['parameters']:,}",
            f"{values['nats_per_word']:.4f}",
            f"{values['bits_per_byte']:.4f}",
        ]
    # Models with the same tokenizer predict the same tokens.
    for kind in ("bpe", "wordpiece"):
        of_kind = [name for name, (_, tokenizer, _) in ARCHITECTURES.items() if tokenizer == kind]
        assert len({models[name]["data"][str(corpus)]["tokens_predicted"] for name in of_kind}) == 1
    accuracies = [f"{model['minimal_pairs']['overall']['accuracy']:.2%}" for model in models.values()]
    row = next(line for line in printed.splitlines() if line.startswith("| **all** "))
    assert [cell.strip() for cell in row.split("|")[2:-1]] == ["3", *accuracies]

    with open(files[0], encoding="utf-8", newline="") as file:
        table = {(line["model"], line["part"], line["metric"]): line["value"] for line in csv.DictReader(file)}
    for model in results["models"]:
        assert table[model["model"], str(corpus), "loss"] == str(model["data"][str(corpus)]["loss"])
        for part in ("", "order", "field: syntax"):
            accuracy = model["minimal_pairs"]["overall"]["accuracy"]
            assert table[model["model"], part, "accuracy"] == str(accuracy)


def test_long_scoring_says_how_far_it_is(
    script: Callable, folders: dict, corpus: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(signs_of_life, "SECONDS_BETWEEN_LINES", 0)
    code, output, errors = script(SCRIPT, folders["luna"], "--data", corpus, "--minimal_pairs", pairs)
    assert code == 0
    for title in (corpus, "minimal pairs"):
        assert re.search(rf"^{folders['luna']}: {title}: 1 of \d+ batches, .+ left$", errors, re.MULTILINE)
    assert " left" not in output


@pytest.mark.slow
def test_models_beside_it_change_no_number(evaluate: Callable, folders: dict, corpus: Path, pairs: Path):
    arguments = ("--data", corpus, "--minimal_pairs", pairs, "--batch_size", 5)
    alone = evaluate(folders["luna"], *arguments)[2]["models"][0]
    among = evaluate(folders["roberta"], folders["luna"], *arguments)[2]["models"][1]
    for model in (alone, among):
        for values in (*model["data"].values(), model["minimal_pairs"]):
            del values["tokens_per_second"]
    assert alone == among


def test_several_texts(evaluate: Callable, folders: dict, corpus: Path, tmp_path: Path):
    short = tmp_path / "short.txt"
    short.write_text("\n".join(f"the quiet river {number}" for number in range(30)), encoding="utf-8")
    code, printed, results = evaluate(folders["luna"], folders["bert"], "--data", short, corpus, "--max_documents", 40)
    assert code == 0 and results["minimal_pairs"] is None
    assert [text["documents"] for text in results["data"]] == [30, 40]
    assert printed.count("| nats per word |") == 2
    assert results["models"][0]["data"].keys() == {str(short), str(corpus)}


def test_source_with_fields_of_its_own(evaluate: Callable, folders: dict, corpus: Path, tmp_path: Path):
    lines = [json.dumps({"body": f"the moon follows text {number}"}) for number in range(20)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    source = f"{{path: {tmp_path}/text.jsonl, text_column: body}}"
    code, _, results = evaluate(folders["luna"], f"{folders['luna']}/", "--data", source, source, corpus)
    assert code == 0 and len(results["models"]) == 1
    assert [(text["source"], text["documents"]) for text in results["data"]] == [(source, 20), (str(corpus), 60)]


def test_held_out_documents_are_those_of_the_preparation(
    evaluate: Callable, folders: dict, corpus: Path, build_config: Callable, tmp_path: Path
):
    _, _, results = evaluate(folders["luna"], "--data", corpus, "--held_out", 0.2)
    config = build_config(tmp_path / "run", validation_share=0.2)
    expected = read_manifest(prepare(config))["splits"]["validation"]["documents"]
    assert results["data"][0]["documents"] == expected
    assert 3 < expected < 30


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_positions(folders: dict, architecture: str):
    assert MaskedModel.open(str(folders[architecture]), trust_remote_code=False).max_length == MAX_LENGTH


def test_positions_without_the_word_of_the_tokenizer(lines: list[str], tmp_path: Path):
    tokenizer = train_bpe(lines)
    tokenizer.model_max_length = 10**30
    for name, fields, expected in (
        ("roberta", {"max_position_embeddings": 42}, 40),
        ("luna", {"max_position_embeddings": 42}, 42),
        ("luna", {"position_embedding_type": "sinusoidal"}, MAX_LENGTH),
        ("modernbert", {"max_position_embeddings": 8192}, 8192),
    ):
        folder = save(tmp_path / name, build(name, tokenizer, **fields), tokenizer)
        assert MaskedModel.open(str(folder), trust_remote_code=False).max_length == expected


@pytest.mark.slow
def test_default_length_is_the_shortest(
    evaluate: Callable, folders: dict, lines: list[str], corpus: Path, tmp_path: Path
):
    tokenizer = train_bpe(lines)
    short = save(tmp_path / "short", build("luna", tokenizer, max_position_embeddings=24), tokenizer)
    code, _, results = evaluate(short, folders["luna"], "--data", corpus)
    assert (code, results["max_length"]) == (0, 24)

    # A longer one is asked for: the short model is left out, for a reason.
    code, printed, results = evaluate(short, folders["luna"], "--data", corpus, "--max_length", 30)
    assert (code, results["max_length"]) == (1, 30)
    assert results["models"][0]["errors"] == [f"{corpus}: it takes rows of 24 tokens at most, but --max_length is 30"]
    assert results["models"][1]["data"]
    assert f"- short: {corpus}: it takes rows of 24 tokens at most" in printed

    # No model takes it.
    code, printed, results = evaluate(short, "--data", corpus, "--max_length", 30)
    assert code == 1 and results["data"] == []
    assert f"- short: {corpus}: it takes rows of 24 tokens at most" in printed


@pytest.mark.slow
def test_what_is_wrong_with_a_model_stops_no_other(
    evaluate: Callable, folders: dict, lines: list[str], corpus: Path, pairs: Path, tmp_path: Path, monkeypatch
):
    tracebacks: list[None] = []
    monkeypatch.setattr("traceback.print_exc", lambda: tracebacks.append(None))
    bpe, wordpiece = train_bpe(lines), build_wordpiece(lines)
    broken: dict[str, tuple[Path, str]] = {}

    def add(name: str, message: str, source: Path | None = None) -> Path:
        broken[name] = (tmp_path / name, message)
        if source is not None:
            shutil.copytree(source, tmp_path / name)
        return tmp_path / name

    add("absent", "it is neither a folder nor an id of the Hub")
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=len(bpe), n_embd=8, n_layer=1, n_head=1))
    save(add("gpt2", "gpt2 is no masked language model"), gpt2, bpe)
    unknown = add("unknown", "unheard_of", folders["bert"])
    config = json.loads((unknown / "config.json").read_text(encoding="utf-8")) | {"model_type": "unheard_of"}
    (unknown / "config.json").write_text(json.dumps(config), encoding="utf-8")
    bert = build("bert", wordpiece)
    save(add("no-head", "of its weights are not there (cls.predictions"), BertModel(bert.config), wordpiece)
    no_tokenizer = add("no-tokenizer", "tokenizer")
    bert.save_pretrained(no_tokenizer)
    maskless = AutoTokenizer.from_pretrained(folders["bert"])
    maskless.mask_token = None
    save(add("no-mask", "its tokenizer has no mask token"), bert, maskless)
    cut = add("cut", "", folders["luna"]) / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1000])
    wrong_type = add("wrong-type", "its configuration cannot be used: Field 'hidden_size'", folders["luna"])
    config = json.loads((wrong_type / "config.json").read_text(encoding="utf-8")) | {"hidden_size": "wide"}
    (wrong_type / "config.json").write_text(json.dumps(config), encoding="utf-8")
    not_finite = add("not-finite", "log probabilities are not finite numbers", folders["luna"]) / "model.safetensors"
    weights = load_file(not_finite)
    weights["lm_head.dense.weight"][0, 0] = float("nan")
    save_file(weights, not_finite, metadata={"format": "pt"})
    small = add("small", "its tokenizer has 300 tokens, but the model embeds 200")
    save(small, build("luna", bpe, vocab_size=200), bpe)

    models = [path for path, _ in broken.values()]
    code, printed, results = evaluate(*models, folders["luna"], "--data", corpus, "--minimal_pairs", pairs)
    assert code == 1 and not tracebacks
    *failed, good = results["models"]
    for model, (name, (_, message)) in zip(failed, broken.items(), strict=True):
        assert model["errors"] and message in " ".join(model["errors"]), (name, model["errors"])
        assert not model["data"] and model["minimal_pairs"] is None
        assert f"- {name}: " in printed or name == "absent"
        row = next(line for line in printed.splitlines() if f"{name} " in line and line.startswith("|"))
        assert "failed" in row
    assert not good["errors"] and good["data"] and good["minimal_pairs"]


def test_a_sentence_that_is_too_long_costs_the_model_its_pairs_only(
    evaluate: Callable, folders: dict, lines: list[str], corpus: Path, pairs: Path, tmp_path: Path
):
    tokenizer = build_wordpiece(lines)
    short = save(tmp_path / "short", build("bert", tokenizer, max_position_embeddings=6), tokenizer)
    code, printed, results = evaluate(short, folders["bert"], "--data", corpus, "--minimal_pairs", pairs)
    assert code == 1
    model = results["models"][0]
    assert model["data"] and model["minimal_pairs"] is None
    (error,) = model["errors"]
    assert re.fullmatch(rf"{pairs}/order.jsonl:1: sentence_good has \d+ tokens, but it takes 6 at most", error)
    assert results["models"][1]["minimal_pairs"]


@pytest.mark.slow
def test_within_word_l2r_and_bfloat16(evaluate: Callable, folders: dict, corpus: Path, pairs: Path):
    code, printed, results = evaluate(
        folders["luna"], folders["nystromformer"], "--data", corpus, "--minimal_pairs", pairs,
        "--pll", "within_word_l2r", "--dtype", "bfloat16",
    )  # fmt: skip
    assert code == 0, results
    assert results["minimal_pairs"]["pseudo_log_likelihood"] == "within_word_l2r"
    assert "pseudo-log-likelihood (within_word_l2r)" in printed


def write_custom_model(folder: Path, source: Path, forward: str = "") -> Path:
    """A model like BERT whose class comes with it, with a `forward` of its own where one is given."""
    shutil.copytree(source, folder)
    (folder / "modeling_custom.py").write_text(
        "import os\n\nfrom transformers import BertConfig, BertForMaskedLM\n\n\n"
        'class CustomConfig(BertConfig):\n    model_type = "custom"\n\n\n'
        f"class CustomForMaskedLM(BertForMaskedLM):\n    config_class = CustomConfig\n{forward}",
        encoding="utf-8",
    )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {
        "model_type": "custom",
        "auto_map": {
            "AutoConfig": "modeling_custom.CustomConfig",
            "AutoModelForMaskedLM": "modeling_custom.CustomForMaskedLM",
        },
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def forward_that(does: str) -> str:
    return f"\n    def forward(self, *arguments, **keywords):\n        {does}\n"


def test_code_that_a_model_brings_along(evaluate: Callable, folders: dict, corpus: Path, tmp_path: Path):
    folder = write_custom_model(tmp_path / "custom", folders["bert"])
    code, _, results = evaluate(folder, "--data", corpus)
    assert code == 1 and "trust_remote_code" in results["models"][0]["errors"][0]
    code, _, results = evaluate(folder, folders["bert"], "--data", corpus, "--trust_remote_code")
    assert code == 0, results["models"][0]["errors"]
    assert results["models"][0]["architecture"] == "CustomForMaskedLM"
    assert results["models"][0]["data"][str(corpus)]["loss"] == results["models"][1]["data"][str(corpus)]["loss"]


def test_luna_with_and_without_the_code_in_its_folder(evaluate: Callable, folders: dict, corpus: Path):
    assert (folders["luna"] / "modeling_luna.py").is_file()
    with_it, without = (
        evaluate(folders["luna"], "--data", corpus, *option)[2]["models"][0]
        for option in (["--trust_remote_code"], [])
    )
    assert with_it["architecture"] == without["architecture"] == "LunaForMaskedLM"
    for key in NUMBERS:
        assert with_it["data"][str(corpus)][key] == without["data"][str(corpus)][key]


def test_what_fails_while_it_computes_and_an_interrupt(script: Callable, folders: dict, corpus: Path, tmp_path: Path):
    output = tmp_path / "results.json"
    failing = write_custom_model(tmp_path / "failing", folders["bert"], forward_that("raise RuntimeError('oh')"))
    ending = write_custom_model(tmp_path / "ending", folders["bert"], forward_that("raise KeyboardInterrupt"))
    arguments = (failing, folders["luna"], ending, folders["bert"], "--trust_remote_code", "--data", corpus)
    code, _, errors = script(SCRIPT, *arguments, "--output", output)
    assert code == 130 and "Stopped. --output holds the models that were finished." in errors
    models = json.loads(output.read_text(encoding="utf-8"))["models"]
    assert [Path(model["model"]).name for model in models] == ["failing", "luna"]
    assert models[0]["errors"] == ["RuntimeError: oh"] and models[1]["data"]
    assert [path.name for path in tmp_path.glob("results*")] == ["results.json"]


def test_longformer(evaluate: Callable, lines: list[str], corpus: Path, tmp_path: Path):
    """Pads inside itself, to its window."""
    tokenizer = train_bpe(lines)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = LongformerConfig(
        vocab_size=len(tokenizer), attention_window=8, max_position_embeddings=66, pad_token_id=1, **sizes
    )
    folder = save(tmp_path / "longformer", LongformerForMaskedLM(config), tokenizer)
    results = [evaluate(folder, "--data", corpus, "--batch_size", size)[2]["models"][0] for size in (1, 64)]
    assert results[0]["max_length"] == 64
    for key in NUMBERS:
        assert results[0]["data"][str(corpus)][key] == pytest.approx(results[1]["data"][str(corpus)][key], abs=1e-5)


@pytest.mark.slow
def test_a_tokenizer_of_another_language_costs_the_others_no_word(
    evaluate: Callable, folders: dict, corpus: Path, tmp_path: Path
):
    greek = build_wordpiece(["ποταμός και σελήνη", "σελήνη και λίθος"])
    folder = save(tmp_path / "greek", build("bert", greek), greek)
    code, printed, results = evaluate(folders["luna"], folder, folders["bert"], "--data", corpus)
    assert code == 1
    (text,) = results["data"]
    assert text["scored_words"] == text["hidden_words"] > 300
    assert results["models"][1]["errors"] == [
        f"{corpus}: its tokenizer spells only 0 of {text['hidden_words']} hidden words"
    ]
    assert results["models"][0]["data"] and results["models"][2]["data"]
    code, printed, results = evaluate(folder, "--data", corpus)
    assert code == 1 and not results["models"][0]["data"]


@pytest.mark.slow
def test_big_bird_goes_back_to_sparse_attention(evaluate: Callable, lines: list[str], corpus: Path, tmp_path: Path):
    """Transformers switches it off for good at the first short batch."""
    tokenizer = train_bpe(lines)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BigBirdConfig(
        vocab_size=len(tokenizer),
        block_size=2,
        num_random_blocks=1,
        max_position_embeddings=MAX_LENGTH,
        pad_token_id=1,
        initializer_range=0.2,
        **sizes,
    )
    folder = save(tmp_path / "big-bird", BigBirdForMaskedLM(config), tokenizer)
    short = tmp_path / "short.txt"
    short.write_text("\n".join(10 * ["the moon"]), encoding="utf-8")
    sources = {size: ("--data", *texts) for size, texts in {1: [corpus], 64: [short, corpus]}.items()}
    first, second = (
        evaluate(folder, *arguments, "--mask_probability", 0.5, "--batch_size", size)[2]["models"][0]["data"]
        for size, arguments in sources.items()
    )
    for key in NUMBERS:
        assert second[str(corpus)][key] == pytest.approx(first[str(corpus)][key], abs=1e-5)


def test_labels_are_as_short_as_they_can_be(evaluate: Callable, folders: dict, corpus: Path, tmp_path: Path):
    for name in ("a", "b"):
        shutil.copytree(folders["luna"], tmp_path / name / "model")
    _, printed, _ = evaluate(tmp_path / "a" / "model", tmp_path / "b" / "model", "--data", corpus)
    assert "| a/model " in printed and "| b/model " in printed and f"{tmp_path}/a" not in printed


BAD_INPUT: dict[str, tuple[Callable[[Path], list], list[str]]] = {
    "nothing to do": (lambda tmp: [], ["give --data, --minimal_pairs or both"]),
    "option": (lambda tmp: ["--datta", "x"], ["--datta"]),
    "seed": (lambda tmp: ["--data", "x", "--seed", "-1"], ["-1 is not between"]),
    "share": (lambda tmp: ["--data", "x", "--mask_probability", "0"], ["0 is not between 0 and 1"]),
    "batch": (lambda tmp: ["--data", "x", "--batch_size", "0"], ["0 is not between 1 and 1,000,000,000,000"]),
    "endless": (lambda tmp: ["--data", "x", "--max_documents", 25 * "9"], ["is not between 1 and 1,000,000,000,000"]),
    "long name": (lambda tmp: ["--minimal_pairs", 5000 * "x"], ["there is no folder xxx"]),
    "no text": (lambda tmp: ["--data", tmp / "absent.txt"], ["absent.txt: no such file"]),
    "empty text": (lambda tmp: ["--data", tmp / "empty.txt"], ["empty.txt", "empty"]),
    "broken text": (lambda tmp: ["--data", tmp / "broken.jsonl"], ["broken.jsonl:1: not JSON"]),
    "few words": (
        lambda tmp: ["--data", tmp / "few.txt", "--mask_probability", "1e-9"],
        [
            "few.txt: no word can be scored. 1 documents with 2 words were read; none was hidden",
            "mask_probability",
        ],
    ),
    "short rows": (
        lambda tmp: ["--data", tmp / "few.txt", "--max_length", "2"],
        ["few.txt: no word can be scored", "2 are longer than a row of 2 tokens"],
    ),
    "no pairs": (lambda tmp: ["--minimal_pairs", tmp / "absent"], ["there is no folder", "absent"]),
    "empty folder": (lambda tmp: ["--minimal_pairs", tmp / "nothing"], ["nothing holds no file"]),
    "broken pairs": (lambda tmp: ["--minimal_pairs", tmp / "broken.jsonl"], ["broken.jsonl:1: not JSON"]),
    "output is a folder": (
        lambda tmp: ["--data", tmp / "few.txt", "--output", tmp / "nothing.md"],
        ["--output", "is a folder"],
    ),
    "output of another kind": (lambda tmp: ["--data", "x", "--output", "x.xlsx"], ["x.xlsx does not end in .json"]),
    "device": (lambda tmp: ["--data", "x", "--device", "hpu"], ["--device: there is no hpu here", "only cpu"]),
    "key of a source": (lambda tmp: ["--data", "{path: x, spilt: test}"], ["unknown key 'spilt' of x", "split"]),
    "no mapping": (lambda tmp: ["--data", "{path: "], ["--data: '{path: ' is not YAML"]),
    "path that is none": (lambda tmp: ["--data", "{path}"], ["path is None, but must be text"]),
    "output below a file": (
        lambda tmp: ["--data", tmp / "few.txt", "--output", tmp / "few.txt" / "x.csv"],
        ["--output", "cannot be made"],
    ),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_wrong_input(script: Callable, folders: dict, tmp_path: Path, name: str):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing.md").mkdir()
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    (tmp_path / "few.txt").write_text("two words", encoding="utf-8")
    (tmp_path / "broken.jsonl").write_text('{"text": \n', encoding="utf-8")
    arguments, parts = BAD_INPUT[name]
    code, printed, errors = script(SCRIPT, folders["luna"], *arguments(tmp_path))
    assert code == 2, errors
    assert errors.count("error: ") == 1 and "Traceback" not in errors + printed
    for part in parts:
        assert part in errors


def test_help_explains_the_numbers(script: Callable):
    code, printed, _ = script(SCRIPT, "--help")
    assert code == 0
    for word in ("nats per word", "bits per byte", "word accuracy", "exit codes", "within_word_l2r"):
        assert word in printed


LAUNCHER = ("-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/cpu_2_processes.yaml")


def launch(python: Callable, *arguments: object) -> subprocess.CompletedProcess:
    return python(*LAUNCHER, SCRIPT, *arguments)


@pytest.mark.slow
def test_two_processes_give_the_same_numbers(
    evaluate: Callable, python: Callable, folders: dict, corpus: Path, pairs: Path, tmp_path: Path
):
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1))
    gpt2.save_pretrained(tmp_path / "gpt2")
    (tmp_path / "one.txt").write_text("the moon follows the river", encoding="utf-8")  # one batch for two processes
    arguments = [
        folders["luna"], folders["bert"], tmp_path / "gpt2", "--data", corpus, tmp_path / "one.txt",
        "--minimal_pairs", pairs, "--batch_size", 2, "--mask_probability", 0.5,
    ]  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each of the two processes: the same sums in the same order
    code, _, alone = evaluate(*arguments)
    torch.set_num_threads(threads)
    finished = launch(python, *arguments, "--output", tmp_path / "two.json")
    assert code == 1 and finished.returncode == 1, finished.stderr
    assert finished.stdout.count("| nats per word |") == 2  # one process prints
    together = json.loads((tmp_path / "two.json").read_text(encoding="utf-8"))
    assert (alone["num_processes"], together["num_processes"]) == (1, 2)
    assert together["data"] == alone["data"] and together["minimal_pairs"] == alone["minimal_pairs"]
    for one, two in zip(alone["models"], together["models"], strict=True):
        assert one["errors"] == two["errors"] and one["data"].keys() == two["data"].keys()
        for source, values in one["data"].items():
            assert two["data"][source]["tokens_predicted"] == values["tokens_predicted"]
            for key in NUMBERS:
                assert two["data"][source][key] == pytest.approx(values[key], rel=1e-9), key
        if one["minimal_pairs"]:
            assert two["minimal_pairs"]["files"] == one["minimal_pairs"]["files"]


@pytest.mark.slow
def test_a_killed_process_ends_the_other_and_costs_no_finished_model(
    python: Callable, folders: dict, corpus: Path, tmp_path: Path
):
    killing = forward_that('os.kill(os.getpid(), 9 if os.environ["RANK"] == "1" else 0)')
    killer = write_custom_model(tmp_path / "killer", folders["bert"], killing)
    finished = launch(
        python, folders["luna"], killer, "--trust_remote_code", "--data", corpus, "--output", tmp_path / "results.json"
    )
    assert finished.returncode != 0 and "exitcode  : -9" in finished.stderr
    (model,) = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["models"]
    assert model["data"] and not model["errors"]


@pytest.mark.slow
def test_full_disk(small_disk: Callable, folders: dict, corpus: Path, tmp_path: Path):
    finished, left = small_disk(
        4, SCRIPT, folders["luna"], folders["bert"], "--data", corpus, "--output", tmp_path / "small" / "results.json"
    )
    assert finished.returncode == 2 and "error: the disk is full" in finished.stderr
    assert left == ["results.json"]  # that of the first model; what did not fit left nothing
