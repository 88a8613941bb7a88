"""The folder of a run: for one process at a time, with its configuration and the file that tells how it stands."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from common.checksums import is_as_written, with_first_line
from common.config.yaml_config import ConfigurationError, DumpedLoader, read_yaml
from common.errors import Stopped, is_lost_process
from common.files import PARTIAL, check_places, is_file, make_folder, remove_folder, write_json, write_text
from pretrain.checkpointing.folders import FINAL_MODEL, ResumeError, find_checkpoints
from pretrain.configuration import PretrainConfig
from pretrain.watching.curves import CURVES_FILE
from pretrain.watching.metrics import METRICS_FILE
from pretrain.watching.report import SUMMARY_FILE
from pretrain.watching.trackers import IDS_FILE


CONFIG_FILE = "config.yaml"
LOCK = ".lock"
STATUS_FILE = "status.json"
# Keys that decide what a step computes; a run that goes on with others would not be the same run.
FIXED = (
    "data", "text_column", "documents", "validation_share", "tokenizer", "vocab_size", "packing", "max_length",
    "model_type", "model_config", "model", "init_from", "masking", "mask_probability", "mask_probability_end",
    "mask_probability_steps", "mean_span_length", "seed", "batch_size", "batch_size_start", "batch_size_ramp_steps",
    "max_length_start", "max_length_ramp_steps",
    "optimizer", "weight_averaging", "averaging_decay", "averaging_start_step", "averaging_interval",
)  # fmt: skip


@contextmanager
def run_folder(config: PretrainConfig) -> Iterator[None]:
    """Keep the run's folder to this process, with the resolved configuration and the state of the run in it.

    Raises:
        ResumeError: where another process trains into it, or where its checkpoints are of a run with another value of
            a key that decides what a step computes.
    """
    folder = Path(config.output_dir)
    make_folder(folder, "output_dir")
    check_run_places(config)
    try:
        with FileLock(folder / LOCK, timeout=0):
            _store_config(config, folder)
            for leftover in folder.glob(f"checkpoint-*{PARTIAL}"):  # of a launch that was killed
                remove_folder(leftover)
            with _status(folder / STATUS_FILE):
                yield
    except Timeout as error:
        raise ResumeError(
            f"Another process trains into {folder}: wait for it, or name another --output_dir."
        ) from error


@contextmanager
def _status(path: Path) -> Iterator[None]:
    """Keep a file that tells scripts how a run stands, since a launcher ends with its own exit code: "running" (also
    after a kill -9), "finished", "stopped" (asked to, from the keyboard, or by the loss of a process: the same command
    goes on) or "failed"."""

    def write(state: str, message: str = ""):
        write_json(path, {"state": state, "message": message, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})

    write("running")
    try:
        yield
    except Stopped as stopped:
        write("stopped", str(stopped))
        raise
    except BaseException as error:
        mended_by_the_same_command = isinstance(error, KeyboardInterrupt) or is_lost_process(error)
        with suppress(OSError):  # the disk may be full
            write("stopped" if mended_by_the_same_command else "failed", str(error) or type(error).__name__)
        raise
    write("finished")


def _stored_config(path: Path) -> dict:
    """The values in a run's configuration file.

    Raises:
        ResumeError: where the file is not as it was written.
    """
    if is_file(path):
        with suppress(ConfigurationError):
            values = read_yaml(path, DumpedLoader)
            if is_as_written(path.read_text(encoding="utf-8")):
                return values
    raise ResumeError(
        f"{path} is damaged, or was edited: other values are for the command line or another file. Delete it to "
        "go on; then nothing checks that the configuration is that of the run so far."
    )


def check_run_places(config: PretrainConfig):
    """See that no folder lies in the run's folder where it writes a file, and no file where it makes a folder.

    Raises:
        UserError: naming the first that does.
    """
    folder = Path(config.output_dir)
    names = (LOCK, CONFIG_FILE, STATUS_FILE, METRICS_FILE, IDS_FILE, SUMMARY_FILE, CURVES_FILE)
    check_places(files=[folder / name for name in names], folders=[folder / FINAL_MODEL, *folder.glob("checkpoint-*")])


def check_stored_config(config: PretrainConfig):
    """Compare the configuration with that of the run so far, and print what has changed.

    Raises:
        ResumeError: where a key has changed that decides what a step computes, or the stored file is damaged.
    """
    folder = Path(config.output_dir)
    path = folder / CONFIG_FILE
    now = dataclasses.asdict(config)
    if find_checkpoints(folder) and path.exists():
        before = _stored_config(path)
        changed = [f"{key} (was {before.get(key)!r}, is {now[key]!r})" for key in FIXED if before.get(key) != now[key]]
        if changed:
            raise ResumeError(
                f"{folder} holds checkpoints of a run with another configuration: {'; '.join(changed)}. Give the "
                "values of that run to go on with it, or name another --output_dir."
            )
        for key in now:
            if before.get(key) != now[key]:
                print(f"{key} was {before.get(key)!r} in this run so far and is {now[key]!r} from here on")


def _store_config(config: PretrainConfig, folder: Path):
    check_stored_config(config)
    now = dataclasses.asdict(config)
    write_text(folder / CONFIG_FILE, with_first_line(yaml.safe_dump(now, sort_keys=False)))
