"""Control of the mocks over HTTP, and issuers as the suite holds them. Synchronous and thread-safe."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import urllib3

from iamroles_scenarios.base import recording
from iamroles_scenarios.base.errors import ControlError, WaitTimeoutError
from iamroles_scenarios.jose import SigningKey, mint


class Control:
    """JSON over HTTP to one mock's `/_control/`."""

    def __init__(self, url: str, pool: urllib3.PoolManager | None = None) -> None:
        self.url = url.rstrip("/")
        self._pool = pool or urllib3.PoolManager(maxsize=16, retries=False)

    def call(
        self,
        method: str,
        path: str,
        table: Mapping[str, Any] | None = None,
        query: Mapping[str, Any] | None = None,
        seconds: float = 30.0,
    ) -> dict[str, Any]:
        """One command.

        Raises:
            WaitTimeoutError: 504.
            ControlError: any other refusal, or no answer.
        """
        fields = {name: str(value) for name, value in (query or {}).items()} or None
        body = None if table is None else json.dumps(table).encode()
        address = f"{self.url}/_control/{path}"
        began = time.monotonic()
        try:
            if fields:
                address += "?" + urlencode(fields)
            answer = self._pool.request(method, address, body=body, timeout=seconds)
        except urllib3.exceptions.HTTPError as fault:
            raise ControlError(f"{method} {address}: {fault}") from fault
        if answer.status == 504:
            raise WaitTimeoutError(f"the agent did not ask: {fields}, counts are {answer.data.decode()}")
        if answer.status != 200:
            raise ControlError(
                f"{method} {address}: {answer.status} {answer.data.decode(errors='replace')[:500]}"
            )
        if query and "timeout" in query:
            recording.waited("a count of a mock", time.monotonic() - began, float(query["timeout"]))
        result = answer.json()
        if not isinstance(result, dict):
            raise ControlError(f"{method} {address}: not an object")
        return result

    def healthy(self) -> bool:
        try:
            return bool(self.call("GET", "health", seconds=2.0).get("ready"))
        except ControlError:
            return False

    def close(self) -> None:
        self._pool.clear()


class IssuerHandle:
    """One issuer of the mock IdP; a `jose.Signer`."""

    def __init__(self, control: Control, report: Mapping[str, Any]) -> None:
        self._control = control
        self._lock = threading.Lock()
        self.name: str = report["name"]
        self.url: str = report["url"]
        """Its `iss`, as the agent sees it."""
        self.shape: str = report["shape"]
        self._current: list[SigningKey] = []
        self._retired: list[SigningKey] = []
        self._announced: list[SigningKey] = []
        self._adopted: list[SigningKey] = []
        self._take(report)

    @property
    def keys(self) -> Sequence[SigningKey]:
        """Current keys, newest first; then retired ones, so that a recipe can still name them by kid."""
        with self._lock:
            return [*self._adopted, *self._current, *self._retired]

    def mint(self, recipe: Mapping[str, Any], *, now: float | None = None) -> str:
        """A token by recipe, in this process (see `iamroles_scenarios.jose`)."""
        full = {"shape": self.shape, **recipe}
        return mint(full, self.keys, time.time() if now is None else now, self.url)

    def rotate(self, algorithm: str | None = None, *, overlap: bool = True) -> SigningKey:
        """A new current key; with overlap the old ones stay published."""
        return self._key("rotate", {"algorithm": algorithm, "overlap": overlap})

    def announce(self) -> SigningKey:
        """Publish a new key beside the others; it signs from `adopt` on."""
        self._announced.append(self.add_key(self.keys[0].algorithm, sign=False))
        return self._announced[-1]

    def adopt(self) -> None:
        """Sign with the announced keys from now on. Only tokens minted here do: the mock's endpoint does
        not."""
        with self._lock:
            self._adopted = [*self._announced[::-1], *self._adopted]
            self._announced = []

    def add_key(
        self, algorithm: str = "RS256", *, publish: bool = True, sign: bool = True, **how: str | int
    ) -> SigningKey:
        """A new key (`kid`, `bits`, `curve`); published, current, both or neither."""
        return self._key("keys", {"algorithm": algorithm, "publish": publish, "sign": sign, **how})

    def remove(self, kid: str) -> None:
        """Withdraw a key from the JWKS."""
        with self._lock:
            gone = [key for key in self._adopted if key.kid == kid]
            self._adopted = [key for key in self._adopted if key.kid != kid]
            self._retired += gone
        self._take(self._post("remove", {"kid": kid}))

    def publish(self, *entries: object, replace: bool = False) -> None:
        """Append raw entries to the JWKS, or replace it by them."""
        self._take(self._post("publish", {"entries": list(entries), "replace": replace}))

    def poison(self, kind: str) -> SigningKey | None:
        """Publish a bad entry (`issuer.POISONS`); returns the key that signs for it, where one can."""
        report = self._post("poison", {"kind": kind})
        self._take(report)
        return SigningKey.from_jwk(report["key"]) if report["key"] else None

    def fault(self, endpoint: str, kind: str, **parameters: object) -> None:
        """Put a fault (`faults`) on `discovery`, `metadata`, `jwks`, `token` or `*`."""
        self._post("fault", {"endpoint": endpoint, "kind": kind, **parameters})

    def clear(self, endpoint: str = "*") -> None:
        """End the fault on an endpoint; on all, by default."""
        self._post("fault", {"endpoint": endpoint, "clear": True})

    def counters(self) -> dict[str, int]:
        """Requests by endpoint since the issuer was created; `<endpoint>-done` when answered."""
        return self._control.call("GET", f"issuers/{self.name}/counters")

    def wait_for(self, counter: str, at_least: int, deadline: float = 10.0) -> dict[str, int]:
        """Return all counts once one has reached its mark.

        Raises:
            WaitTimeoutError: not within `deadline` seconds.
        """
        query = {"issuer": self.name, "counter": counter, "at-least": at_least, "timeout": deadline}
        return self._control.call("GET", "wait", query=query, seconds=deadline + 10)

    def jwks(self) -> list[Any]:
        """The entries published now, without counting a request."""
        entries: list[Any] = self._control.call("GET", f"issuers/{self.name}")["published"]
        return entries

    def delete(self) -> None:
        """Forget the issuer: its URLs answer 404."""
        self._control.call("DELETE", f"issuers/{self.name}")

    def _post(self, verb: str, table: Mapping[str, Any]) -> dict[str, Any]:
        return self._control.call("POST", f"issuers/{self.name}/{verb}", table)

    def _key(self, verb: str, table: Mapping[str, Any]) -> SigningKey:
        report = self._post(verb, table)
        self._take(report)
        return SigningKey.from_jwk(report["key"])

    def _take(self, report: Mapping[str, Any]) -> None:
        with self._lock:
            known = {key.kid: key for key in [*self._current, *self._retired]}
            current = [known.get(jwk["kid"]) or SigningKey.from_jwk(jwk) for jwk in report["keys"]]
            kids = {key.kid for key in current}
            self._retired = [key for kid, key in known.items() if kid not in kids]
            self._current = current


class IdpClient:
    """Control of a mock IdP process.

    Args:
        control_url: as the suite reaches it.
        public_url: as the agent reaches it; default the same.
    """

    def __init__(self, control_url: str, public_url: str | None = None) -> None:
        self._control = Control(control_url)
        self.url = (public_url or control_url).rstrip("/")

    def issuer(
        self,
        name: str,
        shape: str = "generic",
        *,
        keys: Sequence[str] = ("RS256", "ES256"),
        clients: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> IssuerHandle:
        """Create an issuer, replacing one of the same name.

        Args:
            name: first segment of its path.
            shape: of its tokens (`jose.SHAPES`).
            keys: algorithms, one key each, the first one current.
            clients: for the token endpoint, by client id (`issuer.OauthClient`).
        """
        table = {"shape": shape, "keys": list(keys), "clients": dict(clients or {})}
        return IssuerHandle(self._control, self._control.call("PUT", f"issuers/{name}", table))

    def get(self, name: str) -> IssuerHandle:
        """A handle for an issuer that exists.

        Raises:
            ControlError: it is missing.
        """
        return IssuerHandle(self._control, self._control.call("GET", f"issuers/{name}"))

    def healthy(self) -> bool:
        return self._control.healthy()

    def close(self) -> None:
        self._control.close()
