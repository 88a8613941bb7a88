# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""The releases that the documentation, the package's metadata and the code name are the same ones."""

import importlib.metadata
import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from transformers import AutoConfig
from try_releases import ROW

from modeling_luna import LunaConfig
from modeling_luna.releases_luna import OLDEST_RELEASES


ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/compatibility.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RANGES = {Requirement(line).name: Requirement(line).specifier for line in PROJECT["dependencies"]}
TRIED = [(Version(row[1]), [Version(release) for release in row[2].split(", ")], row[3]) for row in ROW.finditer(PAGE)]


def constrained(package: str) -> Version:
    return Version(re.search(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1])


def minor(version: Version) -> str:
    return f"{version.major}.{version.minor}"


def range_in_words(name: str) -> tuple[str, str]:
    """What the first table of the page says of the package and of the scripts."""
    return re.search(rf"^\| {name} \| (.+) \| (.+) \|$", PAGE, re.MULTILINE).groups()


def test_table_holds_both_ends():
    assert len(TRIED) >= 8
    working = [(release, torchs) for release, torchs, result in TRIED if result.startswith("same numbers")]
    refused = [release for release, _, result in TRIED if result.startswith("refused")]
    assert len(working) + len(refused) == len(TRIED)
    assert min(working)[0] == Version(OLDEST_RELEASES["transformers"]) > max(refused)
    assert max(working)[0] == constrained("transformers")
    for _, torchs in (min(working), max(working)):
        assert minor(min(torchs)) == OLDEST_RELEASES["torch"]
        assert constrained("torch") in torchs
    first, last = minor(min(working)[0]), minor(max(working)[0])
    assert range_in_words("Transformers") == (f"{first} to {last}", last)
    first, last = minor(min(min(working)[1])), minor(max(min(working)[1]))
    assert range_in_words("PyTorch") == (f"{first} to {last}", minor(constrained("torch")))


def test_declared_ranges_are_what_was_tried():
    for package, oldest in OLDEST_RELEASES.items():
        lower = [bound for bound in RANGES[package] if bound.operator == ">="]
        assert [Version(bound.version) for bound in lower] == [Version(oldest)]
    for release, torchs, result in TRIED:
        assert (release in RANGES["transformers"]) == result.startswith("same numbers")
        assert all(torch in RANGES["torch"] for torch in torchs)
    for package in RANGES:
        assert constrained(package) in RANGES[package]
    assert f"(below {OLDEST_RELEASES['huggingface-hub']})" in PAGE


def test_every_lower_bound_was_tried():
    tried = dict(re.findall(r"(huggingface-hub|numpy|safetensors|tokenizers) (\d+\.\d+\.\d+)", PAGE))
    for package, version in tried.items():
        lower = [Version(bound.version) for bound in RANGES[package] if bound.operator == ">="]
        assert lower == [Version(version)]


def test_pythons():
    first, last = range_in_words("Python")[0].split(" to ")
    declared = SpecifierSet(PROJECT["requires-python"])
    pythons = [f"3.{number}" for number in range(8, 20) if f"3.{number}.1" in declared]
    assert (pythons[0], pythons[-1]) == (first, last)
    prefix = "Programming Language :: Python :: 3."
    assert [f"3.{line.removeprefix(prefix)}" for line in PROJECT["classifiers"] if prefix in line] == pythons
    in_makefile = re.search(r"^\t([\d.|]+)\) ;;", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split("|")
    assert range_in_words("Python")[1] == f"{in_makefile[0]} to {in_makefile[-1]}"
    assert set(in_makefile) <= set(pythons)


@pytest.mark.parametrize("package", OLDEST_RELEASES)
@pytest.mark.parametrize("module", ["", ".configuration_luna", ".modeling_luna", ".tokenization_luna"])
def test_older_releases_end_in_a_sentence(monkeypatch: pytest.MonkeyPatch, package: str, module: str):
    """Whichever file is imported first, as if the release were a little too old."""
    location = sys.modules["modeling_luna"].__file__
    folders = [str(Path(location).parent)]
    spec = importlib.util.spec_from_file_location("old_luna", location, submodule_search_locations=folders)
    parent = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "old_luna", parent)
    pretend_older(monkeypatch, package)
    with pytest.raises(ImportError, match=f"Luna needs it: pip install --upgrade '{package}>=") as failure:
        if module:
            importlib.import_module(f"old_luna{module}")
        else:
            spec.loader.exec_module(parent)
    assert f"{package}>={OLDEST_RELEASES[package]} is required" in str(failure.value)
    assert f"found {package}==0.9" in str(failure.value)
    for name in [name for name in sys.modules if name.startswith("old_luna")]:
        monkeypatch.delitem(sys.modules, name)


def pretend_older(monkeypatch: pytest.MonkeyPatch, package: str):
    version = importlib.metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.9" if name == package else version(name))


def test_older_releases_and_remote_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    # Code that another test loaded remotely would be looked for in the folder of that test.
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not Path(path, "transformers_modules").exists()])
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)
    config = {"vocab_size": 10, "hidden_size": 8, "num_attention_heads": 2}
    LunaConfig(**config).save_pretrained(tmp_path / "old")
    # Another type than the registered one: else the package's own class would be taken.
    stored = (tmp_path / "old/config.json").read_text().replace('"model_type": "luna"', '"model_type": "old-luna"')
    (tmp_path / "old/config.json").write_text(stored)
    pretend_older(monkeypatch, "transformers")
    with pytest.raises(ImportError, match="Luna needs it: pip install --upgrade 'transformers>="):
        AutoConfig.from_pretrained(tmp_path / "old", trust_remote_code=True)
