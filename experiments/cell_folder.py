"""What lies in the folder of a cell, and its result, which is whole or not there."""

import json
from pathlib import Path

from common.checksums import KEY, take_checksum, with_checksum
from common.errors import UserError
from common.files import parse_json, read_json_back, write_json


CELLS = "cells"  # below the run's folder: MODEL/TASK/SETTING/seed-N
SEED = "seed-"
DEFAULT = "default"  # name of the only setting
RESULT = "result.json"  # written last: a cell that has one is finished
ERROR = "error.json"
MODEL = "model"  # the folder of a cell's trained model, where it is kept
PREDICTIONS = "predictions"
NUMBER = (int, float)
# What every result must hold, for others to rely on; and what others use where it is there.
FIELDS: dict[str, type | tuple[type, ...]] = {"metrics": dict, "score": NUMBER, "hyperparameters": dict}
FURTHER_FIELDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("seconds", "tokens_per_second", "num_parameters"), NUMBER),
    **dict.fromkeys(("rows", "truncated", "versions", "made_from", "predictions", "weights"), dict),
}


class DamagedResult(UserError):
    """A result that cannot be believed; the message says why."""


def cell_folder(output_dir: Path, model: str, task: str, setting: str, seed: int) -> Path:
    """The folder of the cell with these names."""
    return output_dir / CELLS / model / task / setting / f"{SEED}{seed}"


def write_result(folder: Path, result: dict) -> dict:
    """Write the result of a cell into its folder, whole or not at all; what was written."""
    result = with_checksum(json.loads(json.dumps(result)))
    write_json(folder / RESULT, result)
    return result


def read_result(folder: Path) -> dict | None:
    """The result in a cell's folder; none where there is none.

    Raises:
        DamagedResult: where it cannot be read, lacks something, or is not what was written.
    """
    path = folder / RESULT
    try:
        result = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise DamagedResult(f"{path}, line {error.lineno}: cut short or damaged ({error.msg})") from error
    except (OSError, ValueError) as error:
        raise DamagedResult(f"{path} cannot be read ({error})") from error
    wrong = _wrong_fields(result)
    if wrong:
        raise DamagedResult(f"{path}: {', '.join(wrong)} is missing or of the wrong type")
    if KEY not in result:
        raise DamagedResult(f"{path} has no checksum: an earlier version has written it")
    if not take_checksum(dict(result)):
        raise DamagedResult(f"{path} has been changed since it was written")
    return result


def read_error(folder: Path) -> str | None:
    """Why the cell of a folder has failed, if it has."""
    path = folder / ERROR
    try:
        return str(read_json_back(path)["error"])
    except (UserError, KeyError, TypeError):
        return f"{path} cannot be read" if path.exists() else None


def _wrong_fields(result: object) -> list[str]:
    """The fields of a result that are missing or of the wrong type."""
    if not isinstance(result, dict):
        return list(FIELDS)
    wrong = [key for key, kind in FIELDS.items() if not isinstance(result.get(key), kind)]
    wrong += [key for key, kind in FURTHER_FIELDS.items() if key in result and not isinstance(result[key], kind)]
    if "metrics" not in wrong:
        for split, values in result["metrics"].items():
            if not isinstance(values, dict) or not all(isinstance(value, NUMBER) for value in values.values()):
                wrong.append(f"metrics.{split}")
    return wrong
