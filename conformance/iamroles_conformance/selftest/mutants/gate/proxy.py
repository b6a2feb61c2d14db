"""Mutants of the proxy's side: GATE-TAG, GATE-FORGE, GATE-CLOSED. Most edit the rendered text."""

from __future__ import annotations

import itertools
from typing import Any

from iamroles_agent.serving.server import _Peer
from iamroles_conformance.selftest.mutants.edits import actions_out
from iamroles_conformance.selftest.mutants.override import around
from iamroles_conformance.selftest.registry import Override, mutant
from iamroles_tools.haproxy import render


def text(edit: Any, *, name: str = "haproxy.cfg") -> Override:
    """Change a rendered file; an edit that changes nothing is an error of the mutant."""

    @around(render, "configuration")
    def configuration(sound: Any, *args: Any, **kwargs: Any) -> dict[str, str]:
        texts: dict[str, str] = sound(*args, **kwargs)
        edited = edit(texts[name])
        if edited == texts[name]:
            raise RuntimeError(f"the mutant found nothing to change in {name}")
        return texts | {name: edited}

    return configuration


def without(part: str, *, name: str = "haproxy.cfg") -> Override:
    """Drop every line that holds this text."""
    return text(
        lambda text: "".join(
            line
            for line in text.splitlines(keepends=True)
            if part not in line or line.strip().startswith("#")
        ),
        name=name,
    )


mutant("gate.passes-token-on", "GATE-TAG-002", "passes the token on to the backend", proxy=True)(
    without("http-request del-header Authorization")
)
mutant("gate.forged-headers", "GATE-FORGE-001", "passes the client's own X-IAM headers", proxy=True)(
    without("del-header ^x[^a-z0-9]iam")
)
mutant("gate.repeated-role", "GATE-FORGE-002", "takes the last of two X-IAM-Role", proxy=True)(
    without("iam_role_repeated")
)


def _fails_open(condition: str) -> Any:
    """The agent's answer counts only where it said no."""
    verdict = f"    http-request set-var(txn.iam_verdict) int(200) {condition}\n"
    backend = (
        "    http-request set-var(txn.iam.backend) str(orders-ro) unless { var(txn.iam.backend) -m found }\n"
    )

    def edit(text: str) -> str:
        mark = "    # The challenge of RFC 6750"
        return text.replace(mark, verdict + backend + mark).replace(
            "default_backend iam-unrouted", "use_backend route-orders-ro\n    default_backend iam-unrouted"
        )

    return edit


mutant("gate.down-is-open", "GATE-CLOSED-001", "lets requests pass while the agent is down", proxy=True)(
    text(_fails_open("unless iam_answered"))
)
mutant("gate.silent-is-open", "GATE-CLOSED-002", "lets requests pass on a timeout", proxy=True)(
    text(_fails_open("if iam_faulty"))
)
stays_down = text(lambda text: text.replace("rise 1\n", "rise 100000\n"), name="iam-routes.cfg")
mutant("gate.stays-down", "GATE-CLOSED-004", "never takes an agent back that was down", proxy=True)(
    stays_down
)
_held: list[bytes] = []


@actions_out
def one_behind(actions: bytes) -> bytes:
    """Give each question the answer of the one before."""
    _held.append(actions)
    return _held.pop(0) if len(_held) > 1 else actions


mutant("gate.one-behind", "GATE-CLOSED-003", "gives each question the answer of the one before")(one_behind)
_numbers = itertools.count(1)


@mutant(
    "gate.tires-of-connections",
    "GATE-RELOAD-001",
    "takes the connections of its start, and none of those after a reload",
)
@around(_Peer, "connection_made")
def tires_of_connections(sound: Any, self: Any, transport: Any) -> None:
    if next(_numbers) > 4:
        transport.close()
    else:
        sound(self, transport)
