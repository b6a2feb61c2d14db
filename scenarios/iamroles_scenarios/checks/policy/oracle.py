"""Policy checks by oracle: random policies, tokens and requests, judged a second time and compared.

The environment sets the number of questions and the seed: `IAMROLES_ORACLE_CASES` (default 3,000) and
`IAMROLES_ORACLE_SEED` (default 1: a run is repeatable). `iamroles conformance oracle` is the long run.
"""

from __future__ import annotations

import os

from iamroles_scenarios.checks.oracle import through_proxy
from iamroles_scenarios.checks.oracle.campaign import CASES_PER_WORLD, campaign, numbers_for
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.target import Target

_CASES = 3_000
SEED = 1
SEED_VARIABLE = "IAMROLES_ORACLE_SEED"
_SHUFFLED = 600
_PROXY_WORLDS = 8
_PROXY_CASES = 30


def chosen(name: str, default: int) -> int:
    """Read a whole number of the environment.

    Raises:
        ValueError: it is another text. The report blames the suite or its caller, not the agent.
    """
    text = os.environ.get(name, "")
    try:
        return int(text) if text else default
    except ValueError as error:
        raise ValueError(f"{name}={text!r} is not a whole number: fix or unset it") from error


@check("policy.oracle.agrees", "ORACLE-AGREE-001", "ORACLE-LOAD-001", long=True)
def agrees(target: Target) -> str:
    """On random policies, tokens and requests the agent decides as the specification does.

    Verdict, reason, rule, backend, role and expiry of each; the agent refuses a policy that conflicts.
    """
    cases = chosen("IAMROLES_ORACLE_CASES", _CASES)
    with campaign(target, chosen(SEED_VARIABLE, SEED)) as played:
        return str(played.run(numbers_for(cases), CASES_PER_WORLD))


@check("policy.oracle.order", "ORACLE-ORDER-001", long=True)
def order(target: Target) -> str:
    """With every list of policy and token in another order the agent decides the same."""
    with campaign(target, chosen(SEED_VARIABLE, SEED) + 1, shuffled=True) as played:
        return str(played.run(numbers_for(_SHUFFLED), CASES_PER_WORLD))


@check("policy.oracle.proxy", "ORACLE-PROXY-001", lane="gate", features={"reload"})
def proxy(target: Target) -> str:
    """Through HAProxy a client gets the verdict of the specification, backend and tags included.

    A sample of the policies, with the requests that HTTP can carry.
    """
    seed = chosen(SEED_VARIABLE, SEED)
    return through_proxy.play(target, seed, _PROXY_WORLDS, _PROXY_CASES)
