"""Programs outlive their standard streams: closed ones, and readers that end early."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_help import PROGRAMS, ROOT


CLOSED = [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"]
READERS = ["| true", "2>&1 | true", "| head -n 1", "2>&1 | head -n 1"]


def shell(command: str, redirection: str = "") -> tuple[int, str]:
    """The exit code of Python with arguments, not of what it is piped to, and all that was printed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(
        ["bash", "-c", f"{sys.executable} {command} {redirection}; exit ${{PIPESTATUS[0]}}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    return finished.returncode, finished.stdout


PRINTS = """
import contextlib, os, sys
from common.errors import UserError, report_user_errors
with report_user_errors():
    with open(sys.argv[1], "w") as file:
        assert file.fileno() > 2
        for _ in range(20_000):
            print("a line of output")
            print("a line of errors", file=sys.stderr)
        sys.stdout.flush()
        with contextlib.suppress(BrokenPipeError):
            os.write(1, b"from a library")
        file.write("the result")
    raise UserError("wrong input")
"""


@pytest.mark.parametrize("unbuffered", ["", "-u "])
@pytest.mark.parametrize("redirection", ["", *CLOSED, *READERS])
def test_work_goes_on(tmp_path: Path, redirection: str, unbuffered: str):
    (tmp_path / "prints.py").write_text(PRINTS)
    code, output = shell(f"{unbuffered}{tmp_path}/prints.py {tmp_path}/result", redirection)
    assert code == 2
    assert (tmp_path / "result").read_text() == "the result"
    assert "Traceback" not in output and "Exception ignored" not in output
    assert output.count("error: wrong input") == ("2>" not in redirection)
    if not redirection:
        assert output.count("a line of output") == output.count("a line of errors") == 20_000
    if "head" in redirection:
        assert output.count("a line of output") == 1 or "2>&1" in redirection


def test_a_full_disk_is_still_an_error(tmp_path: Path):
    (tmp_path / "prints.py").write_text(PRINTS)
    code, output = shell(f"{tmp_path}/prints.py {tmp_path}/result", "> /dev/full")
    assert code == 2 and "error: the disk is full" in output


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_help_without_a_reader(program: str):
    command = program
    if program.startswith("modeling_luna/"):
        command = f"-m {program.removesuffix('.py').replace('/', '.')}"
    for redirection in ("| true", ">&-"):
        code, output = shell(f"{command} --help", redirection)
        assert code == 0, output
        assert "Traceback" not in output and "Exception ignored" not in output
