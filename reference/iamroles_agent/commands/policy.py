"""`iamroles policy`: check, explain, compare and render a policy."""

from __future__ import annotations

import importlib.util

import click


@click.group()
def policy() -> None:
    """Check, explain, compare and render a policy.

    Exit codes: 0 nothing found, 1 findings or differences, 2 bad input.
    """


if importlib.util.find_spec("iamroles_agent.policy.render"):
    from iamroles_agent.policy.render import render

    policy.add_command(render)
