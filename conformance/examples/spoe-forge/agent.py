"""An agent as spoe-forge's README builds one; with `--no-op` it gives one answer to all, for benches."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from judgement import judge, listen, say_ready
from spoe_forge import Action, ActionScope, AgentContext, SetVarAction, SpoeForge, UnsetVarAction

agent = SpoeForge(name="adapter")
NO_OP = "--no-op" in sys.argv


def actions(variables: list[tuple[str, str | int | bool | None]]) -> list[Action]:
    """Variables as the library writes them."""
    scope = ActionScope.TRANSACTION
    return [
        UnsetVarAction(scope, name) if value is None else SetVarAction(scope, name, value)
        for name, value in variables
    ]


ALLOW = actions([("status", 200), ("allow", True)])


@agent.message("iam-check")
async def check(context: AgentContext) -> list[Action]:
    """Answer one question."""
    return ALLOW if NO_OP else actions(judge(context.get_args()))


@agent.message("iam-context")
async def context(_context: AgentContext) -> list[Action]:
    """Nothing is decided by it."""
    return []


async def main() -> None:
    """Serve; `SpoeForge.serve` would not tell its port."""
    host, port = listen()
    listener = await asyncio.start_server(agent._handler, host, port)  # noqa: SLF001 - see above
    say_ready(host, listener.sockets[0].getsockname()[1])
    await listener.serve_forever()


if NO_OP:
    import uvloop  # as fast as the library goes

    uvloop.run(main())
else:
    asyncio.run(main())
