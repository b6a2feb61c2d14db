"""The wire lane's own world: one agent under a small policy, and credentials whose verdicts are known.

The policy has what the checks of `flows.wire_*` need and no more: a role that may read `/orders`; one long
claim that becomes two tags, so that the answer does not fit a frame of the question's own size; and a second
issuer that is slow to give its keys, so that a first token under a new key keeps the agent waiting.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from iamroles_scenarios.wire.target import WireTarget

if TYPE_CHECKING:
    from iamroles_scenarios.stage import AgentSpec, Stage, World

_ISSUER, _SLOW = "wire", "wire-slow"
_ACCOUNT = "111122223333"
_AUDIENCE = "https://orders.example.com"
SLOWNESS = 1.2
"""Seconds that the slow issuer keeps its keys back."""
_LONG = "crowded-" + "x" * 500
"""A `sub` that comes back as principal and as session: twice as raw bytes, in the token once in base64."""
_LONG_NAME = "crowded-" + "x" * 56


def _issuer(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "issuer": "{idp}/" + name,
        "jwks_uri": "{idp}/" + name + "/jwks",
        "insecure_http": True,
        "audiences": [_AUDIENCE],
        "algorithms": ["ES256"],
        "roles_claim": "roles",
        "session_claim": "sub",
    }


POLICY: dict[str, Any] = {
    "version": 1,
    "issuers": [_issuer(_ISSUER), _issuer(_SLOW)],
    "keys": {"cooldown": "100ms"},
    "roles": [{"name": "reader", "arn": f"arn:aws:iam::{_ACCOUNT}:role/reader"}],
    "backends": [
        {"name": "orders", "servers": ["127.0.0.1:9"]},
        {"name": _LONG_NAME, "servers": ["127.0.0.1:9"]},
    ],
    "grants": [
        {"id": "read", "roles": ["reader"], "methods": ["GET"], "path": "/orders", "backend": "orders"},
        {"id": _LONG_NAME, "roles": ["reader"], "methods": ["GET"], "path": "/c", "backend": _LONG_NAME},
    ],
}
"""As `Stage.world` takes it."""


class Credentials:
    """Questions with known answers under `POLICY`, from the stage's mock issuers."""

    def __init__(self, stage: Stage) -> None:
        self._fast = stage.idp.issuer(_ISSUER, keys=("ES256",))
        self._slow = stage.idp.issuer(_SLOW, keys=("ES256",))
        self._numbers = itertools.count(1)
        token = self._token(self._fast)
        self.allowed = self._question(token, "/orders/1")
        self.refused = self._question(token, "/elsewhere")
        self.crowded = self._question(self._token(self._fast, sub=_LONG), "/c")

    def _token(self, issuer: Any, *, sub: str = "wire") -> str:  # noqa: ANN401 - an IssuerHandle, imported late
        recipe = {
            "roles": [f"arn:aws:iam::{_ACCOUNT}:role/reader"],
            "aud": _AUDIENCE,
            "sub": sub,
            "exp": "+50m",
        }
        return str(issuer.mint(recipe))

    @staticmethod
    def _question(token: str, path: str) -> dict[str, Any]:
        return {
            "authorization": f"Bearer {token}",
            "method": "GET",
            "host": "orders.example.com",
            "path": path,
            "src": "192.0.2.10",
        }

    def delay(self) -> None:
        """From now on the slow issuer keeps its keys back; agents that already run have fetched them."""
        self._slow.fault("jwks", "slow", seconds=SLOWNESS)

    def slow(self) -> dict[str, Any]:
        """A question whose token is signed with a key that no agent has fetched yet."""
        self._slow.add_key("ES256", kid=f"late-{next(self._numbers)}")
        return self._question(self._token(self._slow), "/orders/2")


class _Launched:
    """A `Process` over an agent of the stage."""

    def __init__(self, world: World) -> None:
        self._agent = world.agent

    @property
    def address(self) -> str:
        return self._agent.spop_address

    @property
    def pid(self) -> int | None:
        return self._agent.pid

    def terminate(self) -> None:
        self._agent.terminate()

    def wait(self, seconds: float) -> int | None:
        return self._agent.wait(seconds)

    def logs(self) -> str:
        return self._agent.logs()


@contextlib.contextmanager
def staged(stage: Stage, spec: AgentSpec, *, time_scale: float = 1.0) -> Iterator[WireTarget]:
    """Start an agent for the wire lane and say how it can be judged.

    Args:
        stage: where it runs; HAProxy is not needed.
        spec: its `agent.toml`. An agent that already runs (`launch.address`) has a policy of its own, so no
            credentials are known for it.
        time_scale: as `WireTarget.time_scale`.

    Raises:
        StageError: the agent did not start.
    """
    features = frozenset(name for name, value in spec.features.items() if value)
    if spec.address:
        yield WireTarget(spec.address, time_scale=time_scale, features=features)
        return
    credentials = Credentials(stage)

    @contextlib.contextmanager
    def launch(settings: Mapping[str, Any]) -> Iterator[_Launched]:
        world = stage.world(spec, {**copy.deepcopy(POLICY), "agent": dict(settings)}, haproxy=False)
        try:
            yield _Launched(world)
        finally:
            world.close()

    with launch({}) as process:
        credentials.delay()
        yield WireTarget(
            process.address,
            time_scale=time_scale,
            allowed=credentials.allowed,
            refused=credentials.refused,
            slow=credentials.slow,
            crowded=credentials.crowded,
            features=features,
            pid=process.pid,
            logs=process.logs,
            launch=launch,
        )
