# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""What the documentation shows runs and is true, and what it links to is there."""

import contextlib
import importlib.util
import io
import itertools
import json
import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import torch
from matplotlib.text import Text
from tokenizers import ByteLevelBPETokenizer
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    RobertaConfig,
    pipeline,
)
from transformers.models.roberta.modeling_roberta import RobertaLayer

from modeling_luna import LunaConfig, LunaForMaskedLM, LunaModel, LunaTokenizer


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTED = re.compile(r"^print\(.*\)  +# (.*)$", re.MULTILINE)
SHAPE = re.compile(r"^(outputs\.\w+)  # (\(.*\))$", re.MULTILINE)
HEADING = re.compile(r"^## (.*)$", re.MULTILINE)
# Sections whose package no extra installs: their tests run where it is there.
OPTIONAL = {"OpenVINO": "openvino", "bertviz": "bertviz", "captum": "captum"}
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model of the demo's kind where `make pretrain` puts its own."""
    folder = tmp_path_factory.mktemp("docs")
    model_folder = folder / "runs/demo/model"
    model_folder.mkdir(parents=True)
    trained = ByteLevelBPETokenizer()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(["Return the number of items."], vocab_size=300, special_tokens=specials)
    trained.save_model(str(model_folder))
    tokenizer = LunaTokenizer.from_pretrained(model_folder, model_max_length=64)
    tokenizer.save_pretrained(model_folder)
    config = LunaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        projection_length=8,
        max_position_embeddings=64,
        initializer_range=0.2,
        conv_kernel_size=5,
    )
    LunaForMaskedLM(config).save_pretrained(model_folder)
    return folder


def heading_of(block: re.Match) -> str:
    """The heading of the section that a block of code stands in; "" before the first."""
    return ["", *HEADING.findall(block.string[: block.start()])][-1]


def run_page(page: Path, sections: tuple[str, ...] | None = None) -> dict:
    """Run the Python blocks of a page in order, all but optional ones, or those of `sections` after the first ones.

    Returns the names they leave.

    What a block prints must be what the comments behind its `print` calls say, or stand below it. A line such as
    `outputs.logits  # (2, n, num_labels)` must tell the shape.
    """
    text = page.read_text()
    names = {}
    blocks = [match for match in CODE_BLOCK.finditer(text) if match[1] == "python"]
    if sections is None:
        blocks = [block for block in blocks if heading_of(block) not in OPTIONAL]
    else:
        blocks = [block for block in blocks if heading_of(block) in ("", *sections)]
    assert blocks, f"{page.name} has no Python block: do its fences begin a line?"
    for block in blocks:
        lines_before = text[: block.start(2)].count("\n")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * lines_before + block[2], str(page), "exec"), names)
        if PRINTED.search(block[2]):
            assert printed.getvalue().splitlines() == PRINTED.findall(block[2])
        else:
            assert printed.getvalue() in text[block.end() :]
        for output, shape in SHAPE.findall(block[2]):
            assert eval(f"tuple({output}.shape)", names) == eval(shape, dimensions(names)), output
    return names


def dimensions(names: dict) -> dict[str, int]:
    config, width = names["model"].config, names["batch"]["input_ids"].shape[1]
    return {
        "n": width,
        "l": min(config.projection_length, width),
        "choices": len(names["batch"]["input_ids"]),
        "hidden_size": config.hidden_size,
        "num_labels": config.num_labels,
        "vocab_size": config.vocab_size,
    }


@pytest.mark.parametrize("page", ["model.md", "heads.md", pytest.param("exporting.md", marks=pytest.mark.slow)])
def test_examples(page: str, demo_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(demo_folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        run_page(ROOT / "docs" / page)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "section"), [("exporting.md", "OpenVINO"), ("heads.md", "bertviz"), ("heads.md", "captum")]
)
def test_optional_section(page: str, section: str, demo_folder: Path, monkeypatch: pytest.MonkeyPatch):
    package = OPTIONAL[section]
    pytest.importorskip(package, reason=f"{package} is not installed: pip install {package}")
    monkeypatch.chdir(demo_folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        names = run_page(ROOT / "docs" / page, (section,))
    if section == "bertviz":
        assert "number" in names["page"].data
    if section == "captum":
        assert names["of_tokens"].shape == names["batch"]["input_ids"].shape
        assert names["of_tokens"].abs().max() > 0.001


@pytest.fixture
def node_modules() -> Path:
    """The folder of node's packages that holds transformers.js: in the checkout, or named by NODE_PATH."""
    named = filter(None, os.environ.get("NODE_PATH", "").split(os.pathsep))
    for folder in (ROOT / "node_modules", *map(Path, named)):
        if shutil.which("node") and (folder / "@huggingface/transformers").is_dir():
            return folder
    pytest.skip(
        "needs node, and transformers.js in the checkout: "
        "npm install --no-save --ignore-scripts @huggingface/transformers@4"
    )


@pytest.mark.slow
def test_transformers_js(demo_folder: Path, node_modules: Path, monkeypatch: pytest.MonkeyPatch):
    """The recipe in docs/exporting.md, and the other pipelines on heads that were exported by it."""
    monkeypatch.chdir(demo_folder)
    page = ROOT / "docs/exporting.md"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        names = run_page(page, ("ONNX", "transformers.js"))
        heads = {
            "text-classification": AutoModelForSequenceClassification,
            "token-classification": AutoModelForTokenClassification,
            "question-answering": AutoModelForQuestionAnswering,
        }
        for task, auto_class in heads.items():
            head = auto_class.from_pretrained("runs/demo/model")
            names["export_web"](head, names["batch"], Path("web", task))
            head.save_pretrained(task)
            names["tokenizer"].save_pretrained(task)
    (script,) = (block[2] for block in CODE_BLOCK.finditer(page.read_text()) if block[1] == "js")
    text, question = "Raise an error.", "What is returned?"
    script += f"""
const classify = await pipeline("text-classification", "text-classification", {{ dtype: "fp32" }});
const tag = await pipeline("token-classification", "token-classification", {{ dtype: "fp32" }});
const answer = await pipeline("question-answering", "question-answering", {{ dtype: "fp32" }});
const found = {{
    fillings,
    features: features.tolist(),
    label: await classify("{text}"),
    tags: await tag("{text}", {{ ignore_labels: [] }}),
    answer: await answer("{question}", "{text}"),
}};
console.log("FOUND" + JSON.stringify(found));
"""
    Path("luna.mjs").write_text(script)
    Path("node_modules").symlink_to(node_modules.resolve())
    process = subprocess.run(["node", "luna.mjs"], capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout.split("FOUND")[1])

    expected = pipeline("fill-mask", model="runs/demo/model")("Close the file, and return its <mask>.", top_k=3)
    assert [filling["token"] for filling in found["fillings"]] == [filling["token"] for filling in expected]
    scores = [filling["score"] for filling in expected]
    assert [filling["score"] for filling in found["fillings"]] == pytest.approx(scores, abs=1e-5)

    extract = pipeline("feature-extraction", model="runs/demo/model")
    for features, sentence in zip(found["features"], names["sentences"], strict=False):
        means = extract(sentence, return_tensors=True)[0].mean(dim=0)
        assert features == pytest.approx(means.tolist(), abs=1e-5)

    (label,) = pipeline("text-classification", model="text-classification")(text)
    assert found["label"][0]["label"] == label["label"]
    assert found["label"][0]["score"] == pytest.approx(label["score"], abs=1e-5)

    tags = pipeline("token-classification", model="token-classification", ignore_labels=[])(text)
    assert [tag["entity"] for tag in found["tags"]] == [tag["entity"] for tag in tags]
    assert [tag["score"] for tag in found["tags"]] == pytest.approx([tag["score"] for tag in tags], abs=1e-5)
    assert found["answer"]["answer"] in text


def multiply_adds(layer: torch.nn.Module, *args, **kwargs) -> int:
    with FlopCounterMode(display=False) as counter:
        layer(*args, **kwargs)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("n", [512, 2048, 8192, 32768])
def test_cost_table(n: int):
    """The counts are those of a real layer, run on the meta device, of Luna and of RoBERTa."""
    text = (ROOT / "docs/model.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith(f"| {n} |"))
    full_config = RobertaConfig()
    full_config._attn_implementation = "eager"
    with torch.device("meta"):
        states = torch.empty(1, n, full_config.hidden_size)
        full = multiply_adds(RobertaLayer(full_config).eval(), states)
        config = LunaConfig(num_hidden_layers=1, max_position_embeddings=n)
        luna = multiply_adds(LunaModel._from_config(config, attn_implementation="eager").eval(), inputs_embeds=states)
    ffn = 2 * n * config.hidden_size * config.intermediate_size
    expected = []
    for left_out in (ffn, 0):
        full_cost, luna_cost = full - left_out, luna - left_out
        expected += [full_cost / 1e9, luna_cost / 1e9, full_cost / luna_cost]
    assert [float(cell) for cell in row.strip("| ").split("|")[1:]] == [round(number, 1) for number in expected]


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", CODE_BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path):
    text = CODE_BLOCK.sub("", page.read_text())
    for target in (target or source for target, source in LINK.findall(text)):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(linked), f"{page.name} links to {target}"


@pytest.fixture(scope="module")
def draw_luna() -> ModuleType:
    specification = importlib.util.spec_from_file_location("draw_luna", ROOT / "docs/draw_luna.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_drawing(draw_luna: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(draw_luna, "OUTPUT", tmp_path / "luna.png")
    monkeypatch.setattr("sys.argv", ["draw_luna.py"])
    draw_luna.main()
    drawn, stored = ((folder / "luna.png").read_bytes() for folder in (tmp_path, ROOT / "docs"))
    assert drawn[:24] == stored[:24]  # a PNG of the same width and height


def test_the_page_of_all_keys_is_fresh():
    page = runpy.run_path(str(ROOT / "docs/write_configuration.py"))["page"]()
    assert (ROOT / "docs/configuration.md").read_text(encoding="utf-8") == page, "python docs/write_configuration.py"


def test_labels_of_the_drawing_do_not_overlap(draw_luna: ModuleType):
    figure = draw_luna.draw()
    figure.draw_without_rendering()
    labels = [text for text in figure.findobj(Text) if text.get_text()]
    boxes = {label.get_text(): label.get_window_extent() for label in labels}
    assert "$Y_P$" in boxes
    for (first, box), (second, other) in itertools.combinations(boxes.items(), 2):
        assert not box.overlaps(other), (first, second)
    for label, box in boxes.items():
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, label
