"""What a command was given. Where that is wrong, a sentence and exit code 2 are its end."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any, NoReturn

import click


def bad_input(message: str) -> NoReturn:
    """Say why, and leave."""
    click.echo(f"Error: {message}", err=True)
    sys.exit(2)


def table(path: Path, what: str, *, toml: bool = False) -> dict[str, Any]:
    """`what`, from a file that holds a JSON object or a document of TOML."""
    try:
        text = path.read_text(encoding="utf-8")
        found = tomllib.loads(text) if toml else json.loads(text)
    except OSError as error:
        bad_input(f"{path}: cannot be read: {error.strerror}")
    except (ValueError, RecursionError) as error:
        bad_input(f"{path}: is no {'TOML' if toml else 'JSON'}: {error}. Give {what}")
    if not isinstance(found, dict):
        bad_input(f"{path}: is no JSON object. Give {what}")
    return found
