"""Fingerprints of files and repositories, which show whether their content has changed.

Sizes and times may lie: that of a file is its SHA-256, that of a repository of the Hub its commit.
"""

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.utils import httpx

from common.errors import UserError


def digest_of_files(paths: Iterable[Path], folder: Path | None = None) -> str:
    """The SHA-256 of files, one behind the other.

    Args:
        folder: that the files are in; then their places in it count, too.

    Raises:
        UserError: for a file that cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            if folder is not None:
                digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                while piece := file.read(2**20):
                    digest.update(piece)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    return digest.hexdigest()


@functools.cache
def commit_of(id: str, revision: str | None, file: str, repo_type: str | None = None) -> str:
    """The commit of a repository of the Hub that would be taken now, without a network the one in the cache; '' where
    none can be had.

    Args:
        file: one that it has.
    """
    try:
        return Path(hf_hub_download(id, file, revision=revision, repo_type=repo_type)).parent.name
    except (OSError, ValueError, httpx.TransportError):  # whatever needs the repository says why
        return ""
