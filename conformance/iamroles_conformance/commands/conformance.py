"""`iamroles conformance`: the suite without pytest. Exit codes: 0 passed, 1 not, 2 usage, 3 no stage."""

from __future__ import annotations

from importlib import import_module

import click

_COMMANDS = {
    "collect": "collect:collect",
    "doctor": "doctor:doctor",
    "explain": "reading:explain",
    "flakes": "flakes:flakes",
    "fuzz": "fuzz:fuzz",
    "init": "init:init",
    "list": "reading:list_",
    "matrix": "matrix:matrix",
    "oracle": "oracle:oracle",
    "report": "report:report",
    "run": "run:run",
    "selftest": "selftest:selftest",
    "soak": "soak:soak",
    "spec": "reading:spec",
    "vectors": "vectors:vectors",
    "verify-report": "verify:verify_report",
}
"""Module and attribute by name. Each is loaded when it is called: none waits for what others import."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name].partition(":")
        command = getattr(import_module(f"iamroles_conformance.commands.{module}"), attribute)
        assert isinstance(command, click.Command)  # noqa: S101 - as the table says
        return command


@click.group(cls=_Commands)
def conformance() -> None:
    """Judge an agent against the role-check contract."""
