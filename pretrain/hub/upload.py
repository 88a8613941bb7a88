"""Uploads what waits in a run's outbox to the Hugging Face Hub: `python pretrain/hub/upload.py RUN`.

A run with `push_to_hub` starts this program (with --follow) and lets it work beside the training. It is a process of
its own, since threads of the Hub's client that hang would hold up the end of the run, and what kills it kills no
training.

Each snapshot `RUN/hub/TAG` becomes a commit on `main` and a tag, in the order in which they were queued, and is
deleted when both are there. A commit or tag whose answer got lost is found at the next attempt, not made twice. The
run replaces the files that it writes itself, touches no others, and leaves a model card that was edited on the Hub.
"""

import argparse
import dataclasses
import os
import re
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout
from huggingface_hub import HfApi, constants, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from common.checksums import find_change, is_as_written, take_checksum, with_checksum
from common.config.yaml_config import read_json, read_yaml
from common.errors import UserError, report_user_errors
from common.files import DamagedFile, read_checked_json, remove_folder, write_json
from common.hub import (
    CARD,
    HubError,
    blob_id,
    check_token,
    client_with_timeouts,
    commit_files,
    files_of,
    first_line,
    is_card_edited,
    may_pass,
)


OUTBOX = "hub"  # below the run's folder
RECORD = "uploaded.json"
QUEUED = ".queued.json"  # the digests of a snapshot's files
FINAL = "final"  # the tag of the finished model
REFUSED, CONNECTED, UNREACHABLE = "refused", "connected", "unreachable"  # the first word that --follow prints
FIRST_WAIT, LONGEST_WAIT = 2, 600  # seconds between attempts, doubling


@dataclass
class Uploads:
    """What a run knows of its repository.

    Args:
        id: of the repository.
        card: git's id of the model card that the run wrote last, or was told to replace.
        tags: the commit of each tag that the run has made.
    """

    id: str
    card: str | None = None
    tags: dict[str, str] = field(default_factory=dict)


def read_uploads(run: Path, id: str) -> Uploads | None:
    """What a run has uploaded to a repository; None where the run has not come to use it yet."""
    path = run / OUTBOX / RECORD
    if not path.exists():
        return None
    record = read_json(path)
    known = {field.name for field in dataclasses.fields(Uploads)}
    if not take_checksum(record) or "id" not in record or record.keys() - known:
        raise HubError(f"{path} is damaged. Delete it, and give --hub_overwrite true: the repository is not empty.")
    uploads = Uploads(**record)
    return uploads if uploads.id == id else None


def waiting(run: Path) -> list[Path]:
    """The snapshots in a run's outbox in the order in which they were queued."""
    snapshots = []
    for path in (run / OUTBOX).glob("*"):
        match = re.fullmatch(rf"step-([0-9]+)|{FINAL}", path.name)
        if match:
            with suppress(FileNotFoundError):  # it has just been uploaded
                snapshots.append((path.stat().st_mtime_ns, int(match[1] or sys.maxsize), path))
    return [path for *_, path in sorted(snapshots)]


class Uploader:
    """Uploads the snapshots of one run.

    Args:
        run: the run's folder, whose `config.yaml` names the repository.
    """

    def __init__(self, run: Path):
        config = read_yaml(run / "config.yaml")
        if not is_as_written((run / "config.yaml").read_text(encoding="utf-8")):
            raise HubError(f"{run / 'config.yaml'} is damaged, or was edited: the command of the run writes it anew.")
        if not config.get("push_to_hub"):
            raise HubError(f"{run / 'config.yaml'} names no repository: run the training with --push_to_hub ID.")
        self.run = run
        self.id: str = config["push_to_hub"]
        self.private: bool | None = config["hub_private_repo"]
        self.overwrite: bool = config["hub_overwrite"]
        self.uploads: Uploads | None = None
        self.api = HfApi()
        self.card_is_foreign = False
        set_client_factory(client_with_timeouts)

    def connect(self) -> Uploads:
        """Find or make the repository, and see that the run may write into it.

        Raises:
            HubError: where it may not: the token, the repository, or what is in there does not allow it.
            Exception: another one of `huggingface_hub`, where the Hub cannot be reached.
        """
        if constants.HF_HUB_OFFLINE:
            raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
        try:
            check_token(self.api)  # tells a wrong token from a repository that is not there
            self.api.create_repo(self.id, private=self.private, exist_ok=True)
            self.api.auth_check(self.id, write=True)
            info = self.api.model_info(self.id, files_metadata=True)
            tags = [tag.name for tag in self.api.list_repo_refs(self.id).tags]
        except HfHubHTTPError as error:
            if may_pass(error):
                raise
            raise HubError(f"push_to_hub: {self.id} cannot be written: {first_line(error)}") from error
        if self.private and not info.private:
            raise HubError(
                f"push_to_hub: {self.id} is there and is public, but hub_private_repo is true. Make it private on its "
                "page, or name another one."
            )
        uploads = read_uploads(self.run, self.id)
        if uploads is None:
            uploads = self._take_over(info, tags)
        elif not set(tags) & set(uploads.tags):  # it was deleted, and is new
            uploads.tags = {}
        self._record(uploads)
        return uploads

    def _take_over(self, info, tags: list[str]) -> Uploads:
        """Begin to use a repository, which must be empty unless the run is to overwrite it."""
        files = {file.rfilename: file.blob_id for file in info.siblings or ()}
        foreign = sorted(files.keys() - {".gitattributes"}) + [tag for tag in tags if tag.startswith(("step-", FINAL))]
        if foreign and not self.overwrite:
            raise HubError(
                f"push_to_hub: {self.id} holds what this run has not written ({', '.join(foreign[:5])}"
                f"{' and more' if len(foreign) > 5 else ''}). Name another repository, or give --hub_overwrite true: "
                "files and tags of the same names are replaced (the history keeps the files), others stay."
            )
        return Uploads(self.id, card=files.get(CARD))

    def _record(self, uploads: Uploads):
        self.uploads = uploads
        write_json(self.run / OUTBOX / RECORD, with_checksum(dataclasses.asdict(uploads)))

    def upload(self, snapshot: Path):
        """Make a snapshot a commit and a tag, and delete it.

        Raises:
            HubError: where its files have changed since they were queued; it is set aside.
            Exception: any of `huggingface_hub`; the snapshot stays.
        """
        uploads = self.uploads or self.connect()
        self._set_aside_if_damaged(snapshot)
        files = files_of(snapshot)
        files.pop(QUEUED, None)
        info = self.api.model_info(self.id, files_metadata=True)
        card_there = next((file.blob_id for file in info.siblings or () if file.rfilename == CARD), None)
        card = blob_id(files[CARD])
        if is_card_edited(card_there, uploads.card, card):
            del files[CARD]
            if not self.card_is_foreign:
                say(f"the model card of {self.id} was edited there and stays as it is")
            self.card_is_foreign = True
        commit = commit_files(self.api, self.id, files, snapshot.name, info.sha)
        if CARD in files:
            uploads.card = card
            self._record(uploads)
        self._tag(snapshot.name, commit)
        uploads.tags[snapshot.name] = commit
        self._record(uploads)
        remove_folder(snapshot)
        say(f"{snapshot.name} uploaded: {constants.ENDPOINT}/{self.id}/tree/{snapshot.name}")

    def _set_aside_if_damaged(self, snapshot: Path):
        if not (snapshot / QUEUED).exists():  # of an earlier release
            return
        try:
            change = find_change(snapshot, read_checked_json(snapshot / QUEUED))
        except DamagedFile:
            change = f"{QUEUED} is not as it was written"
        if change is None:
            return
        aside = snapshot.with_name(f"{snapshot.name}.damaged")
        remove_folder(aside)
        snapshot.rename(aside)
        message = f"{snapshot.name} is not uploaded, since it is damaged: {change}. It lies in {aside}"
        say(message)
        raise HubError(message)

    def _tag(self, name: str, commit: str):
        try:
            self.api.create_tag(self.id, tag=name, revision=commit)
        except HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            there = next(tag.target_commit for tag in self.api.list_repo_refs(self.id).tags if tag.name == name)
            if there != commit:
                self.api.delete_tag(self.id, tag=name)
                self.api.create_tag(self.id, tag=name, revision=commit)
                say(f"the tag {name} was moved from commit {there[:10]} to {commit[:10]}")

    def follow(self) -> int:
        """Upload what waits and what comes, until the run that has started this ends; return the exit code."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the run ends this when it is time
        os.nice(10)
        news = threading.Event()
        threading.Thread(target=_wait_for_lines, args=(news,), daemon=True).start()
        try:
            self.connect()
            say(self.id, CONNECTED)
        except UserError as error:
            say(str(error), REFUSED)
            return 2
        except Exception as error:
            say(first_line(error), UNREACHABLE)
        wait = FIRST_WAIT
        while True:
            news.clear()
            snapshot = next(iter(waiting(self.run)), None)
            if snapshot is None:
                news.wait()
                continue
            try:
                self.upload(snapshot)
                wait = FIRST_WAIT
            except Exception as error:
                if not snapshot.exists():  # the run has given it up, or has a newer one
                    continue
                say(f"{snapshot.name} is not uploaded ({first_line(error)}); next attempt in {wait} s")
                news.wait(wait)  # what is new makes it earlier
                wait = min(2 * wait, LONGEST_WAIT)

    def upload_all(self):
        """Try once to upload each snapshot that waits.

        Raises:
            HubError: for the first that cannot be uploaded.
        """
        for snapshot in waiting(self.run):
            try:
                self.upload(snapshot)
            except HubError:
                raise
            except Exception as error:
                raise HubError(f"{snapshot.name} is not uploaded: {first_line(error)}") from error


def say(message: str, kind: str = "Hub"):
    print(f"{kind}: {message}", flush=True)


def _wait_for_lines(news: threading.Event):
    """Note each line that the run sends; end at once where it has ended, whatever the client hangs in."""
    for _ in sys.stdin:
        news.set()
    os._exit(0)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run that was started with --push_to_hub")
    parser.add_argument("--follow", action="store_true", help="go on until the end of the standard input")
    options = parser.parse_args(arguments)
    if not (options.run / OUTBOX).is_dir():
        raise HubError(f"{options.run} is no folder of a run with --push_to_hub: {OUTBOX}/ is missing.")
    try:
        with FileLock(options.run / OUTBOX / ".lock", timeout=-1 if options.follow else 0):
            uploader = Uploader(options.run)
            if options.follow:
                return uploader.follow()
            uploader.upload_all()
    except Timeout as error:
        raise HubError(f"Another process uploads {options.run}: nothing needs to be done.") from error
    say("nothing waits any more")
    return 0


if __name__ == "__main__":
    with report_user_errors():
        sys.exit(main(sys.argv[1:]))
