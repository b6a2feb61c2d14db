"""Types of options that are stricter than click's, for the commands of the judge and of the meter."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import click

from iamroles_scenarios.base.durations import seconds


class Number(click.FloatRange):
    """A number in a range; `nan` and `inf` are refused, because they compare with nothing."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401 - click's own
        """Fail for what is not finite."""
        found = float(super().convert(value, param, ctx))
        if not math.isfinite(found):
            self.fail(f"{value!r} is not a number that can be reckoned with.", param, ctx)
        return found


class Length(click.ParamType):  # type: ignore[type-arg]  # not generic in older versions of click
    """A length of time above 0, such as `60s` or `10m`; seconds."""

    name = "length"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401 - click's own
        """Fail for what is not a length, or none."""
        try:
            found = seconds(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if found <= 0:
            self.fail(f"{value!r} leaves no time: say 60s", param, ctx)
        return found


class OutputPath(click.Path):
    """The file that a long run writes at its end: refused before the run begins, if it cannot be written.

    A file whose directory is there, or with `folder` a directory, which is made at once.
    """

    def __init__(self, *, folder: bool = False) -> None:
        super().__init__(file_okay=not folder, dir_okay=folder, writable=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:  # noqa: ANN401 - click's own
        """Fail where nothing can be written."""
        found = Path(os.fsdecode(super().convert(value, param, ctx)))
        try:
            if self.dir_okay:
                found.mkdir(parents=True, exist_ok=True)
            elif not found.exists() and not os.access(found.parent, os.W_OK):
                raise PermissionError(0, f"{found.parent} is not a directory that this user may write")
        except OSError as error:
            self.fail(f"{str(found)!r} cannot be written: {error.strerror}.", param, ctx)
        return found
