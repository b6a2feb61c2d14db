"""What a stranger's request costs agent and HAProxy together: `python -m benchmarks.strangers`.

One HAProxy, one agent and one STS, on loopback. For each kind of request a search of `--seconds` looks for
the text that costs most CPU. The worst then takes turns with a request without a token, and the table has the
ratio. No bound on one request helps if STS must be asked, so the second table says how long callers whose
first credential is sound wait beside `--flood` connections that send forged ones all the time.
"""

import argparse
import asyncio
import itertools
import random
import re
import statistics
import sys
import time

from hostile_requests import UNITS
from sts_support import HOST, as_json, credential, error_xml, presign
from tokens_support import OTHER_EC_KEY, encode_base64url, mint

from benchmarks.agent import cpu_of
from benchmarks.live import percentiles, standing
from iamroles_loadtests.measuring.conductor import in_turn
from iamroles_scenarios.engine.bench import EDGE, own_bench

NUMBER = itertools.count(1)
EACH, ROUNDS, TARGET = 160, 7, 10.0
ARN = "arn:aws:sts::111111111111:assumed-role/reader/me"
FORGED = "STS, forged"


class FakeSts(asyncio.Protocol):
    """Names the reader to a key that begins with SOUND, and refuses every other key."""

    asked = 0

    def connection_made(self, transport):
        self.write = transport.write

    def data_received(self, data):
        FakeSts.asked += 1
        said, kind, body = b"403 Forbidden", b"text/xml", error_xml("InvalidClientTokenId")
        if b"Credential=SOUND" in data:
            said, kind, body = b"200 OK", b"application/json", as_json(ARN, account="111111111111")
        head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n" % (said, kind, len(body))
        self.write(head + body)


def presigned(key):
    """Make a credential of which only STS can say whether it is sound."""
    url = re.sub(r"Signature=\w+", f"Signature={next(NUMBER):064x}", presign(int(time.time()), EDGE))
    return credential(re.sub(r"Credential=\w+", f"Credential={key}{next(NUMBER):012d}", url))


def kinds(here):
    """Return what makes `Authorization` and path of each kind of request from a text."""
    es256, rs256, late = (here.token(key=key, exp=end) for key, end in
                          (("ES256", "+900s"), ("RS256", "+900s"), ("ES256", "-5s")))  # fmt: skip
    issuer, header = here.issuer().url, encode_base64url(b'{"alg":"ES256"}')

    def forged(text, **claims):
        payload = {"iss": issuer, "aud": "edge", "x": text[:4000]} | claims
        return "Bearer " + mint(payload, OTHER_EC_KEY, kid=f"k{next(NUMBER)}")

    def resealed(token):
        body, _, seal = token.rpartition(".")
        return f"Bearer {body}.{encode_base64url(random.randbytes(len(seal) * 3 // 4))}"

    def data(text):
        return encode_base64url(text.encode("latin-1", "replace"))

    return {
        "none": lambda _text: (None, "/orders/1"),
        "path": lambda text: (None, f"/{text}"),
        "path, forged token": lambda text: (resealed(es256), f"/{text[:8000]}"),
        "other scheme": lambda text: (f"Basic {text}", "/orders/1"),
        "text": lambda text: (f"Bearer {text}", "/orders/1"),
        "header": lambda text: (f"Bearer {data(text)}.e30.AA", "/orders/1"),
        "payload": lambda text: (f"Bearer {header}.{data(text)}.AA", "/orders/1"),
        "issuer": lambda text: (forged(text, iss="https://evil.example"), "/orders/1"),
        "kid": lambda text: (forged(text), "/orders/1"),
        "signature ES256": lambda _text: (resealed(es256), "/orders/1"),
        "signature RS256": lambda _text: (resealed(rs256), "/orders/1"),
        "expired": lambda _text: (f"Bearer {late}", "/orders/1"),
        "STS, other host": lambda text: (credential(f"https://x/?{text[:2900]}"), "/orders/1"),
        "STS, query": lambda text: (credential(f"https://{HOST}/?{text[:2900]}"), "/orders/1"),
        FORGED: lambda _text: (presigned("ASIA"), "/orders/1"),
    }


def request(authorization, path):
    """Make a request that nobody sent before."""
    said = "" if authorization is None else f"\r\nAuthorization: {re.sub('[^ -~]', '~', authorization)}"
    path = re.sub("[^!-~]", "~", path)
    return f"GET {path} HTTP/1.1\r\nHost: h{next(NUMBER)}{said}\r\n\r\n".encode()


class Caller:
    """A connection to HAProxy from an address."""

    def __init__(self, here, source="127.0.0.1"):
        self.proxy, self.source, self.writer = here.world.proxy, (source, 0), None

    async def ask(self, message):
        """Return the status of the answer."""
        if self.writer is None:
            to = self.proxy.host, self.proxy.port
            self.reader, self.writer = await asyncio.open_connection(*to, local_addr=self.source)
        self.writer.write(message)
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = re.search(rb"content-length: (\d+)", head)
        await self.reader.readexactly(int(length[1]) if length else 0)
        if b"connection: close" in head:
            self.writer = self.writer.close()
        return int(head.split()[1])


async def cost(here, make, text, count):
    """Return CPU microseconds of agent and HAProxy for a request."""
    messages = [request(*make(text)) for _ in range(count)]

    async def some(part):
        caller = Caller(here)
        for message in part:
            assert await caller.ask(message) >= 400, "a stranger was let in"
        if caller.writer:
            caller.writer.close()

    pids = here.world.agent.pid, here.world.haproxy._runs[-1].part.pid
    before = sum(map(cpu_of, pids))
    await asyncio.gather(*(some(messages[at::8]) for at in range(8)))
    return (sum(map(cpu_of, pids)) - before) / count * 1e6


async def worst(here, make, seconds, chance):
    """Search for the text that costs most."""
    kept, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        unit = "".join(chance.choices(UNITS, k=chance.choice((1, 1, 2))))
        text = (unit * 14_000)[: chance.choice((40, 1000, 5500, 7900, 11_000))]
        kept.append((await cost(here, make, text, 24), text))
    return max(kept)[1]


async def flooded(here, count, source):
    """Return milliseconds that sound callers wait at their first credential, and the CPU of a forged one."""
    ended, sent = False, 0

    async def flood():
        nonlocal sent
        caller = Caller(here, "127.0.0.2")
        while not ended:
            await caller.ask(request(presigned("ASIA"), "/orders/1"))
            sent += 1

    floods, waits = [asyncio.create_task(flood()) for _ in range(count)], []
    await asyncio.sleep(1.0 if count else 0.0)
    sound, before, began = Caller(here, source), cpu_of(here.world.agent.pid), sent
    for _ in range(40):
        message, start = request(presigned("SOUND"), "/orders/1"), time.perf_counter()
        status = await sound.ask(message)
        waits.append(time.perf_counter() - start if status == 200 else float("inf"))
    took = (cpu_of(here.world.agent.pid) - before) / max(sent - began, 1)
    ended = True
    await asyncio.gather(*floods)
    return waits, took * 1e6


async def run(here, options):
    chance, made, missed = random.Random(options.seed), kinds(here), 0
    await cost(here, made["none"], "", EACH)
    for name, make in made.items():
        text = await worst(here, make, options.seconds, chance)
        took = {"none": [], name: []}
        for _, one in in_turn(list(took), ROUNDS):
            took[one].append(await cost(here, made[one], text, EACH))
        plain, mine = (statistics.median(took[one]) for one in ("none", name))
        missed += mine > TARGET * plain and name != FORGED
        sys.stdout.write(f"{name:20} {mine:7.0f} us {mine / plain:5.1f} times {text[:24]!r} x {len(text)}\n")
    for count, source in ((0, "127.0.0.3"), (options.flood, "127.0.0.3"), (options.flood, "127.0.0.2")):
        waits, took = await flooded(here, count, source)
        sys.stdout.write(
            f"{count} floods, {source}: {percentiles(waits)}; agent {took:.0f} us a forged one\n"
        )
    sys.stdout.write(f"STS was asked {FakeSts.asked} times\n")
    return missed


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each search")
    parser.add_argument("--flood", type=int, default=400)
    options = parser.parse_args()

    async def with_sts():
        server = await asyncio.get_running_loop().create_server(FakeSts, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        sts = {"name": "fake", "endpoint": f"http://127.0.0.1:{port}", "hosts": [HOST], "binding_value": EDGE}
        override = {"sts": [sts | {"insecure_http": True}], "audit": {"path": "none"}}

        def standing_there():
            with standing() as target, own_bench(target, "orders", override=override) as here:
                here.world.haproxy  # noqa: B018 - started
                return asyncio.run_coroutine_threadsafe(run(here, options), loop).result()

        loop = asyncio.get_running_loop()
        return await asyncio.to_thread(standing_there)

    return int(asyncio.run(with_sts()) > 0)


if __name__ == "__main__":
    sys.exit(main())
