"""Find settings of bound tokens (`[[issuers]] bound`, `[dpop]`, `[client_certificate]`) that do little."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network
from urllib.parse import urlsplit

from iamroles_agent.base.config import Config, Dpop
from iamroles_tools.policy.findings import Finding, Kind

_WIDE_FOUR, _WIDE_SIX = 8, 32
"""Networks at least this wide (in bits of prefix) have no single owner."""


def bound(config: Config) -> Iterator[Finding]:
    """Yield tables that nothing reads, issuers whose tokens cannot pass, and proofs that fit nowhere."""
    if not config.binds:
        for key in ("dpop", "client_certificate"):
            if getattr(config, key) is not None:
                remedy = 'Write `bound = "accepted"` or `"required"` in an issuer, or delete the table'
                yield _finding(key, "is read by no issuer: all refuse bound tokens", remedy)
        return
    for index, issuer in enumerate(config.issuers):
        if issuer.bound != "refused" and config.dpop is None:
            message = "tokens of this issuer with `jkt` are refused, because there is no [dpop]"
            remedy = "Fine if it binds to certificates alone; else add [dpop]"
            yield Finding(Kind.BOUND, f"issuers[{index}]", issuer.name, message, remedy, note=True)
    for text in [] if config.client_certificate is None else config.client_certificate.from_:
        network = ip_network(text)
        if network.prefixlen < (_WIDE_FOUR if network.version == 4 else _WIDE_SIX):
            message = f"{text} is wider than a load balancer's network: who is there names any certificate"
            yield _finding("client_certificate.from", message, "Name the load balancers' own networks")
    if config.dpop is not None:
        yield from _dpop(config, config.dpop)


def _dpop(config: Config, dpop: Dpop) -> Iterator[Finding]:
    if dpop.nonce and dpop.nonce_key is None:
        message = (
            "each agent has a key of its own: behind several agents clients are sent round again and again"
        )
        remedy = "Fine for one agent; else name a file of 32 random octets that all agents have"
        yield _finding("dpop.nonce_key", message, remedy, note=True)
    if dpop.nonce_key is not None and not dpop.nonce:
        yield _finding("dpop.nonce_key", "is not read without `nonce = true`", "Delete it, or want nonces")
    if dpop.replay == "none":
        message = "the gate counts no proof: each passes as often as it is sent, for `max_age`"
        yield _finding("dpop.replay", message, "Fine if the servers behind count proofs", note=True)
    audiences = [name for one in config.issuers if one.bound != "refused" for name in one.audiences]
    named = {f"{url.scheme}://{url.netloc}".lower() for url in map(urlsplit, audiences) if url.scheme}
    for origin in dpop.origins:
        if named and origin not in named:
            message = f"no audience of a bound issuer is at {origin}: its tokens are for other places"
            remedy = "Correct the origin, or have the issuer name it in `aud` (RFC 8707)"
            yield _finding("dpop.origins", message, remedy, note=True)


def _finding(key: str, message: str, remedy: str, *, note: bool = False) -> Finding:
    return Finding(Kind.BOUND, key, key, message, remedy, note=note)
