"""Policy check of tags on the wire: each answer sets or unsets every variable."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import Any

from iamroles_scenarios.base.errors import CheckFailed, Evidence
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.answers import ALWAYS
from iamroles_scenarios.engine.bench import bench
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.wire.client import open_connection, question
from iamroles_scenarios.wire.frames import Scope, read_actions

_ANSWER_WITHIN = 10.0


@check("policy.tags.every-variable", "TAG-CLEAR-001")
def every_variable(target: Target) -> str:
    """Each answer sets or unsets every variable of the contract.

    HAProxy keeps a variable that an answer does not mention. Judged for an allow, 400, 401 and 403.
    """
    with bench(target, "policy") as here:
        token = f"Bearer {here.token()}"
        stranger = f"Bearer {here.token(exp='-60s')}"
        asked = [
            {"authorization": token, "path": "/orders/1"},
            {"authorization": token, "path": "/orders/1"},
            {"authorization": token, "path": "/private"},
            {"authorization": token, "path": "/orders/../private"},
            {"authorization": stranger, "path": "/orders/1"},
            {"path": "/orders/1"},
        ]
        asyncio.run(_ask(here.world.agent.spop_address, asked, here.seconds(_ANSWER_WITHIN)))
    return f"{len(asked)} answers"


async def _ask(address: str, asked: list[dict[str, Any]], within: float) -> None:
    with closing(await open_connection(address, within=within)) as connection:
        await connection.hello()
        for number, arguments in enumerate(asked, 1):
            ack = await connection.ask(question(arguments, stream_id=2 * number + 1))
            named = {action.name for action in read_actions(ack) if action.scope is Scope.txn}
            if missing := sorted(ALWAYS - named):
                raise CheckFailed(
                    f"the answer neither sets nor unsets {', '.join(missing)}",
                    Evidence(
                        sent=f"path={arguments['path']!r}",
                        expected="each variable of SPEC.md section 3 set or unset",
                        received=", ".join(map(str, read_actions(ack))),
                        trace=str(connection.transcript),
                    ),
                )
