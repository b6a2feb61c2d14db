"""Inputs of commands; bad input ends a command with a sentence and exit code 2."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import Any, NoReturn

import click

from iamroles_agent.commands.shared import end


class EpochSecond(click.FloatRange):
    """An option's value in seconds since 1970, up to the year 9999."""

    def __init__(self) -> None:
        super().__init__(0, 253_402_300_799)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401 - click's own
        found = float(super().convert(value, param, ctx))
        if math.isnan(found):  # in every range, because it compares with no number
            self.fail(f"{value!r} is not a time.", param, ctx)
        return found


def bad_input(message: str) -> NoReturn:
    """Print an error, and leave with exit status 2."""
    end(2, f"Error: {message}")


def act_claim(text: str) -> dict[str, Any]:
    """Read an `act` claim: JSON, `SUB,ISS` or `SUB`. An ISS has a colon, so a SUB may have commas."""
    if text.startswith("{"):
        try:
            found: dict[str, Any] = json.loads(text)
        except ValueError as error:
            bad_input(f"{text!r} is not JSON: {error}. Write SUB, SUB,ISS or a JSON object")
        return found
    sub, comma, issuer = text.rpartition(",")
    return {"sub": sub, "iss": issuer} if comma and ":" in issuer else {"sub": text}


def table(path: Path, name: str, *, toml: bool = False) -> dict[str, Any]:
    """Read a file that holds a JSON object or a TOML document; `name` describes it in errors."""
    try:
        text = path.read_text(encoding="utf-8")
        found = tomllib.loads(text) if toml else json.loads(text)
    except OSError as error:
        bad_input(f"{path}: cannot be read: {error.strerror}")
    except (ValueError, RecursionError) as error:
        bad_input(f"{path}: is not {'TOML' if toml else 'JSON'}: {error}. Give {name}")
    if not isinstance(found, dict):
        bad_input(f"{path}: is not a JSON object. Give {name}")
    return found
