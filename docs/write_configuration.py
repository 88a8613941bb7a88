"""Write docs/configuration.md, the page of all configuration keys, from the dataclasses that declare them.

python docs/write_configuration.py
"""

import argparse
from itertools import groupby
from pathlib import Path

from common.config.keys import TYPE_NAMES, Key, keys_of
from common.files import write_text
from finetune_glue.configuration import GlueConfig
from finetune_glue.training.settings import Hyperparameters
from pretrain.configuration import PretrainConfig


PAGE = Path(__file__).parent / "configuration.md"
INTRODUCTION = """\
# Configuration keys

<!-- Written by `python docs/write_configuration.py`; change the dataclasses that declare the keys instead. -->

A run reads its keys from a YAML file. The command line changes them as `--key value`; values are YAML, and several of
them make a list. `--key null` takes a key of the file back. An invalid key or value ends the program with one message
and exit code 2.
"""
CONFIGURATIONS = {
    "Pretraining": ("Keys of `configs/pretrain/*.yaml`.", PretrainConfig),
    "Fine-tuning": ("Keys of `configs/glue/*.yaml`.", GlueConfig),
    "Hyper-parameters of fine-tuning": (
        "Keys of `hyperparameters`, of each task in `per_task`, and of `grid`, for example "
        "`--hyperparameters.learning_rate 3e-5`.",
        Hyperparameters,
    ),
}


def page() -> str:
    """The page's text."""
    parts = [INTRODUCTION]
    for title, (introduction, config_class) in CONFIGURATIONS.items():
        parts.append(f"## {title}\n\n{introduction}\n")
        for section, keys in groupby(keys_of(config_class), key=lambda key: key.section):
            heading, _, sentence = section.partition(": ")
            parts += [f"### {heading}\n"] if heading else []
            parts += [f"{sentence}\n"] if sentence else []
            parts.append(table(list(keys)))
    return "\n".join(parts)


def table(keys: list[Key]) -> str:
    """The keys as rows of a Markdown table."""
    rows = ["| key | default | values | meaning |", "|---|---|---|---|"]
    for key in keys:
        default = "needed" if key.default is None else f"`{key.default}`"
        doc = key.doc.replace("|", "\\|")
        rows.append(f"| `{key.name}` | {default} | {values_of(key)} | {doc} |")
    return "\n".join(rows) + "\n"


def values_of(key: Key) -> str:
    """What a key takes, in words."""
    if key.choices is not None:
        return key.allowed().removeprefix("one of ")
    *others, last = [TYPE_NAMES[kind] for kind in key.types]
    names = f"{', '.join(others)} or {last}" if others else last
    return f"{names}: {key.limits}" if key.limits else names


def main():
    argparse.ArgumentParser(
        prog="write_configuration.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    write_text(PAGE, page())
    print(PAGE)


if __name__ == "__main__":
    main()
