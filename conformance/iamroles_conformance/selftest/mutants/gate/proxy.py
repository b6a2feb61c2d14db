"""Mutants of the proxy's side: GATE-TAG, GATE-FORGE, GATE-CLOSED. Most edit the rendered text."""

from __future__ import annotations

import asyncio
from typing import Any

from iamroles_agent import server
from iamroles_agent.policy import render
from iamroles_conformance.selftest.mutants.edits import actions_out
from iamroles_conformance.selftest.mutants.override import override
from iamroles_conformance.selftest.registry import mutant


def _text(edit: Any, *, name: str = "haproxy.cfg") -> None:
    """Change a rendered file; an edit that changes nothing is an error of the mutant."""

    def make(sound: Any) -> Any:
        def configuration(*args: Any, **kwargs: Any) -> dict[str, str]:
            texts: dict[str, str] = sound(*args, **kwargs)
            edited = edit(texts[name])
            if edited == texts[name]:
                raise RuntimeError(f"the mutant found nothing to change in {name}")
            return texts | {name: edited}

        return configuration

    override(render, "configuration", make)


def _without(part: str) -> None:
    """Drop every line that holds this text."""
    _text(
        lambda text: "".join(
            line
            for line in text.splitlines(keepends=True)
            if part not in line or line.strip().startswith("#")
        )
    )


@mutant(
    "gate.passes-token-on", kills=["GATE-TAG-002"], title="passes the token on to the backend", proxy=True
)
def passes_token_on() -> None:
    _without("http-request del-header Authorization")


@mutant(
    "gate.forged-headers", kills=["GATE-FORGE-001"], title="passes the client's own X-IAM headers", proxy=True
)
def forged_headers() -> None:
    _without("del-header ^x[^a-z0-9]iam")


@mutant("gate.repeated-role", kills=["GATE-FORGE-002"], title="takes the last of two X-IAM-Role", proxy=True)
def repeated_role() -> None:
    _without("{ var(txn.iam_role_repeated) -m bool }")


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


@mutant(
    "gate.down-is-open",
    kills=["GATE-CLOSED-001"],
    title="lets requests pass while the agent is down",
    proxy=True,
)
def down_is_open() -> None:
    _text(_fails_open("unless iam_answered"))


@mutant("gate.silent-is-open", kills=["GATE-CLOSED-002"], title="lets requests pass on a timeout", proxy=True)
def silent_is_open() -> None:
    _text(_fails_open("if iam_faulty"))


@mutant(
    "gate.stays-down", kills=["GATE-CLOSED-004"], title="never takes an agent back that was down", proxy=True
)
def stays_down() -> None:
    _text(lambda text: text.replace("rise 1\n", "rise 100000\n"), name="iam-routes.cfg")


@mutant(
    "gate.one-behind", kills=["GATE-CLOSED-003"], title="gives each question the answer of the one before"
)
def one_behind() -> None:
    held: list[bytes] = []

    def edit(actions: bytes) -> bytes:
        held.append(actions)
        return held.pop(0) if len(held) > 1 else actions

    actions_out(edit)


@mutant(
    "gate.tires-of-connections",
    kills=["GATE-RELOAD-001"],
    title="takes the connections of its start, and none of those after a reload",
)
def tires_of_connections() -> None:
    sound = server._Peer.connection_made
    made = [0]

    def connection_made(self: server._Peer, transport: asyncio.BaseTransport) -> None:
        made[0] += 1
        if made[0] > 4:
            transport.close()
        else:
            sound(self, transport)

    setattr(server._Peer, "connection_made", connection_made)  # noqa: B010
