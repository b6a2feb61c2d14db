"""`iamroles agent`: run the reference SPOE agent."""

from __future__ import annotations

from importlib import import_module

import click

_SERVE = "iamroles_agent.commands.serve"
_PLACES = {"probe": "iamroles_tools.commands.probe", "run": _SERVE, "status": _SERVE}


class _Late(click.Group):
    """Loads a command on use, because a health check pays for each import every few seconds."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_PLACES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _PLACES:
            return None
        command = getattr(import_module(_PLACES[cmd_name]), cmd_name)
        assert isinstance(command, click.Command)  # noqa: S101 - each module has one of its name
        return command


@click.group(cls=_Late)
def agent() -> None:
    """Run the reference SPOE agent."""
