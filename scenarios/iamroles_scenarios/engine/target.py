"""The target of checks: an agent on a stage."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from iamroles_scenarios.base import recording
from iamroles_scenarios.declarations.scenario import Lane
from iamroles_scenarios.engine.worlds import Worlds
from iamroles_scenarios.stage.spec import declares

if TYPE_CHECKING:
    from iamroles_scenarios.stage import AgentSpec, Stage


@dataclass(frozen=True, slots=True)
class Target:
    """One agent on a stage, in one lane."""

    lane: Lane
    stage: Stage
    agent: AgentSpec
    worlds: Worlds
    scale: float = 1.0
    """Multiplies deadlines and short lives; above 1 for slow hosts."""
    transcripts: bool = False
    """True if results keep the traffic, also of checks that pass."""

    replays: bool = True
    """False: a failure counts at once, whether the host was late or not."""

    def seconds(self, seconds: float) -> float:
        """Return a life, a bound or a wait, stretched for this host."""
        recording.timed(seconds * self.scale)
        return seconds * self.scale

    def stretched(self, factor: float) -> Self:
        """Return the same target with longer times, in worlds of another playing."""
        worlds = self.worlds if factor == 1 else self.worlds.for_another_playing(factor)
        return replace(self, scale=self.scale * factor, worlds=worlds)

    def lacks(self, features: list[str] | frozenset[str]) -> list[str]:
        """Return the features among these that the agent declares not to have."""
        return sorted(name for name in features if not declares(self.agent.features, name))
