"""Streams whose agent loses a process: they end as if all had lived."""

from __future__ import annotations

from iamroles_scenarios.checks.live.fixture import BACK, FEW, IDLE_SOCKET, SOCKET, live_bench
from iamroles_scenarios.checks.policy.workers import deaths
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.target import Target

_LIFE, _WITHIN = 3.0, 10.0
"""Seconds, times the scale: of the credential that ends after a death, and in which a revocation cuts."""


@check("live.death.ends", "LIVE-DEATH-001", "LIVE-KEEP-001", features={"live", "workers"}, long=True)
def ends(target: Target) -> str:
    """After the death of any process of the agent, streams end with their credential and by a revocation.

    Each process is killed in turn, its first process last; a stream that is still permitted goes on.
    """
    with live_bench(target, "live.death", revoking=True) as here:
        staying, number = here.open(SOCKET, here.token(exp="+15m", sub="bob")), 0
        for number, (what, end) in enumerate(deaths(here), 1):
            name = f"alice-{number}"
            going = here.open_all(FEW, here.token(exp="+15m", sub=name))
            [short] = here.open_short([IDLE_SOCKET], _LIFE)
            here.in_time(short.expires, what)
            end()
            here.loan.wait_agents(here.seconds(BACK))
            here.revoke(principals=[name])
            here.must_end(going, f"a revocation after {what}", _WITHIN)
            here.must_expire([short], f"its token's end after {what}")
            here.must_last([staying], f"{what}, and the revocation of another", 0.0)
    return f"{number} deaths"
