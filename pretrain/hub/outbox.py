"""What a run queues for the Hugging Face Hub; the program `pretrain/hub/upload.py` uploads it in the background."""

import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from huggingface_hub import constants
from tqdm import tqdm

from common.checksums import digests, with_checksum
from common.errors import Stopped
from common.files import PARTIAL, remove_folder, write_folder, write_json
from pretrain.checkpointing.folders import TRAINING_STATE, find_checkpoints, find_damage
from pretrain.configuration import PretrainConfig
from pretrain.hub import upload as hub_upload
from pretrain.hub.upload import CONNECTED, FINAL, OUTBOX, QUEUED, REFUSED, UNREACHABLE, HubError
from pretrain.stopping import StopRequest


START_SECONDS = 60  # in which the Hub must have answered at the start of a run
END_SECONDS = 5  # in which the program must have ended


class HubOutbox:
    """The outbox of a run's main process. Once it is open, nothing that happens to uploads ends or blocks the run.

    Args:
        config: of the run, with `push_to_hub`.
    """

    def __init__(self, config: PretrainConfig):
        assert config.push_to_hub is not None
        self.run = Path(config.output_dir)
        self.id = config.push_to_hub
        self.max_waiting = config.hub_max_waiting
        self.given_up: list[str] = []
        self.program: subprocess.Popen | None = None

    def open(self):
        """Start the program and wait until it has found the repository or the Hub cannot be reached.

        Raises:
            HubError: where the token, the repository or what it holds does not allow uploads.
        """
        (self.run / OUTBOX).mkdir(exist_ok=True)
        for partial in (self.run / OUTBOX).glob(f"*{PARTIAL}"):  # of a launch that was killed
            shutil.rmtree(partial, ignore_errors=True)
        answer: queue.Queue = queue.Queue()
        self._start(answer.put)
        try:
            kind, _, message = answer.get(timeout=START_SECONDS).partition(": ")
        except queue.Empty:
            kind, message = UNREACHABLE, f"no answer in {START_SECONDS} s"
        if kind == REFUSED:
            self.close()
            raise HubError(message.strip())
        if kind == CONNECTED:
            say(f"checkpoints go to {self.id}")
        else:
            say(f"cannot be reached ({message.strip()}). Training goes on; checkpoints wait in {self.run / OUTBOX}")

    def add_missing(self):
        """Queue the checkpoints of earlier launches that were neither uploaded nor queued."""
        uploads = hub_upload.read_uploads(self.run, self.id)
        known = set(uploads.tags if uploads else ()) | {path.name for path in hub_upload.waiting(self.run)}
        for folder in find_checkpoints(self.run):
            if _tag(folder) in known:
                continue
            damage = find_damage(folder)
            if damage is None:
                self.add(folder)
            else:
                say(f"{folder} is not uploaded, since it is damaged: {damage}")

    def add(self, folder: Path):
        """Queue a checkpoint or the finished model. The folder may be deleted afterwards, since its files are linked.

        The training state stays here: it is twice the size of the weights, and of use to this run alone.
        """
        tag = _tag(folder)
        try:
            write_folder(self.run / OUTBOX / tag, lambda partial: _take_snapshot(folder, partial))
            self._limit()
        except OSError as error:
            self.given_up.append(tag)
            say(f"{tag} cannot be queued ({error}) and is not uploaded")
        self._notify()

    def _limit(self):
        """Give the oldest snapshots up where too many wait that hold disk space. One whose checkpoint is still there
        holds none, and the very first one is being uploaded perhaps."""
        if self.max_waiting is None:
            return
        behind = hub_upload.waiting(self.run)[1:]
        here = {FINAL, *map(_tag, find_checkpoints(self.run))}
        costly = [path for path in behind if path.name not in here]
        for path in costly[: max(0, len(costly) - self.max_waiting)]:
            remove_folder(path)
            self.given_up.append(path.name)
            say(f"{path.name} is given up: more than {self.max_waiting} wait whose checkpoints are deleted here")

    def finish(self, stop: StopRequest):
        """Wait for the uploads until `stop` is requested, then close.

        Raises:
            Stopped: where a signal has ended the waiting.
        """
        left = hub_upload.waiting(self.run)
        if left and not stop.requested() and not constants.HF_HUB_OFFLINE:
            say(f"waiting at most {stop.deadline - time.monotonic():,.0f} s for uploads: {_names(left)}")
            self._notify()
            while hub_upload.waiting(self.run) and self._is_running() and not stop.requested():
                time.sleep(0.1)
        self.close()
        if stop.signalled and hub_upload.waiting(self.run):
            raise Stopped("Stopped while it waited for uploads. Training is over; the same command uploads the rest.")

    def close(self):
        """End the program, whatever it does, and say what was not uploaded."""
        if self.program is None:
            return
        assert self.program.stdin is not None
        with suppress(OSError):  # it has ended by itself
            self.program.stdin.close()
        try:
            self.program.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.program.kill()
            self.program.wait()
        self.reader.join(END_SECONDS)
        self.program = None
        left = hub_upload.waiting(self.run)
        if left:
            say(
                f"not uploaded: {_names(left)}. They wait in {self.run / OUTBOX}; the same command uploads them, and "
                f"so does `python pretrain/hub/upload.py {self.run}`"
            )
        if self.given_up:
            say(f"given up: {', '.join(self.given_up)}")

    def _start(self, first: Callable[[str], object]):
        """Start the program; what it says first, whether it may upload, goes to `first`."""
        environment = os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_VERBOSITY": "error"}
        self.program = subprocess.Popen(
            [sys.executable, hub_upload.__file__, str(self.run), "--follow"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        self.reader = threading.Thread(target=_read_lines, args=(self.program.stdout, first), daemon=True)
        self.reader.start()

    def _is_running(self) -> bool:
        return self.program is not None and self.program.poll() is None

    def _notify(self):
        """Tell the program that something waits; start it again where it has crashed."""
        try:
            if not self._is_running():
                self._start(_show)
            assert self.program is not None
            print(file=self.program.stdin, flush=True)
        except OSError as error:
            say(f"the program that uploads cannot be reached ({error}); the next checkpoint starts it again")


def _tag(folder: Path) -> str:
    """What a checkpoint, or the finished model, is called on the Hub."""
    return f"step-{folder.name.removeprefix('checkpoint-')}" if folder.name.startswith("checkpoint-") else FINAL


def _names(snapshots: list[Path]) -> str:
    return ", ".join(path.name for path in snapshots)


def say(message: str):
    """Print a line above the progress bar."""
    _show(f"Hub: {message}")


def _show(line: str):
    tqdm.write(line.rstrip(), file=sys.stdout)
    sys.stdout.flush()


def _read_lines(lines: IO[str], first: Callable[[str], object]):
    first(next(lines, f"{UNREACHABLE}: the program that uploads has ended"))
    for line in lines:
        _show(line)


def _take_snapshot(folder: Path, partial: Path):
    for path in folder.rglob("*"):
        place = path.relative_to(folder)
        if place.parts[0] == TRAINING_STATE or not path.is_file():
            continue
        (partial / place).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, partial / place)
        except OSError:  # no hard links there
            shutil.copy2(path, partial / place)
    write_json(partial / QUEUED, with_checksum(digests(partial)))
