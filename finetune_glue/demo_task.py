"""Make a small task of what is on every machine: which library does a sentence of documentation describe?

    python finetune_glue/demo_task.py data/demo-task

The first sentences of docstrings are the texts, the libraries they stand in the labels. The folder gets the sentences
as CSV files and `libraries.yaml`, the description of the task.
"""

import argparse
import ast
import csv
import hashlib
import importlib.util
import io
import random
import re
import sysconfig
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from common.errors import UserError, report_user_errors
from common.files import make_folder, write_text


LIBRARIES = (
    "python",
    "datasets",
    "huggingface_hub",
    "matplotlib",
    "numpy",
    "scipy",
    "sklearn",
    "torch",
    "transformers",
)
ROWS = {"train": 300, "validation": 60}  # of each library
DESCRIPTION = """\
# Which library does a sentence of documentation describe? Made by finetune_glue/demo_task.py.
title: Libraries
problem: classification
text: sentence
label: library
labels: [{labels}]
metrics: accuracy
files:
  train: train.csv
  validation: validation.csv
"""


def write_demo_task(folder: Path) -> Path:
    """Write the task into a folder, unless it is there; the path of its description.

    Raises:
        UserError: where fewer than two of the libraries are installed.
    """
    description = folder / "libraries.yaml"
    if description.exists():
        return description
    wanted = sum(ROWS.values())
    # More than are wanted, since some stand in several libraries.
    sentences = {name: list(islice(_sentences(root), 4 * wanted)) for name, root in _roots().items()}
    shared = _in_several(sentences.values())
    chosen = {}
    for name, found in sentences.items():
        own = [sentence for sentence in found if sentence not in shared]
        if len(own) >= wanted:
            chosen[name] = random.Random(name).sample(own, wanted)
    if len(chosen) < 2:
        raise UserError(f"Fewer than two of {', '.join(LIBRARIES)} are installed with their documentation.")
    make_folder(folder, "the folder of the task")
    start = 0
    for split, count in ROWS.items():
        rows = [(sentence, name) for name, own in chosen.items() for sentence in own[start : start + count]]
        rows.sort(key=lambda row: hashlib.sha256(row[0].encode()).digest())
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("sentence", "library"), *rows])
        write_text(folder / f"{split}.csv", text.getvalue())
        start += count
    write_text(description, DESCRIPTION.format(labels=", ".join(chosen)))
    return description


def _roots() -> dict[str, Path]:
    """The folder of each library that is installed."""
    roots = {"python": Path(sysconfig.get_path("stdlib"))}
    for name in LIBRARIES:
        spec = importlib.util.find_spec(name) if name != "python" else None
        if spec is not None and spec.origin:
            roots[name] = Path(spec.origin).parent
    return roots


def _sentences(root: Path) -> Iterator[str]:
    """The first sentences of docstrings of a library, from its files in random order: each once, of plain words, and
    without the library's name."""
    name, seen = root.name, set()
    paths = sorted(root.rglob("*.py"))
    random.Random(name).shuffle(paths)
    for path in paths:
        if {"site-packages", "tests", "test", "idlelib"} & set(path.relative_to(root).parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = re.sub(r"\s+", " ", (ast.get_docstring(node) or "").partition("\n\n")[0])
                sentence = re.match(r"[A-Z][^.]*\.(?= |$)", text)
                if sentence is None or not re.fullmatch(r"[\w ,;:'()/-]+\.", sentence[0]):
                    continue
                if 6 <= len(sentence[0].split()) <= 40 and name not in sentence[0].lower():
                    if sentence[0] not in seen:
                        yield sentence[0]
                    seen.add(sentence[0])


def _in_several(collections: Iterable[list[str]]) -> set[str]:
    """The sentences that more than one library has."""
    seen: set[str] = set()
    several: set[str] = set()
    for sentences in collections:
        several |= seen & set(sentences)
        seen |= set(sentences)
    return several


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="gets the task's description and data")
    print(write_demo_task(parser.parse_args().folder))


if __name__ == "__main__":
    with report_user_errors():
        main()
