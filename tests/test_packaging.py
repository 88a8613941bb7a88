# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""What `pip install .` brings: the package alone, with metadata that are right and a page without broken links."""

import email
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import modeling_luna


ROOT = Path(__file__).parents[1]
REQUIREMENTS = sorted((ROOT / "requirements").glob("*.txt"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]


def test_version_is_one_that_the_changelog_and_the_citation_know():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    numbered = re.findall(r"^## \[(\d.*?)\]", changelog, re.MULTILINE)
    assert "## [Unreleased]" in changelog
    assert numbered[:1] == [modeling_luna.__version__]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {modeling_luna.__version__}\n" in citation


def test_no_extra_promises_scripts():
    assert "optional-dependencies" not in PROJECT
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        assert not re.search(r"(modeling-luna|\.)\[[a-z,]+\]\"", page.read_text(encoding="utf-8")), page.name


def test_requirements_are_ranges_that_the_constraints_meet():
    pins = {}
    for line in lines(ROOT / "constraints.txt"):
        name, version = line.split("==")
        pins[name] = version
    in_dev = lines(ROOT / "requirements/dev.txt")
    for path in REQUIREMENTS:
        assert path.name == "dev.txt" or f"-r {path.name}" in in_dev
        for line in lines(path):
            if not line.startswith("-r "):
                requirement = Requirement(line)
                assert pins[requirement.name] in requirement.specifier, f"{path.name}: {line}"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution, built by what `make test` has installed."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder


def test_wheel(built: Path):
    (wheel,) = built.glob("*.whl")
    version = modeling_luna.__version__
    assert wheel.name == f"modeling_luna-{version}-py3-none-any.whl"
    package = {f"modeling_luna/{path.name}" for path in (ROOT / "modeling_luna").iterdir() if path.is_file()}
    with zipfile.ZipFile(wheel) as archive:
        info = f"modeling_luna-{version}.dist-info"
        files = {f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE")}
        assert set(archive.namelist()) == package | files
        metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
    assert metadata["Name"] == "modeling-luna"
    assert metadata["Version"] == version
    assert metadata["License-Expression"] == "Apache-2.0"
    assert sorted(metadata.get_all("Requires-Dist")) == sorted(
        str(Requirement(line)) for line in PROJECT["dependencies"]
    )
    assert metadata.get_all("Provides-Extra") is None
    for label_and_address in metadata.get_all("Project-URL"):
        assert re.search(r", https://\S+$", label_and_address)
    page = metadata.get_payload()
    assert page.startswith("# Luna for Hugging Face Transformers")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for block in re.findall(r"^```.*?^```$", readme, re.MULTILINE | re.DOTALL):
        assert block in page
    targets = re.findall(r"\]\(([^)\s]+)", page) + re.findall(r"(?:src|href)=\"([^\"]+)\"", page)
    assert targets
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    assert "](" not in re.sub(r"\]\((https://|#)", "", page)


def test_source_distribution(built: Path):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.split("/", 1)[1] for name in opened.getnames()}
    for name in ("README.md", "LICENSE", "CHANGELOG.md", "Makefile", "constraints.txt", "docs/model.md"):
        assert name in names
    assert {f"requirements/{path.name}" for path in REQUIREMENTS} <= names
    assert not [name for name in names if name.startswith((".venv", "runs/", "data/", ".git/"))]
