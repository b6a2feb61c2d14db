"""Questions for the gate under load, with their right answers.

Each caller has a name of its own, so an identity that leaks from one remembered verdict to another shows. The
backends (`gate_config`) repeat in their answer what they received, so each of the tags is judged.

Pools, by what they are for:

- `mix`: most requests are allowed and repeat what was asked before, some are refused for various reasons;
- `unasked`, `remembered`, `new`: the three of a paired measurement (`conductor`): the same request without
  the question, with a verdict that the agent remembers, and with a token it has never seen;
- `one`, `thousand`, `hundred-thousand`: identities, chosen by Zipf's law;
- `hostile`: forged and broken tokens, kids that nobody has, paths of eight thousand bytes.
"""

from __future__ import annotations

import itertools
import math
import random
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from iamroles_loadtests.asking.plan import Ask, Pools
from iamroles_scenarios.traffic import Right
from iamroles_scenarios.traffic.questions import NUMBER
from iamroles_scenarios.wire.client import check_arguments, context_arguments
from iamroles_scenarios.wire.frames import encode_message

ACCOUNT = "111111111111"
CALLERS = 40
"""Names in the mix; each asks with tokens of its own."""
ORDERS = 25
"""Paths that a caller reads."""
DEALT = 8192
"""Questions dealt before a pool's order repeats: of more identities, those that Zipf's law deals."""
POPULATIONS = {"one": 1, "thousand": 1_000, "hundred-thousand": 100_000}

Minter = Callable[[Mapping[str, Any]], str]
"""A recipe of `iamroles_scenarios.jose` in, a token out."""


def role(name: str) -> str:
    """The ARN of a role of the policy `orders`."""
    return f"arn:aws:iam::{ACCOUNT}:role/{name}"


class Asking:
    """Makes questions with the tokens of an issuer.

    Args:
        mint: makes tokens.
        life: seconds that good tokens live.
        host: value of the `Host` field.
    """

    def __init__(self, mint: Minter, *, life: float = 3600.0, host: str = "api.example.com") -> None:
        self._mint = mint
        self._life = f"+{math.ceil(life)}s"
        self._host = host

    def token(self, name: str, *roles: str, **recipe: object) -> str:
        return self._mint({"sub": name, "roles": list(roles), "exp": self._life, "key": "RS256", **recipe})

    def request(self, token: str, *, method: str = "GET", path: str = "/orders/1", **fields: str) -> str:
        """A request as it goes over the wire; `_` in a field's name stands for `-`."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._host}"]
        if token:
            lines.append(f"Authorization: Bearer {token}")
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
        if method == "POST":
            lines.append("Content-Length: 0")
        return "\r\n".join([*lines, "", ""])

    def allowed(
        self, case: str, name: str, token: str, *, path: str = "/orders/1", method: str = "GET", **fields: str
    ) -> Ask:
        """A request that must be let through, with this identity."""
        as_writer = method == "POST"
        variables = ("orders-rw", role("writer"), "R2") if as_writer else ("orders-ro", role("reader"), "R1")
        right = opened(variables[0], name, variables[1], variables[2])
        return Ask(case=case, payload=self.request(token, method=method, path=path, **fields), right=right)

    def refused(self, case: str, status: int, error: str, token: str, **more: str) -> Ask:
        """A request that must be refused with this RFC 6750 code."""
        return Ask(case=case, payload=self.request(token, **more), right=shut(status, error))

    # --- pools ---------------------------------------------------------------------------------------------

    def mix(self, seconds: float, now: float | None = None) -> list[Ask]:
        """Mix what an edge sees, in rough proportion, for a run of this length."""
        names = [f"caller-{number}" for number in range(CALLERS)]
        readers = {name: self.token(name, "reader") for name in names}
        both = {name: self.token(name, "reader", "writer") for name in names[:10]}
        limited = self.token("contractor", "reader", "contractor")
        reads = [
            self.allowed("allowed-read", name, token, path=f"/orders/{number}")
            for (name, token), number in itertools.product(readers.items(), range(ORDERS))
        ]
        as_writer = {"path": "/orders", "X_IAM_Role": "writer"}
        as_reader = {"path": "/orders/export", "X_IAM_Role": "reader"}
        writes = [
            self.allowed("allowed-write", name, token, method="POST", **as_writer)
            for name, token in both.items()
        ]
        late = self.token("late", "reader", exp="-90s")
        kinds: list[tuple[int, list[Ask]]] = [
            (60, reads),
            (10, writes),
            (10, [self.refused("no-grant", 403, "", one, method="DELETE") for one in readers.values()]),
            (3, [self.refused("overlap", 403, "", token) for token in both.values()]),
            (3, [self.refused("rule", 403, "", limited, **as_reader)]),
            (2, [self.refused("no-token", 401, "", "")]),
            (4, self._flawed()),
            (2, [self.refused("expired", 401, "invalid_token", late)]),
            (3, list(self._expiring(seconds, time.time() if now is None else now))),
            (3, [self.refused("not-asked", 400, "invalid_request", "", path="/orders//1")]),
        ]
        return list(_weighed(kinds, 2000))

    def _flawed(self) -> list[Ask]:
        flaws: list[dict[str, Any]] = [
            {"signature": "flipped"},
            {"aud": "elsewhere"},
            {"key": "other"},
            {"alg": "none"},
            {"roles": ["not an arn/"]},
        ]
        return [
            self.refused("bad-token", 401, "invalid_token", self._mint({"roles": ["reader"], **flaw}))
            for flaw in flaws
        ]

    def _expiring(self, seconds: float, now: float) -> Iterator[Ask]:
        """Let a token die every few seconds until the end of the run, 60 at most; then it is refused."""
        for after in range(3, math.ceil(seconds) + 3, max(3, math.ceil(seconds / 60))):
            end = math.ceil(now + after)
            name = f"short-{end}"
            opens = self.allowed("expiring", name, self._mint({"sub": name, "roles": ["reader"], "exp": end}))
            yield opens.model_copy(
                update={"changes": end * 1_000_000_000, "afterwards": shut(401, "invalid_token")}
            )

    def paired(self, new: int) -> Pools:
        """The three pools of a paired measurement; `new` has so many tokens."""
        known = self.token("known", "reader", **_fast)
        unasked = self.allowed("unasked", "meter", known, meter_unasked="1")
        remembered = self.allowed("remembered", "known", known)
        return {
            "unasked": [unasked],
            "remembered": [remembered],
            "new": [
                self.allowed("new", f"new-{number}", self.token(f"new-{number}", "reader", **_fast))
                for number in range(new)
            ],
        }

    def population(self, size: int, *, seed: int = 1) -> list[Ask]:
        """Callers of a population of this size, dealt by Zipf's law with exponent 1."""
        chance = random.Random(seed)  # noqa: S311 - a choice of callers, not a secret
        harmonic = list(itertools.accumulate(1 / rank for rank in range(1, size + 1)))
        dealt = chance.choices(range(size), cum_weights=harmonic, k=DEALT if size > 1 else 1)
        made: dict[int, Ask] = {}
        for number in dealt:
            if number not in made:
                name = f"user-{number}"
                made[number] = self.allowed("identities", name, self.token(name, "reader", **_fast))
        return [made[number] for number in dealt]

    def stream(self) -> Ask:
        """An event stream without an end, from a backend that repeats the identity it received."""
        request = self.request(
            self.token("listener", "reader"), path="/orders/export", Accept="text/event-stream"
        )
        right = Right(200, (b'"x-iam-principal", "listener"', b'"backend": "export"'))
        return Ask(case="stream", payload=request, right=right, endless=True)

    def hostile(self, count: int = 400) -> list[Ask]:
        """Requests of strangers: each must be answered, and refused."""
        quarter = range(max(1, count // 4))
        good = self.token("owner", "reader", **_fast)
        forged = [good[:-20] + secrets.token_urlsafe(15) for _ in quarter]
        unknown = [self._mint({"roles": ["reader"], "key": "unknown-kid"}) for _ in quarter]
        nonsense = [secrets.token_urlsafe(120) for _ in quarter]
        tokens = {"unknown-kid": unknown, "forged": forged, "nonsense": nonsense}
        asks = [
            self.refused(case, 401, "invalid_token", token) for case, bad in tokens.items() for token in bad
        ]
        long = "/orders/" + "a" * 8000
        return asks + [
            Ask(
                case="long-path",
                payload=self.request(token, path=long + secrets.token_hex(8)),
                right=Right(0, lacks=(b"HTTP/1.1 200", b"backend=")),
            )
            for token in forged
        ]


_fast: dict[str, Any] = {"key": "ES256"}
"""Tokens of which there are many are signed with ES256, which takes a tenth of the time of RS256."""


def opened(backend: str, principal: str, role_arn: str, rule: str) -> Right:
    """The answer of a backend of `gate_config` that received this identity, and no token."""
    said = f"backend={backend} principal={principal} role={role_arn} rule={rule} tokens=0 took="
    return Right(200, (said.encode(),), marker=b"took=")


def shut(status: int, error: str) -> Right:
    """A refusal with this RFC 6750 code."""
    return Right(status, (f'error="{error}"'.encode(),) if error else (), (b"backend=",))


def _weighed(kinds: list[tuple[int, list[Ask]]], length: int) -> Iterator[Ask]:
    """Yield a pool of about `length` questions with each kind's share of it."""
    for weight, asks in kinds:
        share = max(1, round(weight * length / 100))
        yield from itertools.islice(itertools.cycle(asks), share)


def straight(check: Mapping[str, Any], case: str, right: Right) -> Ask:
    """A question straight to an agent: the contract's two messages, each time with another request id.

    Args:
        check: arguments of `iam-check` (`wire.client.check_arguments`).
        case: what it counts to.
        right: the right answer; status 0: any.
    """
    context = encode_message("iam-context", context_arguments({"request-id": NUMBER.decode()}))
    message = context + encode_message("iam-check", check_arguments(check))
    return Ask(case=case, payload=message.decode("latin-1"), right=right)
