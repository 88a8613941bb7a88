# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""What the documentation shows runs and is true, and what it links to is there."""

import contextlib
import importlib.util
import io
import itertools
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from matplotlib.text import Text
from tokenizers import ByteLevelBPETokenizer
from torch.utils.flop_counter import FlopCounterMode
from transformers import RobertaConfig
from transformers.models.roberta.modeling_roberta import RobertaLayer

from modeling_luna import LunaConfig, LunaForMaskedLM, LunaModel, LunaTokenizer


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTED = re.compile(r"^print\(.*\)  +# (.*)$", re.MULTILINE)
SHAPE = re.compile(r"^(outputs\.\w+)  # (\(.*\))$", re.MULTILINE)
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


def run_page(page: Path) -> dict:
    """Run the Python blocks of a page in order; return the names they leave.

    What a block prints must be what the comments behind its `print` calls say, or stand below it. A line such as
    `outputs.logits  # (2, n, num_labels)` must tell the shape.
    """
    text = page.read_text()
    names = {}
    blocks = [match for match in CODE_BLOCK.finditer(text) if match[1] == "python"]
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
    draw_luna.main()
    drawn, stored = ((folder / "luna.png").read_bytes() for folder in (tmp_path, ROOT / "docs"))
    assert drawn[:24] == stored[:24]  # a PNG of the same width and height


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
