"""run.json, a record in a run folder: what the run uses, and the process that launch.stop asks to stop."""

import os
import socket
from pathlib import Path
from typing import Annotated

from pydantic import Field

from preprocess.common.json_file import JsonObject, read_file
from preprocess.common.record import Form, read_record, write_record

RUN_FILE = "run.json"


class RunForm(Form):
    """The values of run.json that a command reads, and their types."""

    host: str
    rank0_pid: Annotated[int, Field(ge=1)]


def write_run(out: Path, facts: JsonObject) -> None:
    """Write run.json: `facts`, with this host and this process, which is rank 0."""
    write_record(out / RUN_FILE, {**facts, "host": socket.gethostname(), "rank0_pid": os.getpid()})


def read_run(out: Path) -> JsonObject:
    """run.json of a run folder. Raises InputError where there is none, or it was changed or damaged."""
    path, action = out / RUN_FILE, "Name the --out of the training command."
    return read_record(str(path), read_file(path, "a run folder", action), RunForm, action)
