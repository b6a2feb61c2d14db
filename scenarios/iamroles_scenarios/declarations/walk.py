"""The walk of a soak, `data/soak.toml`: what is asked, and the moves that follow one another by chance."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import Field

from iamroles_scenarios.declarations.documents import Duration, Model, read
from iamroles_scenarios.declarations.scenario import FlowSpec, Step, WorldSpec


class Move(Model):
    """One thing that happens: steps of a timeline, played one after the other."""

    name: str
    steps: list[Step] = Field(min_length=1)
    """The seed says which agent a step with `agent` is about."""
    fault: bool = False
    """It excuses 5xx, missing answers and false denies until it is over, and for a while after."""
    pause: Duration = 0.0
    """Between two steps, as the time in which the traffic has this many answers."""
    revocations: str | None = None
    """Text of the file of revocations that every agent gets before the steps."""


class Cycle(Model):
    """Moves that follow one another in this order, and from the beginning again; others may come between."""

    moves: list[Move] = Field(min_length=1)
    name: str = ""
    needs: list[str] = Field(default_factory=list)
    """Features of `agent.toml`, or "tls", without which none of them comes."""
    apart: int = 0
    """Each is this many moves, those of other cycles included, after the one before it."""
    spaced: Duration = 0.0
    """And at least this long, times the time scale."""
    while_at_begin: str = ""
    """Name of a cycle: these come only while its first move is its next."""


class Walk(Model):
    """The file."""

    world: WorldSpec
    override_with: dict[str, dict[str, Any]]
    """Merged over the world's override for an agent that has this feature."""
    tls: bool
    """HAProxy speaks TLS, if its configuration can."""
    signed: Duration
    """Time for which a key signs identities, times the time scale; for agents with the feature `identity`."""
    tokens: dict[str, dict[str, Any]]
    flows: dict[str, FlowSpec]
    begin: Step
    """Played before the first move."""
    cycles: list[Cycle]


@cache
def walk() -> Walk:
    """Return the walk that ships with the package."""
    return read(Path(str(files("iamroles_scenarios") / "data" / "soak.toml")), Walk)
