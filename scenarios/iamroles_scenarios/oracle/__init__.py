"""The policy oracle: SPEC.md sections 6 and 7 a second time, small and slow, and worlds to try it on.

Shares no code with any agent. Where the agent compiles and indexes, this reads every rule for every request.
"""

from iamroles_scenarios.oracle.generate import Case, World, world, worlds
from iamroles_scenarios.oracle.judge import Outcome, judge, load_error

__all__ = ["Case", "Outcome", "World", "judge", "load_error", "world", "worlds"]
