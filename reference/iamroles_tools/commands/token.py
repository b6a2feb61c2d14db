"""`iamroles token`: explain a credential, mint a test token."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from iamroles_agent.base.config import Config
from iamroles_agent.base.encoding import decode_object
from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.commands.shared import ends_if_unsound
from iamroles_agent.policy.load import load
from iamroles_agent.tokens import Authenticator
from iamroles_agent.tokens.keys import Key, KeySet, KeySetError
from iamroles_tools.commands.inputs import EpochSecond, act_claim, bad_input, table
from iamroles_tools.tokens.inspection import Inspection, ObtainKey, inspect
from iamroles_tools.tokens.minting import (
    RecipeError,
    certificate_thumbprint,
    default_algorithm,
    load_private_key,
    mint,
    prove,
    public_jwk,
    thumbprint_of,
)

FILE = click.Path(dir_okay=False, path_type=Path)
_MARKS = {"ok": "ok  ", "fails": "FAIL", "unchecked": "?   "}
_TIMES = ("exp", "iat", "nbf", "auth_time")
_MAX_INPUT = 1 << 20


@click.group()
def token() -> None:
    """Mint and inspect test tokens."""


@token.command("inspect")
@click.argument("credential", required=False)
@click.option("--config", "config_file", type=FILE, help="The policy to judge it by.")
@click.option("--jwks", "jwks_file", type=FILE, help="Take the issuer's keys from this file; fetch nothing.")
@click.option("--offline", is_flag=True, help="Fetch no keys: the signature stays unchecked.")
@click.option("--at", type=EpochSecond(), help="Judge as if it were this time, in epoch seconds.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text")
def inspect_command(
    *,
    credential: str | None,
    config_file: Path | None,
    jwks_file: Path | None,
    offline: bool,
    at: float | None,
    form: str,
) -> None:
    """Explain CREDENTIAL (or standard input): its header, its claims, which check fails and why.

    A signature is reported as verified or not, and never printed. Prefer standard input: an argument stays in
    the shell's history.

    Exit codes: 0 no check failed, 1 the agent would refuse it, 2 bad input.
    """
    if credential is None:
        credential = sys.stdin.buffer.read(_MAX_INPUT).decode("utf-8", "replace")
    text = credential.strip()
    scheme, _, rest = text.partition(" ")
    if scheme.lower() in ("bearer", "dpop"):
        text = rest.lstrip()
    if not text:
        bad_input("no credential: give one as argument or on standard input")
    with ends_if_unsound():
        config = None if config_file is None else load(config_file)
    keys = _read_keys(jwks_file)
    if keys is not None and config is None:
        bad_input("--jwks needs --config: without a policy no issuer is known")
    data = text.encode("utf-8", "replace")
    found = asyncio.run(_inspect(data, config, keys, offline=offline, now=time.time() if at is None else at))
    click.echo(_as_json(found) if form == "json" else _as_text(found, config is not None))
    sys.exit(0 if found.reason is None else 1)


def _read_keys(path: Path | None) -> KeySet | None:
    if path is None:
        return None
    try:
        return KeySet.parse(decode_object(path.read_bytes()))
    except OSError as error:
        bad_input(f"{path}: cannot be read: {error.strerror}")
    except KeySetError as error:
        bad_input(f"{path}: {error}")
    except ValueError:
        bad_input(f"{path}: not one strict JSON object")


async def _inspect(
    data: bytes, config: Config | None, keys: KeySet | None, *, offline: bool, now: float
) -> Inspection:
    if config is None or (offline and keys is None):
        return await inspect(data, config, None, now)
    if keys is not None:
        return await inspect(data, config, _from_file(keys), now)
    # Not started: only this token's issuer is asked for its keys.
    authenticator = Authenticator(config)

    async def fetch(issuer: str, kid: str | None, alg: str) -> Key:
        return await authenticator.sources[issuer].obtain(kid, alg)

    try:
        return await inspect(data, config, fetch, now)
    finally:
        await authenticator.close()


def _from_file(keys: KeySet) -> ObtainKey:
    async def obtain(_issuer: str, kid: str | None, alg: str) -> Key:
        key = keys.find(kid, alg)
        if key is None:
            raise Refusal(Reason.KEY_UNKNOWN, f"no key of that kid for {alg} in the file")
        return key

    return obtain


def _as_text(found: Inspection, with_policy: bool) -> str:
    lines = [f"{'JWT' if found.kind == 'jwt' else 'pre-signed STS request'}, {found.credential}"]
    for title, members in (("header", found.header), ("claims", found.claims)):
        if members:
            lines += ["", title] + [f"  {_spelled(k)}: {_value(k, v)}" for k, v in members.items()]
    if found.kind == "jwt" and found.header:
        lines += ["", f"signature: {found.signature}"]
    lines += ["", "checks"]
    for step in found.steps:
        reason = f"{step.reason}: " if step.reason else ""
        lines.append(f"  {_MARKS[step.outcome]} {step.check}: {reason}{step.detail}")
    lines.append("")
    if found.reason is not None:
        error = f' error="{found.reason.error}"' if found.reason.error else ""
        lines.append(f"refused: {found.reason} (status {found.reason.status}{error})")
    elif found.identity is not None and all(step.outcome == "ok" for step in found.steps):
        lines.append("accepted: " + ", ".join(map(str, found.identity.roles)))
    else:
        lines.append(
            "nothing wrong found" + ("" if with_policy else "; give --config to judge it by a policy")
        )
    return "\n".join(lines)


def _spelled(name: str) -> str:
    return json.dumps(name, ensure_ascii=True)[1:-1]


def _value(name: str, value: object) -> str:
    """Write JSON with everything beyond ASCII escaped: a token's text must not control the terminal."""
    text = json.dumps(value, ensure_ascii=True)
    if name in _TIMES and type(value) is int and 0 <= value < 1 << 36:
        text += f"  ({datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M:%S} UTC)"
    return text


def _as_json(found: Inspection) -> str:
    identity = found.identity
    document: dict[str, Any] = {
        **{name: getattr(found, name) for name in ("kind", "credential", "header", "claims", "signature")},
        "checks": [
            {name: getattr(step, name) for name in ("check", "outcome", "reason", "detail")}
            for step in found.steps
        ],
        "reason": found.reason,
        "roles": [str(role) for role in identity.roles] if identity else [],
        "expires": identity.not_after if identity else None,
    }
    return json.dumps(document, indent=2)


@token.command("mint")
@click.option("--key", "key_file", type=FILE, required=True, help="Private key, PEM or JWK.")
@click.option("--recipe", "recipe_file", type=FILE, help="TOML or JSON: alg, kid, typ, header, claims.")
@click.option(
    "--claim", "changes", multiple=True, metavar="NAME=VALUE", help="Set a claim; VALUE is JSON or text."
)
@click.option("--alg", help="Overrides the recipe's.")
@click.option("--kid", help="Overrides the recipe's and the key's.")
@click.option("--bind", type=FILE, help="Bind it to this private key (DPoP): `cnf.jkt`.")
@click.option("--certificate", type=FILE, help="Bind it to this client certificate: `cnf.x5t#S256`.")
@click.option("--act", metavar="SUB[,ISS]", help="Who acts for the caller: the claim `act`, or its JSON.")
@click.option("--jwks", "print_jwks", is_flag=True, help="Print the public key set instead of a token.")
def mint_command(
    *,
    key_file: Path,
    recipe_file: Path | None,
    changes: tuple[str, ...],
    alg: str | None,
    kid: str | None,
    bind: Path | None,
    certificate: Path | None,
    act: str | None,
    print_jwks: bool,
) -> None:
    """Mint a test token and print it.

    Times in claims may be relative: `exp = "+5m"`, `--claim iat=-10s`. By default `iat` is now and `exp` is
    five minutes later. The recipe is not judged: it may make a bad token on purpose.
    """
    try:
        key, key_kid = load_private_key(key_file)
        recipe = table(recipe_file, "a recipe", toml=recipe_file.suffix != ".json") if recipe_file else {}
        given = recipe.get("claims", {})
        claims = dict(map(_read_change, changes))
        bound = {} if bind is None else {"jkt": thumbprint_of(load_private_key(bind)[0])}
        bound |= {} if certificate is None else {"x5t#S256": certificate_thumbprint(certificate)}
        claims |= {"cnf": bound} if bound else {}
        claims |= {} if act is None else {"act": act_claim(act)}
        recipe["claims"] = given | claims if isinstance(given, dict) else given  # which `mint` refuses
        recipe |= ({"alg": alg} if alg else {}) | ({"kid": kid} if kid else {})
        if print_jwks:
            chosen = recipe.get("alg", default_algorithm(key))
            click.echo(json.dumps({"keys": [public_jwk(key, recipe.get("kid", key_kid), chosen)]}))
        else:
            click.echo(mint(recipe, key, key_kid, int(time.time())))
    except RecipeError as error:
        bad_input(str(error))


@token.command("proof")
@click.argument("method")
@click.argument("url")
@click.option("--key", "key_file", type=FILE, required=True, help="The private key of `jkt`, PEM or JWK.")
@click.option("--nonce", help="The nonce that the gate gave.")
def proof_command(*, method: str, url: str, key_file: Path, nonce: str | None) -> None:
    """Print a DPoP proof for METHOD URL with the token on standard input (RFC 9449): it counts once."""
    credential = sys.stdin.buffer.read(_MAX_INPUT).decode("utf-8", "replace").strip()
    try:
        key, _ = load_private_key(key_file)
        click.echo(prove(key, method, url, credential, nonce=nonce, now=int(time.time())))
    except RecipeError as error:
        bad_input(str(error))


def _read_change(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise RecipeError(f"--claim {text!r}: write NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
