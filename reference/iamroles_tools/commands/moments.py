"""Moments as options say them."""

from __future__ import annotations

import math
from typing import Any

import click


class EpochSecond(click.FloatRange):
    """A second since 1970, up to the year 9999; `nan` is none, though it compares with nothing."""

    def __init__(self) -> None:
        super().__init__(0, 253_402_300_799)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401 - click's own
        """Fail for what is no moment."""
        found = float(super().convert(value, param, ctx))
        if math.isnan(found):
            self.fail(f"{value!r} is no moment.", param, ctx)
        return found
