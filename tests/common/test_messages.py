"""What a terminal is shown: one message, without control characters, whatever names and texts are in it."""

import errno
import io
import sys

import pytest

from common.errors import UserError, printable, report_user_errors, say


def ended(error: BaseException, capsys: pytest.CaptureFixture) -> tuple[object, str]:
    """The exit code and the message of a program that ends with this error."""
    with pytest.raises(SystemExit) as exit, report_user_errors():
        raise error
    return exit.value.code, capsys.readouterr().err


NAMES = {
    "a\x1b[31mred\x07.txt": "a\\x1b[31mred\\x07.txt",
    "caf\udce9.txt": "caf\\udce9.txt",
    "\u202etxt.exe\x9b2J": "\\u202etxt.exe\\x9b2J",
    "Übung\t日本.txt\n": "Übung\t日本.txt\n",
    "a\rb\x00\x7f": "a\\rb\\x00\\x7f",
}


@pytest.mark.parametrize("name", NAMES)
def test_messages_hold_no_control_characters(name: str, capsys: pytest.CaptureFixture):
    assert printable(name) == NAMES[name]
    assert ended(UserError(f"{name}: cannot be read."), capsys) == (2, f"\nerror: {NAMES[name]}: cannot be read.\n")
    say(name)
    assert capsys.readouterr().out == f"{NAMES[name]}\n"


def test_output_takes_names_that_are_not_utf8(monkeypatch: pytest.MonkeyPatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8"))
    with report_user_errors():
        print("caf\udce9", flush=True)
    assert written.getvalue() == b"caf\\udce9\n"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_what_is_forbidden_is_named(number: int, capsys: pytest.CaptureFixture):
    code, message = ended(OSError(number, "Not allowed", "/data/a.txt"), capsys)
    assert code == 2
    assert message == "\nerror: /data/a.txt cannot be used: Not allowed. Ask its owner, or name another place.\n"


def test_error_of_a_dataloader_worker_is_its_message():
    text = (
        "Caught UserError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "a.py", line 1, in a\ncommon.errors.UserError: a.txt is damaged: it is missing.\n'
    )
    assert str(UserError(text)) == "a.txt is damaged: it is missing."
