"""Options that the commands of `cmf-hub` share."""

from pathlib import Path
from typing import Annotated

import typer

from cmf_hub.data import DataFolder, default_data_folder

DataOption = Annotated[
    Path | None, typer.Option("--data", help="The hub's data folder [default: $CMF_HUB_DATA, then the platform's]")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on standard output")]


def data_folder(data: Path | None) -> DataFolder:
    """Return the data folder that was asked for, whether it is there or not."""
    return DataFolder((data or default_data_folder()).absolute())


def existing_folder(data: Path | None) -> DataFolder:
    """Return the data folder that was asked for; raise `CallerError` if it is none."""
    folder = data_folder(data)
    folder.must_exist()
    return folder
