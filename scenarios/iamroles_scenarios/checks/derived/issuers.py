"""Every key of an issuer, of an STS endpoint, and of what bounds all issuers (SPEC.md section 6).

As in `rules`, each row of data/derived/issuers.toml makes something of its own in two policies: an issuer
with an `iss` of its own. All of them sign with the keys of the same mock issuer, so that a row costs a table
and no more. Beside them: every algorithm that 5.10 names, in a policy with it alone, and tokens by every
other.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from iamroles_scenarios.base.polling import polls
from iamroles_scenarios.checks.derived.world import derived, iam_check
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.tables import ARN, filled, table
from iamroles_scenarios.engine.answers import ALLOW, REFUSE, expected
from iamroles_scenarios.engine.bench import EDGE, Bench, SpopQuestion
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.jose import SigningKey, mint

if TYPE_CHECKING:
    from iamroles_scenarios.mock.clients import IssuerHandle

Row = Mapping[str, Any]
TABLES: dict[str, dict[str, list[Row]]] = filled(
    table("issuers"), {"abroad": "arn:aws:iam::222222222222:role/kiosk"}
)
_SOON = 55
"""Seconds from minting in which the answers to rows of `leeway` hold: no leeway is over a minute."""
_RECIPE = ("typ", "alg", "signer", "size", "role")
"""Keys of a row that are not claims."""


def entry(number: int, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - keys of an issuer
    """Make an issuer; a key of None is left out."""
    usual = {
        "name": f"derived{number}",
        "issuer": f"https://issuer{number}.example",
        "jwks_uri": "{idp}/corp/jwks",
        "insecure_http": True,
        "audiences": ["edge"],
        "algorithms": ["RS256", "ES256"],
    }
    return {name: value for name, value in (usual | changes).items() if value is not None}


def entry_of(number: int, key: str, row: Row, *, without: bool) -> dict[str, Any]:
    """Make the issuer of a row; without a key, for a bound of all issuers."""
    beside = {**dict.fromkeys(row.get("left_out", ())), **row.get("beside", {})}
    own = {key: value_of(row, without=without)} if key else {}
    return entry(number, **filled(beside | own, {"n": number}))


def value_of(row: Row, *, without: bool) -> Any:  # noqa: ANN401 - any JSON
    """Return the value of a row's key in one of the two policies; None: the key is left out."""
    return [*row["values"], None][without]


def joined(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Join claims, the later ones winning; a dropped claim is None."""
    found: dict[str, Any] = {}
    for part in parts:
        found |= dict.fromkeys(part.get("drop", ()))
        found |= {name: value for name, value in part.items() if name != "drop"}
    return found


def token_of(here: Bench, said: Mapping[str, Any], now: int) -> str:
    """Mint a token of these claims; a claim of None is left out."""
    times = {name: now + said[name] for name in ("exp", "nbf", "iat") if isinstance(said.get(name), int)}
    recipe: dict[str, Any] = {"key": said.get("alg", "ES256"), "signer": said.get("signer", "corp")}
    recipe |= {name: said[name] for name in ("typ", "size") if name in said}
    kept = {"nbf": None} | {name: value for name, value in said.items() if name not in _RECIPE} | times
    gone = [name for name, value in kept.items() if value is None]
    full = {name: value for name, value in kept.items() if value is not None}
    return here.token("corp", claims=full, drop=gone, **recipe)


def _questions(here: Bench, key: str, number: int, row: Row, now: int) -> tuple[list[SpopQuestion], ...]:
    """Make the questions of a row with the key, and without it; the tokens are the same."""
    found: tuple[list[SpopQuestion], ...] = ([], [])
    usual = {"iss": f"https://issuer{number}.example", "roles": [f"{ARN}kiosk"]}
    for claims, *answers in filled(row["asked"], {"n": number}):
        said = joined(row.get("claims", {}), claims)
        token = token_of(here, usual | said, now)
        what = f"{key} = {row['values'][0]!r}, asked with {said}"
        for into, answer in zip(found, answers, strict=True):
            into.append(SpopQuestion(what, iam_check(token, role=said.get("role")), expected(answer)))
    return found


_CHANGES = ((False, ""), (True, "without it: "), (False, "again with it: "))
_PAUSES, _EACH = 3.5, 0.2
"""Seconds, times the scale, in which an agent meets an STS in vain, and may come to its longest pause; and
seconds, at any scale, from one question to the next."""
_FETCHED = {"name", "issuer", "jwks_uri", "algorithms"}
"""Keys whose change may cost an agent the keys that it had, so that it must fetch them again."""


@check("identity.derived.issuers", "DERIVED-KEY-002", features={"oidc", "reload"})
def keys_of_issuers(target: Target) -> str:
    """Every key of an issuer, and every limit of all issuers, takes effect on both sides of its bound.

    All issuers at once; then each bound alone, with an issuer of its own. The last change comes while no
    issuer can be reached, which revokes nothing (11.3).
    """
    rows = [(key, row) for key, rows in TABLES["issuers"].items() for row in rows]
    with derived(target, "identity.derived.issuers") as here:
        keys, _ = here.issuer("corp"), here.issuer("partner")
        now, base = int(time.time()), here.loan.policy
        asked = [
            _questions(here, f"issuers.{key}", number, row, now) for number, (key, row) in enumerate(rows)
        ]
        for without, when in _CHANGES:
            if last := when.startswith("again"):
                keys.fault("jwks", "cut")
            issuers = [
                here.loan.own(entry_of(number, key, row, without=without))
                for number, (key, row) in enumerate(rows)
            ]
            here.must_reload({**base, "issuers": [*base["issuers"], *issuers]}, "the keys of issuers")
            questions = [
                each
                for (key, _), pair in zip(rows, asked, strict=True)
                for each in pair[without]
                if not last or key not in _FETCHED
            ]
            here.ask_all(questions, when, again=not last, keys=not last)
            here.in_time(now + _SOON, "questions about an `nbf` or `exp` that is near")
        keys.clear()
        for key, bounds in TABLES["limits"].items():
            for number, row in enumerate(bounds, 1000):
                issuer = here.loan.own(entry_of(number, "", row, without=False))
                pair = _questions(here, f"limits.{key}", number, row, now)
                if not target.lacks(["sts"]):  # pre-signed credentials have a bound of their own (2.6)
                    text = here.credential(here.session("kiosk"))
                    for each in pair:
                        each.append(SpopQuestion(f"limits.{key}, asked by STS", iam_check(text), ALLOW))
                for without, when in _CHANGES[:2]:
                    value = value_of(row, without=without)
                    limits = {} if value is None else {"limits": {key: value}}
                    policy = {**base, "issuers": [*base["issuers"], issuer], **limits}
                    here.must_reload(policy, f"limits.{key}")
                    here.ask_all(pair[without], when, keys=True)
    return f"{here.asked} questions"


@check("identity.derived.endpoints", "DERIVED-KEY-003", features={"sts", "reload"})
def keys_of_endpoints(target: Target) -> str:
    """Every key of an STS endpoint takes effect, and has none once it is removed.

    Each row has an endpoint of its own; the same credentials before and after.
    """
    with derived(target, "identity.derived.endpoints") as here:
        session, played = here.session("kiosk"), []
        every = ((key, row) for key, rows in TABLES["sts"].items() for row in rows)
        for number, (key, said) in enumerate(every):
            host = f"row{number}{here.loan.suffix}.sts.example"
            row = filled(said, {"host": host})
            usual: dict[str, Any] = {"name": f"sts{number}", "endpoint": "{sts}", "insecure_http": True}
            usual |= {"hosts": [host], "binding_value": EDGE}
            credentials = [here.credential(session, **{"host": host} | recipe) for recipe, *_ in row["asked"]]
            played.append((key, row, usual, [*map(iam_check, credentials)]))
        for without, when in _CHANGES:
            sts, questions = [], []
            for key, row, usual, shown in played:
                value = value_of(row, without=without)
                sts.append({name: each for name, each in (usual | {key: value}).items() if each is not None})
                questions += [
                    SpopQuestion(f"sts.{key} = {row['values'][0]!r}", asked, expected(answers[without]))
                    for asked, (_, *answers) in zip(shown, row["asked"], strict=True)
                ]
            here.must_reload({**here.loan.policy, "sts": sts}, "the keys of endpoints")
            here.ask_all(questions, when)
            gone = [each for each in questions if each.expected == expected("sts_unavailable")]
            for _last in polls(here.seconds(_PAUSES), _EACH) if gone else ():
                for worker in here.spread.askers():  # a pause ends with its policy (8.5)
                    here.actions(gone, of=worker)
    return f"{here.asked} questions"


# --- algorithms -------------------------------------------------------------------------------------------

NEEDED = ("RS256", "ES256", "ES384")
OPTIONAL = ("RS384", "RS512", "PS256", "PS384", "PS512", "ES512", "EdDSA", "Ed25519")
"""An agent may lack these: it then turns down a policy that names one."""
NEVER = ("none", "HS256", "HS384", "HS512")
_URL = "https://algorithms.kiosk.example"
_CURVES = {"ES256": "ES256", "ES384": "ES384", "ES512": "ES512", "EdDSA": "EdDSA", "Ed25519": "Ed25519"}


def keys_of_all(issuer: IssuerHandle) -> dict[str, SigningKey]:
    """Publish a key for each algorithm, and one for all of RSA; no key says which algorithm it is for."""
    keys = {name: SigningKey.generate(name, kid=name) for name in _CURVES}
    keys["RSA"] = SigningKey.generate("RS256", kid="any")
    shown = [key.public_jwk() for key in keys.values()]
    issuer.publish(*({name: value for name, value in jwk.items() if name != "alg"} for jwk in shown))
    return keys


def _by_each_algorithm(here: Bench, keys: dict[str, SigningKey], now: float) -> Iterator[tuple[str, str]]:
    """Mint a token by each algorithm, and forgeries under the names of those that no policy can name."""
    for name in (*NEEDED, *OPTIONAL):
        yield name, mint({"roles": ["kiosk"], "alg": name}, [keys.get(name, keys["RSA"])], now, _URL)
    for name in NEVER:
        how = {"confusion": f"{name.lower()}-with-public-key"} if name != "none" else {"alg": "none"}
        yield name, mint({"roles": ["kiosk"], **how}, [keys["RSA"]], now, _URL)
    for name, other in itertools.permutations(("ES256", "ES384", "ES512"), 2):
        forged = mint({"roles": ["kiosk"], "alg": name}, [keys[other]], now, _URL)
        yield f"{name} by a key for {other}", forged
    wide = here.issuer("algorithms").add_key("EdDSA", curve="Ed448", sign=False)
    forged = mint({"roles": ["kiosk"], "header": {"alg": "Ed25519"}}, [wide], now, _URL)
    yield "Ed25519 by a key of Ed448", forged


@check("identity.derived.algorithms", "DERIVED-ALGORITHM-001", features={"oidc", "reload"})
def algorithms(target: Target) -> str:
    """A policy that names one algorithm allows only tokens by this algorithm, or is refused.

    All algorithms share one key set. No key names its algorithm, so the policy and the key's curve alone
    decide.
    """
    with derived(target, "identity.derived.algorithms") as here:
        issuer = here.issuer("algorithms")
        keys = keys_of_all(issuer)
        tokens = dict(_by_each_algorithm(here, keys, time.time()))
        lacking = []
        for name in (*NEEDED, *OPTIONAL):
            own = entry(0, issuer=_URL, jwks_uri=f"{issuer.url}/jwks", algorithms=[name])
            policy = {**here.loan.policy, "issuers": [*here.loan.policy["issuers"], own]}
            if not here.reload(policy).get("reloaded"):
                lacking.append(name)
                if name in NEEDED:
                    here.note_wrong(f"a policy with {name} was turned down")
                continue
            questions = [
                SpopQuestion(
                    f"a token by {by} under {name}", iam_check(token), ALLOW if by == name else REFUSE
                )
                for by, token in tokens.items()
            ]
            here.wait_for_keys([each for each in questions if each.expected is ALLOW])
            here.ask_all(questions)
    return f"{here.asked} questions; not offered: {', '.join(lacking) or 'none'}"
