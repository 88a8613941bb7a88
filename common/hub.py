"""What every upload to the Hugging Face Hub needs: a client that does not wait for ever, a token, one commit of some
files that leaves an edited model card alone, and errors in one line."""

import hashlib
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import httpx

from common.errors import UserError


CONNECT_SECONDS, ANSWER_SECONDS = 10, 120
CARD = constants.REPOCARD_NAME
NOT_FOR_EVER = (408, 412, 429)  # of the statuses below 500 those that may be others at the next attempt


class HubError(UserError):
    """What keeps a run from uploading until a person mends it."""


def client_with_timeouts() -> httpx.Client:
    """A client for `huggingface_hub.set_client_factory`; the library's own one waits for ever."""
    return httpx.Client(follow_redirects=True, timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS))


def may_pass(error: HfHubHTTPError) -> bool:
    """Whether the same request may succeed at another time."""
    status = error.response.status_code
    return status >= 500 or status in NOT_FOR_EVER


def check_token(api: HfApi):
    """
    Raises:
        HubError: where there is no token, or none that can be sent.
        HfHubHTTPError: where the Hub refuses it.
    """
    try:
        api.whoami()
    except LocalTokenNotFoundError as error:
        raise HubError("push_to_hub: there is no token. Log in with `hf auth login`, or set HF_TOKEN.") from error
    except UnicodeEncodeError as error:  # of the header with the token
        raise HubError("push_to_hub: the token holds characters that no token has. Set HF_TOKEN anew.") from error


def files_of(folder: Path) -> dict[str, Path]:
    """The files below a folder by their places in it."""
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def is_card_edited(there: str | None, written: str | None, own: str | None) -> bool:
    """Whether somebody has edited the model card of a repository.

    Args:
        there: git's id of it, if there is one.
        written: that of the card that this run wrote last.
        own: that of the card that is to be uploaded.
    """
    return there not in (None, written, own)


def commit_files(api: HfApi, id: str, files: dict[str, Path], message: str, parent: str | None = None) -> str:
    """Commit the files that are not there yet, on top of `parent`, and return the commit that holds them.

    A model card that the Hub refuses is taken out of `files`, which is said.
    """
    additions = [CommitOperationAdd(place, path) for place, path in sorted(files.items())]
    try:
        # Not `upload_folder`, which may make several commits of a folder.
        return api.create_commit(id, additions, commit_message=message, parent_commit=parent).oid
    except ValueError as error:
        if not str(error).startswith("Invalid metadata in README.md") or CARD not in files:
            raise
        print(f"Hub: {message} goes without its model card, which the Hub refuses: {error}", flush=True)
        del files[CARD]
        return commit_files(api, id, files, message, parent)


def blob_id(path: Path) -> str:
    """What git calls the content of a file."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def first_line(error: BaseException) -> str:
    """An error in one line, with what caused it where it does not say so itself."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:  # "Error while uploading ..."
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join((getattr(error, "server_message", None) or "").split())  # often not in the first line
    if said and lines and said not in lines[0]:
        lines[0] += f" ({said})"
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
