"""What every upload to the Hugging Face Hub needs: a client that does not wait for ever, and errors in one line."""

import hashlib
from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx


CONNECT_SECONDS, ANSWER_SECONDS = 10, 120
NOT_FOR_EVER = (408, 412, 429)  # of the statuses below 500 those that may be others at the next attempt


def client_with_timeouts() -> httpx.Client:
    """A client for `huggingface_hub.set_client_factory`; the library's own one waits for ever."""
    return httpx.Client(follow_redirects=True, timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS))


def may_pass(error: HfHubHTTPError) -> bool:
    """Whether the same request may succeed at another time."""
    status = error.response.status_code
    return status >= 500 or status in NOT_FOR_EVER


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
