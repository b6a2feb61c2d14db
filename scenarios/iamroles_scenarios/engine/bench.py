"""What checks written in Python stand on: a running world, clients, tokens by recipe, expectations.

Most checks share a world. A check that changes keys or answers has an issuer, or a host of STS, of its own in
that world: what the check does shows nowhere else, and one agent serves all checks. Nothing here knows how an
agent works.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from iamroles_scenarios.base import recording
from iamroles_scenarios.base.errors import CheckFailed, Evidence
from iamroles_scenarios.declarations.results import tails
from iamroles_scenarios.declarations.scenario import Expectation, OneOf, RequestSpec, WorldSpec
from iamroles_scenarios.engine.credentials import opened
from iamroles_scenarios.engine.events import EVENT_DEADLINE
from iamroles_scenarios.engine.observation import Observation, describe, mismatches
from iamroles_scenarios.engine.players import Player, player_for
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.worlds import DEFAULT_ISSUER, Place
from iamroles_scenarios.jose import mint_for

if TYPE_CHECKING:
    from iamroles_scenarios.mock.clients import IssuerHandle
    from iamroles_scenarios.stage import World

_POLL = 0.05
ALLOWED = Expectation(status=200, allow=True, backend="orders-ro")
UNAVAILABLE = Expectation(status=503, allow=False, backend="", reason="keys_unavailable")


def refused(*reasons: str, status: int | list[int] = 401) -> Expectation:
    """A refusal, for one of these reasons."""
    reason = OneOf(one_of=list(reasons)) if len(reasons) > 1 else reasons[0]
    return Expectation(status=status, allow=False, backend="", reason=reason)


class Bench:
    """A world on loan to a check, and one client of its gate.

    Args:
        target: agent and stage.
        place: the world.
        clients: where clients are kept until `close`.
    """

    def __init__(self, target: Target, place: Place, clients: list[Player] | None = None) -> None:
        self.target = target
        self.place = place
        self._clients: list[Player] = [] if clients is None else clients
        self._credential = ""
        """Of the last question."""

    @property
    def world(self) -> World:
        """The running agent, and HAProxy before it."""
        return self.place.world

    @cached_property
    def client(self) -> Player:
        """This bench's client; other threads take one of `another`."""
        self._clients.append(player_for(self.target.lane, self.world, self.target.scale))
        return self._clients[-1]

    def another(self) -> Bench:
        """The same world for another thread, with a client of its own; closed with this one."""
        return Bench(self.target, self.place, self._clients)

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def seconds(self, seconds: float) -> float:
        return seconds * self.target.scale

    def issuer(self, name: str = DEFAULT_ISSUER) -> IssuerHandle:
        """The mock issuer that the world's policy means by a name."""
        return self.target.worlds.issuer(self.place.issuer(name))

    def token(self, issuer: str = DEFAULT_ISSUER, signer: str = "", **recipe: Any) -> str:  # noqa: ANN401 - recipes hold anything
        """A token by recipe (`iamroles_scenarios.jose`), with the reader's role unless it says otherwise."""
        issuers = {name: self.issuer(name) for name in {issuer, signer or issuer}}
        full = {"roles": ["reader"], "issuer": issuer, "signer": signer or issuer, **recipe}
        return mint_for(full, issuers, time.time())

    def ask(self, token: str, *, with_reason: bool = True, **request: Any) -> Observation:  # noqa: ANN401 - fields of RequestSpec
        """Ask for the reader's route, or what else the request says."""
        self._credential = token
        return self.client.ask(RequestSpec(**request), token, with_reason=with_reason)

    def expect(
        self,
        what: str,
        token: str,
        expected: Expectation,
        *,
        within: float = 0.0,
        prompt: float = 0.0,
        **request: Any,  # noqa: ANN401 - fields of RequestSpec
    ) -> Observation:
        """Ask until it is as expected.

        Args:
            what: names the question in a failure.
            token: the credential.
            expected: the answer.
            within: ask again for so many seconds, times the scale.
            prompt: the answer may take at most so many seconds, times the scale; 0: as long as it likes.
            request: what else is asked for than the reader's route.

        Raises:
            CheckFailed: it was not.
        """
        began = time.monotonic()
        recording.note(f"{what}: expected {describe(expected)}")
        while True:
            seen = self.ask(token, **request)
            differing = mismatches(expected, seen, {})
            took = time.monotonic() - began
            if not differing and prompt and took > self.seconds(prompt):
                differing = [f"the answer took {took:.1f} s, at most {prompt:g} s"]
            elif not differing:
                if within or prompt:
                    recording.waited(what, took, self.seconds(prompt or within))
                return seen
            if took >= self.seconds(within):
                raise self.failed(f"{what}: {'; '.join(differing)}", seen, describe(expected))
            time.sleep(_POLL)

    def reload(self, policy: dict[str, Any]) -> dict[str, Any]:
        """Give the agent another policy; what it answers."""
        answer = dict(self.world.agent.reload(policy, within=self.seconds(EVENT_DEADLINE)))
        recording.note(f"reload with another policy: {answer}")
        return answer

    def failed(self, message: str, seen: Observation | None = None, expected: str = "") -> CheckFailed:
        """A failure with what a reader needs to believe it."""
        logs = tails(self.world.logs())
        if seen is None:
            return CheckFailed(message, Evidence(expected=expected, logs=logs))
        sent = "\n".join([seen.sent, *opened(self._credential)])
        return CheckFailed(message, Evidence(sent, expected, seen.received, str(seen.trace), logs))


@contextmanager
def bench(
    target: Target,
    policy: str,
    owner: str = "",
    *,
    own: bool = False,
    **override: Any,  # noqa: ANN401 - a policy's tables
) -> Iterator[Bench]:
    """A bench on a world of a policy in `data/worlds/`; a shared world is kept while it is used.

    Args:
        target: agent and stage.
        policy: file name of the policy.
        owner: names an own world.
        own: whether the check disturbs its world.
        override: merged over the policy.
    """
    spec = WorldSpec(policy=policy, override=override, own=own)
    with target.worlds.borrow(spec, owner) as place, closing(Bench(target, place)) as found:
        yield found


class Pending:
    """A question asked in a thread of its own, while others are asked."""

    def __init__(self, asker: Bench, token: str) -> None:
        self.seen: Observation | None = None
        self.error: Exception | None = None
        self._thread = threading.Thread(target=recording.carried(self._run), args=(asker, token), daemon=True)
        self._thread.start()

    def _run(self, asker: Bench, token: str) -> None:
        try:
            self.seen = asker.ask(token)
        except Exception as error:  # noqa: BLE001 - raised where the answer is wanted
            self.error = error

    def answer(self, within: float) -> Observation:
        """The answer.

        Raises:
            CheckFailed: none within so many seconds.
        """
        self._thread.join(within)
        if self.error is not None:
            raise self.error
        if self.seen is None:
            raise CheckFailed(f"no answer within {within:g} s")
        return self.seen
