"""The measurements of one machine in a JSON file, written after each of them."""

import dataclasses
import datetime
import hashlib
import platform
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers

import modeling_luna
from benchmarks.speed.case import Case
from common.errors import UserError
from common.files import make_folder, parse_json, write_json
from common.hardware import describe_devices


MEASURED = "measured"


@dataclass(frozen=True)
class Measurement:
    """One process.

    Args:
        round: from 0.
        outcome: `measured`, `out of memory`, `out of time`, or `failed: ` and why.
        result: what `measure` has given; empty for other outcomes.
    """

    case: Case
    round: int
    outcome: str
    result: dict = field(default_factory=dict)


@dataclass
class Record:
    """
    Args:
        made_by: date, hardware and versions.
    """

    path: Path
    made_by: dict[str, str]
    measurements: list[Measurement] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "Record":
        """
        Raises:
            UserError: where the file is no record.
        """
        try:
            content = parse_json(path.read_bytes())
            measurements = [
                Measurement(Case(**made["case"]), made["round"], made["outcome"], made["result"])
                for made in content["measurements"]
            ]
            return cls(path, content["made_by"], measurements)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no record of benchmarks/speed/speed.py ({error}).") from error

    @classmethod
    def open(cls, path: Path, made_by: dict[str, str]) -> "Record":
        """A new record, or the one that lies there, to go on with it.

        Raises:
            UserError: where another machine or another version has made it.
        """
        make_folder(path.parent, "--record")
        if not path.exists():
            return cls(path, made_by)
        record = cls.read(path)
        for key, value in made_by.items():
            if key != "date" and record.made_by.get(key) != value:
                raise UserError(
                    f"{path} was made with {key} {record.made_by.get(key)}, this is {value}: name another file with "
                    "--record."
                )
        return record

    def needs(self, case: Case, number: int) -> bool:
        """Whether a case has still to be measured in a round; one that has failed is not tried again."""
        made = [measurement for measurement in self.measurements if measurement.case == case]
        return all(measurement.outcome == MEASURED and measurement.round != number for measurement in made)

    def add(self, measurement: Measurement):
        self.measurements.append(measurement)
        write_json(
            self.path,
            {"made_by": self.made_by, "measurements": [dataclasses.asdict(made) for made in self.measurements]},
        )


def describe_maker(device: torch.device) -> dict[str, str]:
    """Date, hardware and versions; of Luna also a hash of its code, which changes more often than its version."""
    files = sorted(Path(modeling_luna.__file__).parent.glob("*_luna.py"))
    code = b"".join(file.read_bytes() for file in files)
    return {
        "date": datetime.date.today().isoformat(),
        "hardware": describe_devices(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "modeling_luna": f"{modeling_luna.__version__} ({hashlib.sha256(code).hexdigest()[:8]})",
    }


def record_name(made_by: dict[str, str]) -> str:
    """DATE-HARDWARE.json"""
    return f"{made_by['date']}-{re.sub('[^a-z0-9]+', '-', made_by['hardware'].lower()).strip('-')}.json"
