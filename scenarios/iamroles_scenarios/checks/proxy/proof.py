"""Who answers HAProxy, and who may ask the agent: mutual TLS, as the world's `agent.tls` says (SPEC.md 11.6).

The suite's own authority issues both certificates. An impostor takes the agent's address while the agent is
dead, and a stranger asks the agent in HAProxy's place.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache

from cryptography import x509

from iamroles_scenarios.base.errors import StageError
from iamroles_scenarios.base.polling import polls
from iamroles_scenarios.checks.fault.fixture import FAULTY, FaultBench, fault_bench
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.certificates import Authority, context
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.stage.impostor import Impostor
from iamroles_scenarios.stage.rendering import AGENT_CA, AGENT_NAME, PROXY_CERTIFICATE
from iamroles_scenarios.stage.spec import AUTHORITIES
from iamroles_scenarios.wire.frames import FrameType, hello

_PROXY_NAME, _SECOND = "proxy.iamroles.test", "second.iamroles.test"
_OTHERS = ["www.iamroles.test", f"x{_PROXY_NAME}", f"{_PROXY_NAME}.example", "proxy"]
"""Names that are not the proxy's."""
_KINDS = {"mail address": x509.RFC822Name, "URI": x509.UniformResourceIdentifier}
"""Names in a certificate that are not DNS names."""
_INVALID = (-3, -2), (2, 3)
"""Days from now in which a certificate that is shown today is good."""
_TRIED = 10.0
"""Seconds, times the scale, within which a health check reaches an impostor."""
_ANSWER, _SILENT = 5.0, 1.0
"""Seconds, times the scale, for the agent's answer to a HELLO, and of `handshake_timeout`."""


@cache
def _of_issuers() -> Authority:
    """Return an authority that an agent may believe of issuers (6.5), and of no peer."""
    return Authority()


@contextmanager
def _proven(
    target: Target, *names: str, listen: Sequence[str] = ()
) -> Iterator[tuple[FaultBench, Impostor, Authority]]:
    """Yield a world whose agent and proxy prove to each other who they are, maybe at more addresses."""
    authority, impostors = Authority(), list[Impostor]()
    files = {
        AUTHORITIES: _of_issuers().public,
        "agent.pem": authority.issue(AGENT_NAME),
        AGENT_CA: authority.public,
        PROXY_CERTIFICATE: authority.issue(_PROXY_NAME),
    }
    with ExitStack() as stack:

        def between(host: str, agent: str) -> str:
            impostors.append(stack.enter_context(Impostor(host, agent, backend="orders-rw")))
            return impostors[0].address

        tls = {"certificate": "agent.pem", "ca": AGENT_CA, "names": list(names)}
        limits = {} if target.lacks(["limits"]) else {"handshake_timeout": f"{target.seconds(_SILENT):g}s"}
        table = {"tls": tls, **limits, **({"listen": [*listen]} if listen else {})}
        bench = fault_bench(target, override={"agent": table}, between=between, files=files)
        here = stack.enter_context(bench)
        yield here, impostors[0], authority


@check("proxy.proof.impostor", "PROXY-PROOF-001", features={"proof"}, long=True)
def impostor(target: Target) -> str:
    """A process that takes the dead agent's address is not believed, and is shown no token.

    It lets everybody in: over plain SPOP, and over TLS with a certificate of another authority, or of the
    right authority for another name.
    """
    with _proven(target, _PROXY_NAME) as (here, stranger, authority):
        here.world.agent.kill()
        kinds = {
            "plain SPOP": None,
            "another authority's certificate": Authority().issue(AGENT_NAME),
            "another name's certificate": authority.issue("www.iamroles.test"),
        }
        for kind, pem in kinds.items():
            stranger.takes_over(None if pem is None else context(ssl.PROTOCOL_TLS_SERVER, pem))
            if not stranger.wait_tried(here.seconds(_TRIED)):
                raise here.failed(f"an impostor with {kind}: no health check came to it")
            for question in here.people:
                seen = here.send(question)
                if seen is not None and (seen.allow or seen.status not in FAULTY):
                    raise here.failed(f"an impostor with {kind} was believed", seen)
            if stranger.asked:
                raise here.failed(f"an impostor with {kind} was asked: it saw tokens")
        stranger.leaves()
        here.world.agent.start()
        here.must_recover("impostor")
        return here.remark


@check("proxy.proof.asker", "PROXY-PROOF-002", features={"proof"})
def asker(target: Target) -> None:
    """The agent answers the proxy alone: a peer without the proxy's certificate gets no AGENT-HELLO.

    By two names, whatever their case and whatever stands before them, by the certificates of another
    authority that took their place, and without names. Those who may issue an issuer's certificate count for
    nothing here. So it does at an IPv6 address too; an agent may not know any. With the feature `limits` the
    agent closes a connection that never begins its TLS.
    """
    with _proven(target, _PROXY_NAME, _SECOND.title()) as (here, _, authority):
        _must_greet(here, authority.issue(_SECOND.upper(), before=_OTHERS), {})
        bad = {f"for {name}": authority.issue(name) for name in _OTHERS}
        bad |= {f"of days {days}": authority.issue(_PROXY_NAME, days=days) for days in _INVALID}
        bad |= {
            f"with the name as a {kind}": authority.issue(_PROXY_NAME, kind=of) for kind, of in _KINDS.items()
        }
        bad["with the name as its common name"] = authority.issue(_PROXY_NAME, named=False)
        _must_greet(here, authority.issue(_PROXY_NAME), bad)
        newer = Authority()
        here.world.agent.put(AGENT_CA, newer.public)
        _must_greet(here, newer.issue(_PROXY_NAME), {"of before": authority.issue(_PROXY_NAME)})
        here.world.agent.put("agent.pem", newer.issue(AGENT_NAME))
        _must_greet(here, newer.issue(_PROXY_NAME), {"of before": authority.issue(_PROXY_NAME)})
    for more in (_another(target), []):
        try:
            with _proven(target, listen=more) as (here, _, authority):  # any name
                for address in (here.world.agent.spop_address, *more):
                    _must_greet(here, authority.issue(_OTHERS[0]), {}, address)
                if not target.lacks(["limits"]) and not _left(here):
                    raise here.failed(f"a peer that says nothing stays beyond {_SILENT:g} s")
                return
        except StageError as error:
            if not more or " ended " not in error.message:
                raise


def _another(target: Target) -> list[str]:
    """Return an IPv6 address at which nobody listens, if the stage and this host have any."""
    with suppress(OSError), socket.socket(socket.AF_INET6) as free:
        free.bind(("::1", 0))
        return [f"[::1]:{free.getsockname()[1]}"] if target.stage.kind == "processes" else []
    return []


def _must_greet(here: FaultBench, good: str, bad: dict[str, str], address: str = "") -> None:
    """Expect an AGENT-HELLO for the one certificate soon, and none for another, or without one."""
    address = address or here.world.agent.spop_address
    if not any(_greeted(here, good, address) for _last in polls(here.seconds(_ANSWER))):
        raise here.failed(f"a peer with a good certificate: no AGENT-HELLO at {address}")
    bad = bad | {"of another authority": _of_issuers().issue(_PROXY_NAME), "that is missing": ""}
    for kind, pem in {**bad, "that is missing, without TLS": None}.items():
        if _greeted(here, pem, address):
            raise here.failed(f"a peer with a certificate {kind} got an AGENT-HELLO at {address}")


def _left(here: FaultBench) -> bool:
    """Say nothing to the agent, and return whether it closes the connection."""
    host, _, port = here.world.agent.spop_address.rpartition(":")
    with socket.create_connection((host, int(port)), here.seconds(_ANSWER)) as line:
        with suppress(ConnectionError):
            while True:
                try:
                    if not line.recv(4096):  # before the end an alert may come (RFC 8446 section 6.1)
                        break
                except TimeoutError:
                    return False
        return True


def _greeted(here: FaultBench, pem: str | None, address: str) -> bool:
    """Say HELLO to the agent, without TLS for None; return whether it answers with one."""
    host, _, port = address.rpartition(":")
    with suppress(OSError), ExitStack() as stack:
        line = socket.create_connection((host.strip("[]"), int(port)), here.seconds(_ANSWER))
        stack.enter_context(line)
        if pem is not None:
            line = stack.enter_context(context(ssl.PROTOCOL_TLS_CLIENT, pem).wrap_socket(line))
        line.sendall(hello().encode())
        said = stack.enter_context(line.makefile("rb")).read(5)  # in however many records of TLS it comes
        return said[4:] == bytes((FrameType.AGENT_HELLO,))
    return False
