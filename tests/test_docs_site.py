# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""`make docs` builds a site whose links work and whose pages fetch nothing."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -r requirements/docs.txt")
pytest.importorskip("material", reason="mkdocs-material is not installed: pip install -r requirements/docs.txt")

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
# Elements that a browser loads by itself; a plain link is followed by the reader only.
FETCHED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=[\"']?((?:https?:)?//[^\"'\s>]+)")
PICTURE = re.compile(r"<img[^>]* src=\"([^\"]+)\"")


def build(folder: Path, site: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=folder,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("site")
    done = build(ROOT, site)
    assert done.returncode == 0, done.stderr
    return site


def test_every_page_is_there_and_no_code(site: Path):
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert {path.stem for path in site.glob("*.html")} == pages | {"404"}
    assert not list(site.rglob("*.py"))


def test_nothing_is_fetched(site: Path):
    for page in site.glob("*.html"):
        assert FETCHED.findall(page.read_text(encoding="utf-8")) == [], page.name


def test_pictures_come_along(site: Path):
    """Those of docs/, and those of other folders."""
    found = {name for page in site.glob("*.html") for name in PICTURE.findall(page.read_text(encoding="utf-8"))}
    assert "luna.png" in found
    assert any(name.startswith("benchmarks/records/") for name in found)
    for name in found:
        assert (site / name).is_file(), name


def test_files_of_the_repository_are_named(site: Path):
    page = (site / "model.html").read_text(encoding="utf-8")
    assert "(<code>tests/modeling_luna/test_parity.py</code>)" in page
    assert "../" not in "".join(re.findall(r"href=\"([^\"]*)\"", page))


def test_broken_links_are_errors(tmp_path: Path):
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs/links_hook.py", tmp_path / "docs")
    configuration = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    (tmp_path / "mkdocs.yml").write_text(configuration.partition("\nnav:")[0], encoding="utf-8")
    page = tmp_path / "docs/index.md"
    page.write_text("# Index\n\n[hook](../mkdocs.yml)\n", encoding="utf-8")
    assert build(tmp_path, tmp_path / "site").returncode == 0
    page.write_text("# Index\n\n[page](no.md) [file](../no/file.yaml) [section](index.md#no)\n", encoding="utf-8")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    for target in ("'no.md'", "'../no/file.yaml'", "'index.md#no'"):
        assert target in done.stderr
