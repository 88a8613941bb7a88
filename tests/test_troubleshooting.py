# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""The messages that docs/troubleshooting.md quotes are those of the programs."""

import ast
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
FOLDERS = ("modeling_luna", "common", "pretrain", "evaluation", "experiments", "finetune_glue")
GAP = "\0"  # in place of a value in an f-string
MESSAGE = re.compile(r"^\| `([^`]+)`", re.MULTILINE)  # at the start of a row


def quoted_messages() -> list[str]:
    """Those of this project; messages of libraries have no backticks."""
    return MESSAGE.findall((ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def strings() -> str:
    """Every string in the code, parts of a sentence joined."""
    found = []
    for folder in (ROOT / name for name in FOLDERS):
        for path in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


def test_the_page_quotes_messages():
    assert len(quoted_messages()) > 50


@pytest.mark.parametrize("message", quoted_messages())
def test_message_is_in_the_code(strings: str, message: str):
    assert re.search(".*".join(re.escape(part.strip()) for part in message.split("...")), strings), message
