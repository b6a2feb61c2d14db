"""Servers that an agent calls over https, and each way in which a server is not the right one.

Each row of data/derived/certificates.toml has servers of its own before the mocks (SPEC.md 6.5), all in one
policy. They are wrong at first, then sound, then wrong again with new keys. An agent without the feature
`authorities` cannot know the suite's authority: it plays the first act alone.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from itertools import count
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from iamroles_scenarios.checks.derived.key_sets import KEYS, until_right
from iamroles_scenarios.checks.derived.waits import NO_STS, NOT_YET, started
from iamroles_scenarios.checks.derived.world import iam_check
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.tables import filled, table
from iamroles_scenarios.engine.answers import ALLOW, REFUSE
from iamroles_scenarios.engine.bench import EDGE, Bench, SpopQuestion, own_suffix
from iamroles_scenarios.engine.certificates import Authority, context
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.stage.breaker import Breaker
from iamroles_scenarios.stage.spec import AUTHORITIES

if TYPE_CHECKING:
    from iamroles_scenarios.mock.clients import IssuerHandle

ROWS: list[dict[str, Any]] = table("certificates")["row"]
_ACTS = ("at first: ", "from a sound server: ", "then: ")
_TRIED = 10.0
"""Seconds, times the scale, within which an agent calls again."""


def shown(row: Mapping[str, Any], authority: Authority, host: str) -> ssl.SSLContext | None:
    """Return what a row's wrong server shows; None: it does not speak TLS."""
    odd = {"host": host} | row.get("certificate", {})
    by = Authority() if odd.pop("other", False) else authority
    return None if odd.pop("plain", False) else context(ssl.PROTOCOL_TLS_SERVER, by.issue(**odd))


class _Servers:
    """The servers of the rows, before a mock."""

    def __init__(self, target: Target, stack: ExitStack, mock: str, rows: list[dict[str, Any]]) -> None:
        self._authority, self._target, self.rows = Authority(), target, rows
        to = urlsplit(target.stage.urls[mock]).netloc
        self.fronts = [stack.enter_context(Breaker(target.stage.host, to)) for _ in rows]
        self.files = {AUTHORITIES: self._authority.public}
        self._show(sound=False)

    def _show(self, *, sound: bool) -> None:
        for front, row in zip(self.fronts, self.rows, strict=True):
            front.shows(shown({} if sound else row, self._authority, self._target.stage.host))

    def acts(self, here: Bench, turn: Callable[[bool], list[SpopQuestion]], *, calls: int = 0) -> str:
        """Play the acts.

        Args:
            here: the world.
            turn: lets the mocks behind sound or wrong servers answer for an act, and makes its questions.
            calls: that the agent makes by itself before it is asked again.
        """
        for number, act in enumerate(_ACTS[: 1 if self._target.lacks(["authorities"]) else 3]):
            self._show(sound=number == 1)
            asked = turn(number == 1)
            for front, row in zip(self.fronts, self.rows, strict=True):  # a connection may be kept otherwise
                waits = range(calls if number == 2 and "certificate" in row else 0)
                if not all(front.wait_tried(here.seconds(_TRIED)) for _ in waits):
                    here.note_wrong(f"{row['what']}: the agent does not call again")
            if number == 1:
                until_right(here, asked)
            here.ask_all(asked, act)
        return f"{len(self.rows)} rows, {here.asked} questions"


class _Issuer:
    """An issuer whose keys come from a row's server."""

    def __init__(self, row: dict[str, Any], keys: IssuerHandle, address: str, kind: str) -> None:
        self._row, self._keys, self._what = row, keys, f"{row['what']}, by {kind}"
        self._urls = {"https": f"https://{address}/{keys.name}", "http": keys.url}
        self._url = self._urls["https"] if kind == "discovery" else keys.url
        own = {} if kind == "discovery" else {"jwks_uri": f"{self._urls['https']}/jwks"}
        self.table = {
            "name": keys.name, "issuer": self._url, "audiences": ["edge"], "algorithms": ["ES256"], **own,
        }  # fmt: skip
        self._known: list[SpopQuestion] = []

    def turn(self, *, sound: bool) -> list[SpopQuestion]:
        """Answer as an act wants it, by a new key; ask about its token, and about those that were good."""
        here = self._urls["https"]
        self._keys.fault("jwks", "slow", seconds=0)
        self._keys.fault("discovery", "patch", members={"issuer": here, "jwks_uri": f"{here}/jwks"})
        for endpoint in ("jwks", "discovery"):
            if endpoint in self._row and not sound:
                self._keys.fault(endpoint, **filled(self._row[endpoint], self._urls))
        self._keys.rotate("ES256", overlap=False)
        token = self._keys.mint({"roles": ["kiosk"], "key": "ES256", "iss": self._url})
        asked = [SpopQuestion(self._what, iam_check(token), ALLOW if sound else NOT_YET), *self._known]
        if sound:
            self._known.append(SpopQuestion(f"{self._what}: a known token", iam_check(token), ALLOW))
        return asked


@check("identity.derived.certificates", "JWKS-TLS-001", features={"oidc"}, long=True)
def certificates(target: Target) -> str:
    """Keys from an https server that is not the issuer's are never used; those of a sound server are.

    Certificates, and ways to plain http; by `jwks_uri` and by discovery.
    """
    suffix = own_suffix()
    with ExitStack() as stack:
        servers = _Servers(target, stack, "idp", ROWS)
        issuers = [
            _Issuer(row, target.worlds.issuer(f"{kind[0]}{number}{suffix}"), front.address, kind)
            for number, (row, front) in enumerate(zip(ROWS, servers.fronts, strict=True))
            for kind in ("jwks_uri", "discovery")
            if kind == "discovery" or "discovery" not in row
        ]

        def turn(sound: bool) -> list[SpopQuestion]:
            return [question for one in issuers for question in one.turn(sound=sound)]

        turn(sound=False)
        tables = [one.table for one in issuers]
        here = stack.enter_context(started(target, suffix, servers.files, keys=KEYS, issuers=tables))
        return servers.acts(here, turn, calls=3)


@check("identity.derived.sts-certificates", "STS-TLS-001", features={"sts"})
def sts_certificates(target: Target) -> str:
    """STS behind a certificate that does not verify vouches for nobody."""
    suffix, used = own_suffix(), count(100)
    rows = [row for row in ROWS if "certificate" in row]
    with ExitStack() as stack:
        servers = _Servers(target, stack, "sts", rows)
        hosts = {f"c{number}{suffix}.sts.example": row["what"] for number, row in enumerate(rows)}
        tables = [
            {"name": host, "endpoint": f"https://{front.address}", "hosts": [host], "binding_value": EDGE}
            for front, host in zip(servers.fronts, hosts, strict=True)
        ]
        here = stack.enter_context(started(target, suffix, servers.files, sts=tables))
        session = here.session("kiosk")

        def turn(sound: bool) -> list[SpopQuestion]:
            credentials = [here.credential(session, expires=next(used), host=host) for host in hosts]
            wanted = ALLOW if sound else NO_STS
            plain = here.credential(session, expires=next(used), host=next(iter(hosts)), scheme="http")
            return [
                SpopQuestion("a URL of http", iam_check(plain), REFUSE),
                *(
                    SpopQuestion(what, iam_check(credential), wanted)
                    for what, credential in zip(hosts.values(), credentials, strict=True)
                ),
            ]

        return servers.acts(here, turn)
