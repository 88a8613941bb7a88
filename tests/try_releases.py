# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Try Luna with other releases of Transformers: python tests/try_releases.py [RELEASE ...]

Without arguments: the releases of the table in docs/compatibility.md. Each is installed from the package index into a
folder of its own (250 MB, kept in the temporary folder), and runs with everything else as it is in this environment:
once with the code of a saved folder alone, once with the package. The numbers must be those of this environment; a
release that is too old must end in the sentence that says so. Exit code 1 where that is not so.
"""

import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from packaging.version import Version
from tokenizers import ByteLevelBPETokenizer
from transformers import RobertaTokenizer

from modeling_luna import LunaConfig, LunaForMaskedLM, LunaForSequenceClassification, LunaTokenizer
from modeling_luna.releases_luna import OLDEST_RELEASES


ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| (\d+\.\d+\.\d+) \| ([\d., ]+) \| (.+) \|$", re.MULTILINE)
OLDEST = Version(OLDEST_RELEASES["transformers"])
TOLERANCE = 1e-6


def releases_in_the_table() -> list[str]:
    return [row[1] for row in ROW.finditer((ROOT / "docs/compatibility.md").read_text(encoding="utf-8"))]


def make_models(folder: Path):
    trained = ByteLevelBPETokenizer()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    corpus = ["Luna packs the tokens of a sentence into a few slots.", "The moon goes round the earth."]
    trained.train_from_iterator(corpus, vocab_size=320, min_frequency=1, special_tokens=specials, show_progress=False)
    folder.mkdir(parents=True)
    trained.save_model(str(folder))
    roberta = RobertaTokenizer.from_pretrained(folder)
    sizes = {
        "vocab_size": len(roberta),
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "projection_length": 6,
        "max_position_embeddings": 32,
        "initializer_range": 0.3,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    extensions = {"normalize_before": True, "conv_kernel_size": 3, "positional_slots": True, "tie_key_value": False}
    for name, fields in (("default", {}), ("extensions", extensions)):
        LunaForMaskedLM(LunaConfig(**sizes, **fields)).save_pretrained(folder / name)
        roberta.save_pretrained(folder / name)
    head = {"classifier_pooling": "packed_attention", "num_labels": 3, "position_embedding_type": "sinusoidal"}
    LunaForSequenceClassification(LunaConfig(**sizes, **head)).save_pretrained(folder / "classifier")
    LunaTokenizer(
        tokenizer_object=roberta.backend_tokenizer, dictionary_size=len(roberta), **roberta.special_tokens_map
    ).save_pretrained(folder / "classifier")


def install(release: str) -> Path:
    packages = Path(tempfile.gettempdir()) / "luna-releases" / release
    if not packages.is_dir():
        packages.parent.mkdir(exist_ok=True)
        partial = tempfile.mkdtemp(dir=packages.parent)
        pip = [sys.executable, "-m", "pip", "install", "-qq", "--target", partial, f"transformers=={release}"]
        subprocess.run(pip, check=True)
        os.rename(partial, packages)
    return packages


def run(models: Path, code: str, packages: Path | None) -> tuple[dict | None, str]:
    """The numbers, and what the process wrote to its standard error."""
    paths = [str(path) for path in (packages, ROOT if code == "package" else None) if path is not None]
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HOME": home, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, str(ROOT / "tests/release_outputs.py"), str(models), code, f"{home}/numbers.json"]
        done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True)
        return (json.loads(Path(home, "numbers.json").read_text()) if done.returncode == 0 else None), done.stderr


def difference(found: Any, expected: Any) -> float:
    """The largest difference between the numbers of both; infinity where anything else differs."""
    if isinstance(expected, dict) and isinstance(found, dict) and found.keys() == expected.keys():
        return max((difference(found[key], expected[key]) for key in expected), default=0.0)
    if isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        return max((difference(*pair) for pair in zip(found, expected, strict=True)), default=0.0)
    if isinstance(expected, float) and isinstance(found, float):
        return abs(found - expected)
    return 0.0 if found == expected else math.inf


def verdict(release: str, numbers: dict | None, error: str, expected: dict) -> str:
    if numbers is not None:
        largest = difference(numbers, expected)
        return "same numbers" if largest <= TOLERANCE else f"FAILED: numbers differ by {largest:.1e}"
    if Version(release) < OLDEST and f"transformers>={OLDEST_RELEASES['transformers']} is required" in error:
        return "refused"
    return f"FAILED: {error.strip().splitlines()[-1]}"


def main() -> int:
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        make_models(models)
        expected = {}
        for code in ("folder", "package"):
            expected[code], error = run(models, code, packages=None)
            if expected[code] is None:
                sys.exit(error)
        for release in sys.argv[1:] or releases_in_the_table():
            packages = install(release)
            for code in ("folder", "package"):
                result = verdict(release, *run(models, code, packages), expected[code])
                print(f"{release}, {code}: {result}", flush=True)
                failed |= result.startswith("FAILED")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
