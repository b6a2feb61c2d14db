"""Tokens of one playing of a scenario: minted when first sent, by recipe or by the mock cloud."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from iamroles_scenarios.base.durations import seconds
from iamroles_scenarios.base.errors import HarnessFault
from iamroles_scenarios.declarations.documents import Json
from iamroles_scenarios.declarations.scenario import CloudStep
from iamroles_scenarios.engine.worlds import DEFAULT_ISSUER, Loan
from iamroles_scenarios.jose import mint_for
from iamroles_scenarios.jose.encoding import part

if TYPE_CHECKING:
    from iamroles_scenarios.engine.target import Target
    from iamroles_scenarios.mock.presign import SessionKeys


_PRESIGNED_FOR = 15 * 60
"""Seconds from its date that a pre-signed GetCallerIdentity is good for."""


@dataclass(frozen=True, slots=True)
class Minted:
    """A token as it travels."""

    text: str
    expires: int
    """Its `exp`, epoch seconds; 0 if it has none."""
    short: bool = False
    """True if it lives so briefly that a slow host may miss it."""
    minted: float = 0.0
    """Epoch seconds at which it was made."""


class Mint:
    """The tokens of one playing: makes and keeps them.

    Args:
        recipes: by name (`Scenario.tokens`).
        target: its stage's cloud, its worlds' issuers; its scale multiplies `lives`.
        loan: the world, which may have issuers of its own.
    """

    def __init__(self, recipes: Mapping[str, Mapping[str, Any]], target: Target, loan: Loan) -> None:
        self._recipes = recipes
        self._target = target
        self._place = loan
        self._tokens: dict[str, Minted] = {}
        self._sessions: dict[str, SessionKeys] = {}
        self._saved: dict[str, dict[str, str]] = {}

    @property
    def expiries(self) -> dict[str, int]:
        """`exp` of each token minted so far."""
        return {name: token.expires for name, token in self._tokens.items()}

    def token(self, name: str) -> Minted:
        """Return the token of a name, minted now if it was not yet."""
        return self._tokens[name] if name in self._tokens else self.mint(name)

    def mint(self, name: str) -> Minted:
        """Mint the token of a name, and another if there was one."""
        self._tokens[name] = self.fresh(name)
        return self._tokens[name]

    def fresh(self, name: str) -> Minted:
        """Mint another token by the same recipe, and do not keep it."""
        if name not in self._recipes:
            raise HarnessFault(f"the token {name!r} is neither a recipe nor saved by a step before")
        recipe: dict[str, Any] = self._filled(dict(self._recipes[name]))
        if "sts" in recipe:
            return self._presigned(recipe)
        lives = recipe.pop("lives", None)
        now = time.time()
        if lives is not None:
            recipe["exp"] = math.ceil(now + self._target.seconds(seconds(lives)))
        wanted = [recipe.get("issuer", DEFAULT_ISSUER), recipe.get("signer", DEFAULT_ISSUER), DEFAULT_ISSUER]
        issuers = {issuer: self._target.worlds.issuer(self._place.issuer(issuer)) for issuer in wanted}
        recipe = located(recipe, {name: issuer.url for name, issuer in issuers.items()})
        text = mint_for(recipe, issuers, now, default=DEFAULT_ISSUER)
        return Minted(text, _expiry(text), short=lives is not None, minted=now)

    def _presigned(self, recipe: dict[str, Any]) -> Minted:
        """Presign a URL for the first STS of the world, by `{ sts = {…}, with = "…" }` (`mock.presign`)."""
        if set(recipe) != {"sts", "with"} or recipe["with"] not in self._sessions:
            raise HarnessFault(f"{recipe}: say sts = {{…}} and with = the name of a saved assume_role")
        endpoint, now = self._place.policy["sts"][0], time.time()
        text = self._target.stage.cloud.presign_caller_identity(
            self._sessions[recipe["with"]],
            endpoint["binding_value"],
            recipe["sts"],
            binding_header=endpoint["binding_header"],
            host=endpoint["hosts"][0],
            now=now,
        )
        ends = int(now + seconds(recipe["sts"].get("date", "0s"))) + _PRESIGNED_FOR
        return Minted(text, ends, short=True, minted=now)

    def _filled(self, value: Json) -> Json:
        """Replace `{name.part}` in a recipe by parts of saved answers."""
        if isinstance(value, dict):
            return {key: self._filled(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._filled(item) for item in value]
        if isinstance(value, str) and "{" in value:
            for name, parts in self._saved.items():
                for part, text in parts.items():
                    value = value.replace(f"{{{name}.{part}}}", text)
        return value

    def cloud(self, step: CloudStep) -> None:
        """Call the mock cloud and keep the answer.

        Raises:
            HarnessFault: it refused; the cloud is part of the suite.
        """
        cloud = self._target.stage.cloud
        account = cloud.account(step.account)
        try:
            if step.do == "expire":
                cloud.expire(self._sessions[step.save])
            elif step.do == "create_role":
                self._saved[step.save] = {"arn": account.ensure_role(step.role)}
            elif step.do == "assume_role":
                session = cloud.assume(account.ensure_role(step.role), step.session)
                self._sessions[step.save] = session
                self._saved[step.save] = {"arn": session.arn}
            else:
                text = cloud.web_identity_token(self._sessions[step.with_], step.audience or "edge")
                self._tokens[step.save] = Minted(text, _expiry(text))
        except (BotoCoreError, ClientError, KeyError) as error:
            raise HarnessFault(f"the mock cloud did not {step.do} {step.role}: {error}") from error


def located(value: Json, urls: dict[str, str]) -> Json:
    """Replace `{issuer:corp}` in claims by that issuer's URL."""
    if isinstance(value, dict):
        return {key: located(item, urls) for key, item in value.items()}
    if isinstance(value, str):
        for name, url in urls.items():
            value = value.replace(f"{{issuer:{name}}}", url)
    return value


def _expiry(token: str) -> int:
    """Return the `exp` of a compact JWS, unverified; 0 if it cannot be read."""
    try:
        value = part(token, 1)["exp"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return 0
    return value if isinstance(value, int) else 0
