"""Every claim that a policy can name, and that a standard gives a meaning (SPEC.md section 5).

A claim has *kinds*, which say how its value may be written. The shapes are those that vendors of tokens and
readers of tokens confuse: a text in place of a list, joined by commas or blanks, a list in a list, an object,
a number, the same twice, nothing. data/derived/claims.toml says for each kind which shapes are good, and
which the standards leave to the reader; the agent must refuse the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from iamroles_scenarios.checks.derived.world import derived, iam_check
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.tables import filled, table
from iamroles_scenarios.engine.answers import ALLOW, OPEN, REFUSE, Expected
from iamroles_scenarios.engine.bench import Bench, SpopQuestion
from iamroles_scenarios.engine.target import Target

ABSENT = object()
"""A claim that is left out."""
_TABLE = filled(table("claims"), {"absent": ABSENT})
SHAPES: Mapping[str, Any] = _TABLE["shapes"]
_ISSUERS: Mapping[str, Mapping[str, Any]] = _TABLE["issuers"]
_TIMES = ("exp", "nbf", "iat", "original_session_exp")


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim: its place in the token, its good value, and the shapes that it may have."""

    issuer: str
    """An issuer of data/worlds/derived.toml."""
    path: list[str]
    good: Any
    kinds: list[str]
    beside: Mapping[str, Any] = field(default_factory=dict)
    """Claims that the token has besides."""

    @property
    def shapes(self) -> dict[str, Expected]:
        """Shapes that the agent need not refuse, and its answer to each."""
        kinds = [_TABLE["kinds"][kind] for kind in self.kinds]
        left_open = {shape: OPEN for kind in kinds for shape in kind.get("open", ())}
        return left_open | {shape: ALLOW for kind in kinds for shape in kind.get("allow", ())}

    @property
    def base(self) -> dict[str, Any]:
        """The claims of a good token."""
        return {**_ISSUERS[self.issuer], **self.beside}

    def value(self, here: Bench, now: int) -> Any:  # noqa: ANN401 - any JSON
        """Return the value in a good token."""
        if self.path[-1] in _TIMES:
            return now + self.good
        return here.issuer().url if self.good == "{iss}" else self.good


CLAIMS = {name: Claim(**row) for name, row in _TABLE["claims"].items()}


def _put(claims: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    """Copy the claims, with a value at a path."""
    head, *rest = path
    return {**claims, head: _put(claims.get(head) or {}, rest, value) if rest else value}


def minted(here: Bench, issuer: str, claims: Mapping[str, Any], **recipe: Any) -> str:  # noqa: ANN401 - of a recipe
    """Mint a token of an issuer of this world, with these claims over those of a good token."""
    said = {**_ISSUERS[issuer], **claims}
    typ = {"typ": said.pop("typ")} if "typ" in said else {}
    if issuer != "corp":
        said = {"iss": f"https://{issuer}.kiosk.example", **said}
    if issuer == "nested" and isinstance(said.get("realm"), dict) and "scope" not in said["realm"]:
        said["realm"] = {**said["realm"], "scope": "kiosk"}
    drop = [name for name, value in said.items() if value is ABSENT]
    nested = [
        [name, inner]
        for name, value in said.items()
        if isinstance(value, dict)
        for inner, v in value.items()
        if v is ABSENT
    ]
    kept = {
        name: {k: v for k, v in value.items() if v is not ABSENT} if isinstance(value, dict) else value
        for name, value in said.items()
        if value is not ABSENT
    }
    return here.token("corp", key="ES256", claims=kept, drop=[*drop, *nested], **typ, **recipe)


def shaped(here: Bench, now: int) -> Iterator[SpopQuestion]:
    """Ask with every claim in every shape."""
    for name, claim in CLAIMS.items():
        good, shapes = claim.value(here, now), {"as it is": ALLOW} | claim.shapes
        fraction = good + 0.5 if isinstance(good, int) else 1.5
        markers = {"good": good, "text": str(good), "fraction": fraction}
        for shape, form in SHAPES.items():
            if shape == "an object with it as a key" and not isinstance(good, str):
                continue
            if shape == "a text" and isinstance(good, dict):
                continue
            claims = _put(claim.base, claim.path, filled(form, markers))
            token = minted(here, claim.issuer, claims)
            yield SpopQuestion(f"{name}, {shape}", iam_check(token), shapes.get(shape, REFUSE))


def doubled(here: Bench, now: int) -> Iterator[SpopQuestion]:
    """Ask with each claim at the top of the token twice: first a good value, then a bad one."""
    for name, claim in CLAIMS.items():
        if claim.path[1:] or not isinstance(claim.good, str | int) or name == "session_claim":
            continue
        bad = {"exp": now - 9, "nbf": now + 900}.get(claim.path[0], 7)
        twice = {claim.path[0]: [claim.value(here, now), bad]}
        token = minted(here, claim.issuer, claim.base, duplicate=twice)
        yield SpopQuestion(f"{name} twice", iam_check(token), REFUSE)


@check("identity.derived.claims", "DERIVED-CLAIM-001", features={"oidc"})
def claims(target: Target) -> str:
    """Every claim in every shape of JSON: a claim that breaks its standard opens nothing.

    Also each claim twice, the good one first: the last counts, or the token is malformed (5.2).
    """
    with derived(target) as here:
        questions = list(shaped(here, here.now()))
        here.wait_for_keys(questions[:: len(SHAPES)])
        here.ask_all([*questions, *doubled(here, here.now())])
    return f"{here.asked} questions about {len(CLAIMS)} claims"
