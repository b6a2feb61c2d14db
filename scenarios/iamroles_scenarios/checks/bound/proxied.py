"""Bound tokens through HAProxy: certificates of connections, proofs that count once, and challenges."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from iamroles_scenarios.base.errors import HttpFault, Untestable
from iamroles_scenarios.base.polling import polls, rest
from iamroles_scenarios.base.recording import carried
from iamroles_scenarios.base.sent import note
from iamroles_scenarios.checks.bound.rows import BASES, DPOP, POLICY, Asking, certificate, key, thumbprints
from iamroles_scenarios.checks.derived.world import HOST, PATH
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.scenario import WorldSpec
from iamroles_scenarios.declarations.tables import filled, table
from iamroles_scenarios.engine.bench import Bench, SpopQuestion
from iamroles_scenarios.engine.certificates import Authority, Certificate
from iamroles_scenarios.engine.http import Answer, HttpConnection, exchange_h2, request_bytes
from iamroles_scenarios.engine.players import challenges
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.jose.encoding import b64url
from iamroles_scenarios.jose.proof import combined
from iamroles_scenarios.stage.relay import Relay
from iamroles_scenarios.traffic.tls import ClientTls

_WITHIN, _BACK, _SOON = 10.0, 15.0, 2.0
"""Seconds, times the scale: for an answer, for HAProxy to take an agent back, for a record of early data."""
_AGE, _AHEAD = 2.0, 8.0
"""Seconds, times the scale: of a proof that soon ends, and by which it may come from ahead."""
_AT_ONCE, _ROUNDS, _FEW = 64, 3, 20
"""Requests with one proof at a time, how often, and proofs that a small table holds."""
_ASKS = "verify optional ca-file clients.pem crt-ignore-err all ca-ignore-err all"
_TLS = {"IAM_BIND_TLS": f"ssl crt site.pem {_ASKS} alpn h2,http/1.1 allow-0rtt"}
PROXIED: Mapping[str, Mapping[str, Any]] = table("proofs")["proxied"]
_NONCE = b64url(
    b"HTTP/1.1 200 OK\r\nDPoP-Nonce: server\r\nCache-Control: public\r\nContent-Length: 0\r\n"
    b"Connection: close\r\n\r\n"
)
"""The answer of a server that has nonces of its own, and lets caches store them."""
_REPLAYED = {"DPoP": "invalid_dpop_proof"}


def _tls(name: str, **how: Any) -> ClientTls:  # noqa: ANN401 - of `ClientTls`
    """Speak TLS with a certificate of `rows`, perhaps below another's; with "" without."""
    if not name:
        return ClientTls(**how)
    name, _, above = name.partition(" below ")
    owner = key("client" if name == "same key" else name).private
    private = owner.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    chain = [ssl.DER_cert_to_PEM_cert(certificate(one)) for one in (name, above) if one]
    return ClientTls("".join(chain) + private, **how)


class Gate(Asking):
    """Asks a world through its HAProxy, and judges what a client sees."""

    def __init__(self, here: Bench) -> None:
        super().__init__(here)
        self.wrong: list[str] = []
        self.count = 0

    def sound(self, base: str = "dpop", **row: Any) -> SpopQuestion:  # noqa: ANN401 - of a row
        """Make a sound question of a base, or as a row changes it."""
        return self.question(base, combined(BASES[base], row))

    def line(self, tls: ClientTls | None = None) -> HttpConnection:
        proxy = self.here.world.proxy if tls is None else self.here.world.tls_proxy
        return HttpConnection((proxy.host, proxy.port), self.here.seconds(_WITHIN), tls)

    def ask(self, asked: SpopQuestion, line: HttpConnection | None = None, *more: Sequence[str]) -> Answer:
        """Send a question as a client does, on this line or on a connection of its own."""
        method, path, headers = _request(asked, *more)
        with ExitStack() as own:
            line = line or own.enter_context(closing(self.line()))
            return line.exchange(method, request_bytes(method, path, headers))

    def hold(self, what: str, answer: Answer, *statuses: int, **errors: str) -> Answer:
        """Note a fault unless the answer has such a status, and a challenge of each scheme with its error."""
        self.count += 1
        faults = [] if answer.status in statuses else [f"status {answer.status}, not {statuses}"]
        shown = challenges(answer)
        known = self.here.loan.policy.get("dpop", {}).get("algorithms", ["ES256"])
        for scheme, error in errors.items():
            said = shown.get(scheme, {"error": "(no challenge)"})
            named = sorted(said.get("algs", "").split(" "))
            if said.get("error", "") != error or (scheme == "DPoP" and named != sorted(known)):
                faults.append(f"the challenge {scheme} {said}, not error {error!r}")
        if faults:
            self.wrong.append(f"{what}: {', '.join(faults)}")
        return answer

    def end(self) -> str:
        if self.wrong:
            raise self.here.failed("; ".join(self.wrong[:8]), received=f"{len(self.wrong)} wrong answers")
        return f"{self.count} requests"


def _request(asked: SpopQuestion, *more: Sequence[str]) -> tuple[str, str, list[tuple[str, str]]]:
    said, named = asked.check, {"Host": "host", "Authorization": "authorization", "DPoP": "proof"}
    fields = [*((name, said[key]) for name, key in named.items()), *more]
    present = [(name, str(value)) for name, value in fields if value is not None]
    return str(said["method"]), str(said["path"]), present


@contextmanager
def gate(
    target: Target,
    owner: str = "",
    *,
    dpop: Mapping[str, Any] | None = None,
    **how: Any,  # noqa: ANN401 - tables too
) -> Iterator[Gate]:
    """Yield a gate on a world that checks share, or with an owner on its own.

    `how` may hold `settings` of HAProxy before two agents, if the agent can be one of two; `tls`, on the
    second address; `relayed`, with a relay before the agent; and other tables of the policy.
    """
    settings, tls, relayed = (how.pop(name, None) for name in ("settings", "tls", "relayed"))
    tables = how if dpop is None else {**how, "dpop": {**DPOP, **dpop}}
    more: dict[str, Any] = {"own": bool(owner), "settings": settings or {}}
    if settings is not None:
        more |= {"changes": True, "agents": 1 if target.lacks(["pair"]) else 2}
    spec, relays = WorldSpec(policy=POLICY, override=tables, **more), list[Relay]()
    with ExitStack() as stack:

        def between(host: str, agent: str) -> str:
            relays.append(stack.enter_context(closing(Relay(host, agent))))
            return relays[0].address

        if tls or relayed:
            files = {"site.pem": Certificate().pem, "clients.pem": Authority().public}
            start = {"settings": _TLS, "files": files, "between": between if relayed else None}
            loan = stack.enter_context(closing(target.worlds.start_own(spec, owner, **start)))
        else:
            loan = stack.enter_context(target.worlds.borrow(spec, owner))
        here = stack.enter_context(closing(Bench(target, loan)))
        here.relay = relays[0] if relays else None
        found = Gate(here)
        with here.asking():
            here.wait_for_keys([found.sound("plain")])
        yield found


for _name, _group in PROXIED.items():

    @check(
        f"bound.proxy.{_name}",
        *_group["requirements"],
        lane="gate",
        features=set(_group.get("features", ["dpop"])),
        title=_group["title"],
    )
    def _by_rows(target: Target, name: str = _name, group: Mapping[str, Any] = _group) -> str:
        """The requests are in data/derived/proofs.toml."""
        over = {one: group[one] for one in ("client_certificate",) if one in group}
        dpop = group.get("dpop", {}) if "dpop" in group.get("features", ["dpop"]) else None
        tls = any("tls" in row for row in group["rows"])
        with gate(target, f"bound.proxy.{name}" if tls else "", tls=tls, dpop=dpop, **over) as gated:
            for row in group["rows"]:
                _play(gated, row, row.get("base", group.get("base", "dpop")))
            return gated.end()


def _play(gated: Gate, row: Mapping[str, Any], base: str) -> None:
    """Send the request of a row, perhaps twice; look at the answers, and at what the server got."""
    changes = {name: row[name] for name in ("ask", "proof", "token", "signer") if name in row}
    asked = gated.sound(base, **changes)
    markers = {"proof": asked.check["proof"], **thumbprints()}
    for name in ("client", "stranger", "same key"):
        shown = base64.b64encode(certificate(name)).decode()
        markers[f"header of {name}"] = f":{note('certificate', shown, shown)}:"
    more, statuses = filled(row.get("more", []), markers), [row["status"], *row.get("again", [])]
    with closing(gated.line(_tls(row["tls"]) if "tls" in row else None)) as line:
        for number, status in enumerate(statuses, 1):
            errors = row.get("errors", {}) if number == len(statuses) else {}
            answer = gated.hold(
                f"{row['what']}, request {number}", gated.ask(asked, line, *more), status, **errors
            )
            got = json.loads(answer.body)["headers"] if answer.status == 200 else []
            for name, values in filled(row.get("server", {}), markers).items():
                if got and [value for field, value in got if field.lower() == name] != values:
                    gated.wrong.append(f"{row['what']}: the server got another {name}")


@check("bound.proxy.nonce", "DPOP-CHALLENGE-001", "DPOP-NONCE-001", lane="gate", features={"dpop"})
def nonce(target: Target) -> str:
    """A nonce comes in one field that browsers may read and nobody may store, and opens the next request.

    In the window after its own, a fresh one comes in the place of a nonce of the server.
    """
    window = round(target.seconds(_AGE)) + 1
    with gate(target, dpop={"nonce": True, "nonce_lifetime": f"{window}s"}) as gated:
        allowed = time.time()
        first = gated.hold("no nonce", gated.ask(gated.sound()), 401, Bearer="", DPoP="use_dpop_nonce")
        found, stored = first.all("dpop-nonce"), ",".join(first.all("cache-control"))
        exposed = ",".join(first.all("access-control-expose-headers")).lower()
        shown = exposed.count("dpop-nonce") == exposed.count("www-authenticate") == 1
        if len(found) != 1 or "no-store" not in stored or not shown:
            gated.wrong.append(f"{len(found)} nonces, Cache-Control {stored!r}, browsers see {exposed!r}")
        asked = gated.sound(proof={"claims": {"nonce": (found or [""])[0]}})
        gated.hold("the nonce", gated.ask(asked), 200)
        gated.hold("the nonce, again", gated.ask(asked), 401, **_REPLAYED)
        gated.here.in_time(allowed + window, "two uses of a nonce")
        own: dict[str, Any] = {
            "proof": {"claims": {"nonce": (found or [""])[0]}},
            "ask": {"path": f"{PATH}?raw={_NONCE}"},
        }
        for _last in polls(2 * window, window / 10):
            began, answer = time.time(), gated.ask(gated.sound(**own))
            if answer.status != 200 or {*answer.all("dpop-nonce")} - {"server"}:
                break
            allowed = began
        if answer.status != 200:
            gated.here.in_time(allowed + window, "a question in a nonce's second window")
        given, stored = answer.all("dpop-nonce"), ",".join(answer.all("cache-control"))
        exposed = ",".join(answer.all("access-control-expose-headers")).lower()
        if answer.status != 200 or len(given) != 1 or "server" in given:
            gated.wrong.append(f"no fresh nonce in a nonce's second window: status {answer.status}, {given}")
        elif "no-store" not in stored or "dpop-nonce" not in exposed:
            gated.wrong.append(f"a fresh nonce: Cache-Control {stored!r}, browsers see {exposed!r}")
        return gated.end()


# --- a proof counts once ----------------------------------------------------------------------------------


def _at_once(gated: Gate, asked: SpopQuestion) -> list[int]:
    """Send a question on many connections at once, and return the statuses."""
    barrier = threading.Barrier(_AT_ONCE)

    def one() -> int:
        with closing(gated.line()) as line:
            barrier.wait(gated.here.seconds(_WITHIN))
            return gated.ask(asked, line).status

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return [each.result() for each in [pool.submit(carried(one)) for _ in range(_AT_ONCE)]]


@check("bound.replay.once", "DPOP-REPLAY-001", lane="gate", features={"dpop"}, long=True)
def once(target: Target) -> str:
    """A proof passes once: of many at a time, with two agents, after reloads of the proxy, after deaths."""
    with gate(target, "bound.replay.once", settings={"IAM_THREADS": "2"}, dpop={}) as gated:
        here, used = gated.here, [gated.sound() for _ in range(_ROUNDS)]
        for asked in used:
            seen = _at_once(gated, asked)
            if seen.count(200) != 1 or set(seen) - {200, 401}:
                gated.wrong.append(f"{seen.count(200)} of {_AT_ONCE} passed, statuses {sorted(set(seen))}")
        for when in ("later", "after a reload", "after another reload", "after the death of the agents"):
            if "reload" in when:
                here.world.haproxy.reload()
            if "death" in when:
                for world in here.loan.worlds:
                    world.agent.kill()
                    world.agent.start()
                here.loan.wait_agents(here.seconds(_BACK))
            for asked in used:
                gated.hold(f"a used proof {when}", gated.ask(asked), 401, **_REPLAYED)
            used.append(gated.sound())
            gated.hold(f"a fresh proof {when}", gated.ask(used[-1]), 200)
        _meets_a_reload(gated)
        return gated.end()


def _meets_a_reload(gated: Gate) -> None:
    """A proof that reaches the old worker after a reload passes there or in the new worker, or in neither."""
    asked, plain, first = gated.sound(), gated.sound("plain"), 0
    method, path, headers = _request(asked)
    raw = request_bytes(method, path, headers)
    with closing(gated.line()) as line:
        gated.hold("a request before a reload", gated.ask(plain, line), 200)
        line.begin(raw[:40])
        gated.hold("a request beside it", gated.ask(plain), 200)
        gated.here.world.haproxy.reload()
        with suppress(HttpFault):  # it may end such a connection
            first = line.exchange(method, raw[40:]).status
    if first == 200:
        gated.hold("a proof that the old worker took", gated.ask(asked), 401)


@check("bound.replay.full", "DPOP-REPLAY-002", lane="gate", features={"dpop"})
def full(target: Target) -> str:
    """A gate that can remember no more proofs refuses with 503: no proof passes twice, however many come."""
    with gate(target, "bound.replay.full", settings={"IAM_PROOFS": str(_FEW)}, dpop={}) as gated:
        for _ in range(3 * _FEW):
            gated.hold("a wrong proof", gated.ask(gated.sound(proof={"claims": {"htm": "PUT"}})), 401)
        asked = [gated.sound() for _ in range(3 * _FEW)]
        first = [gated.hold("a proof", gated.ask(each), 200, 503).status for each in asked]
        if 200 not in first:
            gated.wrong.append("no proof passed: wrong ones fill the table")
        again = [gated.ask(each).status for each in asked]
        if twice := list(zip(first, again, strict=True)).count((200, 200)):
            gated.wrong.append(f"{twice} of {len(asked)} proofs passed twice")
        return gated.end()


@check("bound.replay.window", "DPOP-REPLAY-001", lane="gate", features={"dpop"})
def window(target: Target) -> str:
    """A proof from ahead of the agent's clock is remembered until it is too old, not for its age alone."""
    age, ahead = target.seconds(_AGE), min(60.0, target.seconds(_AHEAD))
    with gate(target, dpop={"max_age": f"{age * 1000:.0f}ms", "leeway": f"{ahead * 1000:.0f}ms"}) as gated:
        iat = gated.here.now() + int(ahead)
        asked = gated.sound(proof={"iat": iat})
        gated.hold("a proof from ahead", gated.ask(asked), 200)
        rest(age * 1.5)
        gated.hold("the same, later than its age", gated.ask(asked), 401, **_REPLAYED)
        gated.here.in_time(iat + age, "the second use of a proof")
        return gated.end()


@check("bound.replay.asked-twice", "DPOP-REPLAY-002", lane="gate", features={"dpop", "spop"})
def asked_twice(target: Target) -> str:
    """If the agent's answer is lost and the proxy asks again, this does not count as a replay.

    The proxy may give the request up with 503 in place of asking again.
    """
    with gate(target, "bound.replay.asked-twice", relayed=True, dpop={}) as gated:
        relay = gated.here.frames
        gated.hold("a proof before", gated.ask(gated.sound()), 200)
        relay.hold()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(carried(gated.ask), gated.sound())
            if not relay.wait_held(1, gated.here.seconds(_WITHIN)):
                raise gated.here.failed("the agent gave no answer to a question")
            for link in relay.asking():
                link.close()
            relay.release()
            gated.hold("a question whose answer was lost", waiting.result(), 200, 503)
        gated.hold("a proof after it", gated.ask(gated.sound()), 200)
        return gated.end()


# --- TLS --------------------------------------------------------------------------------------------------


@check("bound.tls.connection", "BOUND-TLS-001", "BOUND-CERT-001", lane="gate", features={"certificate"})
def connection(target: Target) -> str:
    """The certificate is that of the client's own connection: new, kept, resumed, or over HTTP/2.

    The right one, another, another of the same key, another below the right one, none; TLS 1.2 and 1.3;
    and the plain address.
    """
    with gate(target, "bound.tls.connection", tls=True) as gated:
        asked, plain, proxy = gated.sound("certificate"), gated.sound("plain"), gated.here.world.tls_proxy
        method, path, headers = _request(asked)
        pseudo = [(":method", method), (":scheme", "https"), (":authority", HOST), (":path", path)]
        fields = [*pseudo, *((name.lower(), value) for name, value in headers if name != "Host")]
        address, within = (proxy.host, proxy.port), gated.here.seconds(_WITHIN)
        statuses = {"client": 200, "stranger": 401, "same key": 401, "stranger below client": 401, "": 401}
        for name, status in statuses.items():
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                tls = _tls(name, version=version, resumes=True)
                for turn in ("new", "resumed"):
                    with closing(gated.line(tls)) as line:
                        what = f"{version.name}, {turn}, certificate {name!r}"
                        gated.hold(what, gated.ask(asked, line), status)
                        gated.hold(f"{what}, a plain token", gated.ask(plain, line), 200)
                        gated.hold(f"{what}, kept alive", gated.ask(asked, line), status)
            answer = exchange_h2(address, within, fields, b"", _tls(name, alpn=("h2",)))
            gated.hold(f"HTTP/2, certificate {name!r}", answer, status)
        gated.hold("the plain address", gated.ask(asked), 401, Bearer="invalid_token")
        return gated.end()


@check("bound.tls.early", "DPOP-EARLY-001", lane="gate", features={"certificate"})
def early(target: Target) -> str:
    """A request in the first flight of a TLS session reaches nobody before the handshake is complete.

    It may be a replay of that flight. Python's TLS sends no early data, so OpenSSL's command does.
    """
    if (program := shutil.which("openssl")) is None:
        raise Untestable("`openssl` is not on PATH, and Python's TLS sends no early data")
    with gate(target, "bound.tls.early", tls=True) as gated, TemporaryDirectory() as folder:
        proxy, sent, session = gated.here.world.tls_proxy, Path(folder, "sent"), str(Path(folder, "session"))
        words = [program, "s_client", "-tls1_3", "-ign_eof", "-connect"]
        raw = request_bytes(*_request(gated.sound("plain"), ("Connection", "close")))
        first = [*words, f"{proxy.host}:{proxy.port}", "-sess_out", session]
        done = subprocess.run(first, input=raw, capture_output=True, timeout=60, check=False)  # noqa: S603
        if b" 200 OK" not in done.stdout:
            raise gated.here.failed("a request over TLS was not allowed", received=str(done.stdout))
        sent.write_bytes(raw.replace(b" /kiosk ", b" /kiosk/early "))
        with socket.create_server(("127.0.0.1", 0)) as front, ExitStack() as stack:
            at = f"127.0.0.1:{front.getsockname()[1]}"
            flight = [*words, at, "-sess_in", session, "-early_data", str(sent)]
            silent = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
            client = subprocess.Popen(flight, stdin=subprocess.PIPE, **silent)  # type: ignore[call-overload] # noqa: S603
            stack.callback(client.communicate)
            stack.callback(client.kill)
            line = stack.enter_context(closing(front.accept()[0]))
            onward = stack.enter_context(closing(socket.create_connection((proxy.host, proxy.port))))
            line.settimeout(gated.here.seconds(_SOON))
            with suppress(TimeoutError):  # nothing comes back, so the client says no more
                while data := line.recv(65536):
                    onward.sendall(data)
            seen = gated.here.world.haproxy.wait_log(
                lambda line: "/early" in str(line), within=gated.here.seconds(0.1)
            )
        if seen is not None and seen.get("status") != 425:
            gated.wrong.append(f"a request in the first flight got the status {seen.get('status')}")
        return gated.end()
