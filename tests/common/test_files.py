"""Files that are whole or not there, and what may not be read."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.checksums import take_checksum
from common.errors import UserError
from common.files import (
    DamagedFile,
    check_model_files,
    check_places,
    is_file,
    is_folder,
    locked,
    make_folder,
    parse_json,
    read_checked_json,
    write_checked_json,
)


DEEP = "[" * 200_000 + "]" * 200_000
VALUE = {"number": 12, "list": [1.5, None, "é"], "mapping": {"b": 1, "a": 2}}


def test_mapping_is_known_again(tmp_path: Path):
    write_checked_json(tmp_path / "a.json", VALUE)
    assert read_checked_json(tmp_path / "a.json") == VALUE


def test_each_flipped_bit_of_a_mapping_is_found(tmp_path: Path):
    path = tmp_path / "a.json"
    write_checked_json(path, VALUE)
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            assert read_checked_json(path) == VALUE  # white space may have changed
        except DamagedFile as error:
            assert str(error).startswith(f"{path} is damaged: it is not as it was written.")


@pytest.mark.parametrize("content", ["", "[]", "null", "5", "{}", json.dumps({**VALUE, "xxh3": None}), DEEP])
def test_what_is_no_such_mapping(tmp_path: Path, content: str):
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    with pytest.raises(DamagedFile, match="not as it was written"):
        read_checked_json(tmp_path / "a.json")
    with pytest.raises(DamagedFile, match="b.json is damaged: it is missing"):
        read_checked_json(tmp_path / "b.json")
    with pytest.raises(DamagedFile, match="it is a folder"):
        read_checked_json(tmp_path)


def test_deep_nesting_is_no_json():
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(DEEP)
    for depth in range(sys.getrecursionlimit() - 100, sys.getrecursionlimit()):  # can be read, but perhaps not written
        try:
            value = parse_json('{"xxh3": 1, "a": ' + "[" * depth + "]" * depth + "}")
        except ValueError:
            continue
        assert not take_checksum(value)


def test_what_may_not_be_read_is_not_missing(unreadable: Callable, open_folder: Path):
    folder = open_folder / "secret"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    assert is_folder(folder) and is_file(folder / "config.json")
    assert not is_folder(folder / "config.json") and not is_file(folder)
    assert not is_folder(open_folder / "none") and not is_file(folder / "config.json" / "below")
    assert not is_folder("a\0b") and not is_file("a" * 5000)
    with unreadable(folder):
        for path, check in ((folder, is_folder), (folder, check_model_files), (folder / "config.json", is_file)):
            with pytest.raises(UserError, match=f"^{path} cannot be read: Permission denied.$"):
                check(path)
    with unreadable(folder / "config.json"):
        assert is_folder(folder)
        for path, check in ((folder, check_model_files), (folder / "config.json", is_file)):
            with pytest.raises(UserError, match=f"^{folder}/config.json cannot be read: Permission denied.$"):
                check(path)


def test_a_folder_in_the_place_of_a_file_and_the_reverse(tmp_path: Path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    check_places([tmp_path / "file", tmp_path / "none"], [tmp_path / "folder", tmp_path / "none"])
    with pytest.raises(UserError, match=f"^{tmp_path}/folder is a folder, but a file is to be written there: move"):
        check_places(files=[tmp_path / "file", tmp_path / "folder"])
    with pytest.raises(UserError, match=f"^{tmp_path}/file is a file, but a folder is to be written there: move it"):
        check_places(folders=[tmp_path / "file"])


def test_lock_that_may_not_be_opened(unreadable: Callable, open_folder: Path):
    (open_folder / "a.lock").touch()
    with unreadable(open_folder / "a.lock"), pytest.raises(UserError, match=r"a.lock cannot be written \(Permission"):
        locked(open_folder / "a").__enter__()


def test_folder_whose_name_is_not_utf8():
    with pytest.raises(UserError, match="output_dir: the name of the folder caf\udce9 is not UTF-8"):
        make_folder(Path("caf\udce9"), "output_dir")
