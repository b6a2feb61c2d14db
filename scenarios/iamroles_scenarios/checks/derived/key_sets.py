"""Every answer that an issuer may give (SPEC.md 5.25), and the withdrawal that it means or does not mean.

Each row of data/derived/key_sets.toml is an issuer, and all are in one policy: a row costs a table and a few
questions. All play three acts together: the first answer, the answer that the row is about, and a set with
one new key, which withdraws all others. Each act asks about tokens that the agent knows and tokens that it
does not, and about a token by the next row's key under the same `kid`.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from iamroles_scenarios.base.errors import WaitTimeoutError
from iamroles_scenarios.checks.derived.waits import started
from iamroles_scenarios.checks.derived.world import iam_check
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.tables import filled, table
from iamroles_scenarios.engine import answers
from iamroles_scenarios.engine.answers import REFUSE, expected
from iamroles_scenarios.engine.bench import Bench, SpopQuestion, own_suffix
from iamroles_scenarios.engine.observation import differences
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.jose import SigningKey, mint
from iamroles_scenarios.jose.encoding import b64url_decode

if TYPE_CHECKING:
    from iamroles_scenarios.mock.clients import IssuerHandle

ROWS: list[Mapping[str, Any]] = table("key_sets")["row"]
KEYS = {"refresh": "1500ms", "cooldown": "100ms", "max_stale": "1h", "timeout": "1s"}
_TAKEN = 10.0
"""Seconds, times the scale, until an agent has asked again and has taken what it got."""
_ENDPOINTS = ("jwks", "discovery")
Key = Callable[[str], SigningKey]


@cache
def _rsa() -> SigningKey:
    return SigningKey.generate("RS256", kid="r")


@cache
def _short(name: str) -> SigningKey:
    """Make a key that has a zero octet where this coordinate begins."""
    keys = (SigningKey.generate("ES256", kid=name) for _ in itertools.count())
    return next(key for key in keys if not b64url_decode(key.public_jwk()[name])[0])


def _made(foreign: SigningKey) -> Key:
    """Return a row's keys by name; an RSA key is the same in all rows, because it is slow to make."""
    made = {"f": foreign, "r": _rsa(), "x": _short("x"), "y": _short("y")}
    return lambda name: made.get(name) or made.setdefault(name, SigningKey.generate("ES256", kid=name))


@dataclass
class _Row:
    """A row with its issuer and its keys."""

    said: Mapping[str, Any]
    issuer: IssuerHandle
    foreign: IssuerHandle
    key: Key
    mark: int = 0
    """Requests that the agent had made when the answer changed."""

    @property
    def tables(self) -> list[dict[str, Any]]:
        own: dict[str, Any] = {} if self.said.get("discovery") else {"jwks_uri": f"{self.issuer.url}/jwks"}
        own |= {"insecure_http": True, "audiences": ["edge"], "algorithms": ["RS256", "ES256"]}
        names = ("", "twin")[: 1 + self.said.get("twin", False)]
        return [{"name": self.issuer.name + more, "issuer": self.url + more, **own} for more in names]

    @property
    def url(self) -> str:
        """The `iss` of the row's tokens."""
        return self.issuer.url + "/" * bool(self.said.get("slash"))

    @cached_property
    def watched(self) -> str:
        """The endpoint whose requests show that the agent had the new answer."""
        return "discovery" if self.said.get("discovery") else "jwks"

    def entries(self, said: list[Any]) -> list[Any]:
        found = []
        for one in said:
            changed: dict[str, Any] = {"key": one} if isinstance(one, str) else dict(one)
            if "raw" in changed:
                found.append(changed["raw"])
                continue
            gone, times = changed.pop("without", ()), changed.pop("times", 1)
            jwk = self.key(changed.pop("key")).public_jwk(**changed)
            jwk = {name: value for name, value in jwk.items() if name not in gone}
            found += [{**jwk, "kid": f"{jwk['kid']}{n}"} for n in range(times)] if times > 1 else [jwk]
        return found

    def show(self, said: Mapping[str, Any]) -> None:
        """Let the issuer answer so from now on."""
        if self.said.get("slash"):
            self.issuer.fault("discovery", "patch", members={"issuer": self.url})
        for endpoint in _ENDPOINTS:
            if endpoint in said:
                urls = {"own": self.issuer.url, "foreign": self.foreign.url}
                fault = dict(filled(said[endpoint], urls))
                if "set" in fault:
                    fault["body"] = f"\r\n\t {json.dumps({'keys': self.entries(fault.pop('set'))})} \n"
                self.issuer.fault(endpoint, **fault)
        if "keys" in said:  # last, so that no agent gets them before the fault is there
            self.issuer.publish(*self.entries(said["keys"]), replace=True)

    def token(self, said: str, sub: str) -> str:
        """Mint a token by one of the row's keys, under its own kid or another."""
        said, _, twin = said.partition(" of ")
        name, _, kid = said.partition(" as ")
        recipe: dict[str, Any] = {"roles": ["kiosk"], "sub": sub, "kid": kid or name, "exp": "+55m"}
        recipe |= {"drop_header": ["kid"]} if kid == "nobody" else {}
        recipe |= {"header": {"kid": int(kid[7:])}} if kid.startswith("number ") else {}
        return mint(recipe, [self.key(name)], time.time(), self.url + twin)


def _asked(rows: list[_Row], known: Mapping[tuple[int, str], str], act: int) -> list[SpopQuestion]:
    """Make the questions of an act: each token twice, known from the acts before, and new."""
    found = []
    for number, row in enumerate(rows):
        asked = [(said, (*wanted, "refuse")[act]) for said, *wanted in row.said["asked"]]
        asked += [("z", "allow")] if act == 2 else []
        for said, wanted in asked:
            shown = [known[number, said]] if (number, said) in known else []
            for token in (*shown, row.token(said, f"sub{act}")):
                what = f"{row.said['what']}: a token by {said}"
                found.append(SpopQuestion(what, iam_check(token), expected(wanted)))
        neighbour = mint({"roles": ["kiosk"], "kid": "a"}, [rows[number - 1].key("a")], time.time(), row.url)
        what = f"{row.said['what']}: a token by another issuer's key of this kid"
        found.append(SpopQuestion(what, iam_check(neighbour), REFUSE))
    return found


def _until_asked(here: Bench, rows: list[_Row]) -> None:
    """Wait until the agent had each issuer's present answer."""
    deadline = time.monotonic() + here.seconds(_TAKEN)
    for row in rows:
        try:  # the first request from the mark on may have begun before; the second gets the new answer
            left = max(0.1, deadline - time.monotonic())
            row.issuer.wait_for(f"{row.watched}-done", row.mark + 2, left)
        except WaitTimeoutError:
            here.note_wrong(f"{row.said['what']}: no new question to {row.watched}; `refresh` is 1.5 s")
            return


def until_right(here: Bench, asked: list[SpopQuestion], when: str | None = None) -> None:
    """Ask each worker until its answers are right, or it has had time enough; with `when` judge the last."""
    for worker in here.spread.askers():
        found = here.repeated(
            lambda each, seen: differences(each.expected, {**answers.UNSET, **seen}), _TAKEN, asked, of=worker
        )
        if when is not None:
            here.judge(asked, found, when)


@check("identity.derived.key-sets", "DERIVED-KEYS-001", features={"oidc"}, long=True)
def key_sets(target: Target) -> str:
    """An issuer's answer is a key set or counts as no answer; a set withdraws each key that it does not have.

    Discovery, status, body, key ids, and what a key says of its use.
    """
    suffix = own_suffix()
    foreign = target.worlds.issuer(f"foreign{suffix}")
    shown = SigningKey.generate("ES256", kid="f")
    foreign.publish(shown.public_jwk())
    rows = [
        _Row(said, target.worlds.issuer(f"k{number}{suffix}"), foreign, _made(shown))
        for number, said in enumerate(ROWS)
    ]
    for row in rows:
        row.show({"keys": ["a"]} | row.said.get("first", {}))
    with started(target, suffix, keys=KEYS, issuers=[one for row in rows for one in row.tables]) as here:
        known = {
            (number, said): row.token(said, "known")
            for number, row in enumerate(rows)
            for said, *_ in row.said["asked"]
        }
        for act, when in enumerate(("at first: ", "then: ", "after the withdrawal: ")):
            for row in rows if act else ():
                row.issuer.clear()
                row.show(row.said["then"] if act == 1 else row.said.get("last", {"keys": ["z"]}))
                row.mark = row.issuer.counters().get(row.watched, 0)
            _until_asked(here, rows if act else [])
            until_right(here, _asked(rows, known, act)[::-1], when)
    return f"{len(rows)} answers of issuers, {here.asked} questions"
