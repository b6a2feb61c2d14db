"""The reference agent behind HAProxy, for tests of live streams."""

from contextlib import closing, contextmanager

from iamroles_scenarios.checks.live.fixture import live_bench
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.worlds import Worlds
from iamroles_scenarios.stage.reference import reference_agent


@contextmanager
def gate_bench(stage, name, **override):
    """A bench of its own, with these tables in place of the live policy's."""
    agent = reference_agent()
    with closing(Worlds(stage, agent, namespace=f"-{name}")) as worlds:
        target = Target("gate", stage, agent, worlds, 5.0)
        with live_bench(target, name, own=True, **override) as here:
            yield here
