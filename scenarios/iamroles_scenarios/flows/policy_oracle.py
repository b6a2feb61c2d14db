"""Policy checks by oracle: random policies, tokens and requests, judged a second time and compared.

The number of questions and the seed are the environment's: `IAMROLES_ORACLE_CASES` (default 3,000),
`IAMROLES_ORACLE_SEED` (default 1: a run is repeatable). `iamroles conformance oracle` is the long run.
"""

from __future__ import annotations

import os

from iamroles_scenarios.engine import Target
from iamroles_scenarios.oracle.campaign import CASES_PER_WORLD, campaign, numbers_for
from iamroles_scenarios.results import check

_CASES = 3_000
_SEED = 1


def chosen(name: str, default: int) -> int:
    """A whole number of the environment.

    Raises:
        ValueError: it is none; the suite's fault, or its caller's, and reported as such.
    """
    text = os.environ.get(name, "")
    try:
        return int(text) if text else default
    except ValueError as error:
        raise ValueError(f"{name}={text!r} is not a whole number: mend or unset it") from error


@check(
    "policy.oracle.agrees",
    requirements=["ORACLE-AGREE-001", "ORACLE-LOAD-001"],
    lane="gate-spop",
    title="On random policies, tokens and requests the agent decides as the specification does",
)
def agrees(target: Target) -> str:
    """Verdict, reason, rule, backend, role and expiry of each; a policy that conflicts is refused."""
    cases = chosen("IAMROLES_ORACLE_CASES", _CASES)
    with campaign(target, chosen("IAMROLES_ORACLE_SEED", _SEED)) as played:
        return str(played.run(numbers_for(cases), CASES_PER_WORLD))
