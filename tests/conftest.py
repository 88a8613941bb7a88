"""What holds for all tests."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest


pytest_plugins = ["training_runs"]  # fixtures of pretraining runs, which several folders use

NOBODY = 65534


@pytest.fixture(scope="session", autouse=True)
def extensions(tmp_path_factory: pytest.TempPathFactory):
    """Let DeepSpeed compile its extensions once for all tests, which takes a minute."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(folder / "extensions"))
        yield


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that all users can reach, which those below `tmp_path` are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def as_another_user() -> Iterator[None]:
    """Be nobody, if the tests are run by root, whom nothing is forbidden."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def unreadable() -> Callable[[Path], AbstractContextManager]:
    """Forbid to read a file or folder."""

    @contextmanager
    def forbid(path: Path) -> Iterator[None]:
        mode = path.stat().st_mode
        path.chmod(0)
        try:
            with as_another_user():
                yield
        finally:
            path.chmod(mode)

    return forbid


@pytest.fixture
def unwritable() -> Callable[[Path], AbstractContextManager]:
    """Forbid to write into a folder and all below it."""

    @contextmanager
    def forbid(folder: Path) -> Iterator[None]:
        paths = [folder, *folder.rglob("*")]
        for path in paths:
            path.chmod(0o555 if path.is_dir() else 0o444)
        try:
            with as_another_user():
                yield
        finally:
            for path in paths:
                path.chmod(0o755 if path.is_dir() else 0o644)

    return forbid
