"""Uploads the best model of each model and task to the Hugging Face Hub, with its card: `push_to_hub`.

Nothing here ends a run: what cannot be uploaded is said, and the same command tries it again.
"""

import re
import time
from collections import Counter
from pathlib import Path

from huggingface_hub import HfApi, constants, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import httpx, validate_repo_id

from common.errors import UserError
from common.files import parse_json, write_json
from common.hub import (
    CARD,
    blob_id,
    check_token,
    client_with_timeouts,
    commit_files,
    files_of,
    first_line,
    is_card_edited,
    may_pass,
)
from experiments.cell_folder import MODEL
from experiments.results import Results


RECORD = "pushed.json"  # in the run's folder: git's id of the card that was written last into each repository
WAITS = (2.0, 10.0)  # seconds before the second and the third attempt


def check_push(push_to_hub: str):
    """See at the start of a run that there is a token, and that the name can be one of repositories.

    Raises:
        UserError: where the models cannot be pushed. A Hub that cannot be reached now is no reason; that is said.
    """
    try:
        validate_repo_id(push_to_hub if "/" in push_to_hub else f"{push_to_hub}/x")
    except HFValidationError as error:
        raise UserError(f"push_to_hub is {push_to_hub!r}: it must be NAMESPACE or NAMESPACE/PREFIX.") from error
    set_client_factory(client_with_timeouts)
    try:
        check_token(HfApi())
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, HfHubHTTPError) and not may_pass(error):
            raise UserError(f"push_to_hub: the Hub refuses the token: {first_line(error)}") from error
        print(f"push_to_hub: the Hub cannot be reached now ({first_line(error)}); the run goes on", flush=True)


def repository_ids(results: Results, push_to_hub: str) -> dict[tuple[str, str], str]:
    """The repository of each model and task that has a best model: NAMESPACE/PREFIX-TASK.

    Without a prefix, and where there are several models, the model's name stands before the task.
    """
    namespace, _, prefix = push_to_hub.partition("/")
    ids = {}
    for group in results.best_groups():
        with_model = not prefix or len(results.models) > 1
        name = "-".join(filter(None, [prefix, group.model if with_model else "", group.task.name]))
        name = re.sub(r"[^A-Za-z0-9._-]+|--+|\.\.+", "-", name)
        ids[group.model, group.task.name] = f"{namespace}/{name}"
    return ids


def push_models(results: Results, output_dir: Path, push_to_hub: str, private: bool | None = None) -> list[str]:
    """Upload the best model of each model and task, as far as it was kept; what is there already is not sent again.

    Args:
        private: whether new repositories are to be private.

    Returns:
        A line for each that could not be uploaded.
    """
    set_client_factory(client_with_timeouts)
    try:
        uploader = _Uploader(output_dir / RECORD, private)
    except (OSError, ValueError) as error:
        return [
            f"nothing is on the Hub: {output_dir / RECORD}, which lists the repositories of this run, cannot be read "
            f"({error}): delete it, and name another PREFIX."
        ]
    failures = []
    ids = repository_ids(results, push_to_hub)
    shared = {id for id, count in Counter(ids.values()).items() if count > 1}
    reachable = True
    for group in results.best_groups():
        id = ids[group.model, group.task.name]
        folder = group.best.folder / MODEL if group.best else Path()
        try:
            if id in shared:
                raise UserError("two models would have this name: give them others with NAME=MODEL")
            if not folder.is_dir():
                raise UserError(f"{folder} was not kept: run with save_models best, into another output_dir")
            if not reachable:
                raise UserError("not tried, since the Hub cannot be reached")
            uploader.push(id, folder)
            print(f"Hub: {constants.ENDPOINT}/{id}", flush=True)
        except Exception as error:
            reachable &= not isinstance(error, httpx.TransportError | ConnectionError)
            message = str(error) if isinstance(error, UserError) else first_line(error)
            failures.append(f"{id} is not on the Hub: {message}")
    return failures


class _Uploader:
    """Writes into repositories that were empty when this run first saw them, and into no others.

    Args:
        record: file with the repositories of this run.
    """

    def __init__(self, record: Path, private: bool | None):
        self.record, self.private = record, private
        self.cards: dict[str, str | None] = parse_json(record.read_bytes()) if record.exists() else {}
        if not isinstance(self.cards, dict):
            raise ValueError("it holds no JSON object")
        self.api = HfApi()

    def push(self, id: str, folder: Path):
        """Commit the files of a folder, with some attempts.

        Raises:
            UserError: where the repository holds what others have written.
            Exception: of `huggingface_hub`, when the last attempt has failed.
        """
        for wait in (*WAITS, None):
            try:
                self._push(id, folder)
                return
            except UserError:
                raise
            except Exception as error:
                if wait is None or (isinstance(error, HfHubHTTPError) and not may_pass(error)):
                    raise
                time.sleep(wait)

    def _push(self, id: str, folder: Path):
        self.api.create_repo(id, private=self.private, exist_ok=True)
        info = self.api.model_info(id, files_metadata=True)
        there = {file.rfilename: file.blob_id for file in info.siblings or ()}
        if id not in self.cards:
            if there.keys() - {".gitattributes"}:
                raise UserError("it holds what this run has not written: name another PREFIX, or delete it there")
            self._write_down(id, None)
        files = files_of(folder)
        card = blob_id(files[CARD]) if CARD in files else None
        if is_card_edited(there.get(CARD), self.cards[id], card):
            print(f"Hub: the model card of {id} was edited there and stays as it is", flush=True)
            files.pop(CARD, None)
        commit_files(self.api, id, files, f"Fine-tuned model ({folder.parent.name})")
        if CARD in files:
            self._write_down(id, card)

    def _write_down(self, id: str, card: str | None):
        self.cards[id] = card
        write_json(self.record, self.cards)
