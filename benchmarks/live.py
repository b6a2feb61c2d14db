"""How late streams are cut, and what waiting for it costs: the figures of docs/live.md.

    python -m benchmarks.live --busy 1000 --idle 4000 --rounds 40

One HAProxy of this host, one agent, one echo backend, all on loopback. Busy WebSockets send a frame each
250 ms and expire together; idle ones only wait. A busy stream's last byte is stamped by the kernel when it
arrives; all other ends are read by this process, so they are upper bounds. `--idle 0`: busy ones alone.
`--rounds`: requests to a backend without streams, by the shipped rules and by the same rules without those
of this subject, in turns; HAProxy's CPU for each, and their ratio. `--busy 0`: that alone.
`--short 64`: on so many connections a client sends short chunked uploads without end, each of which leaves an
entry that has ended; meanwhile ten streams of others are revoked, a second apart, and once more without them.
"""

import argparse
import asyncio
import resource
import select
import socket
import struct
import time
from collections import Counter, deque
from contextlib import contextmanager, suppress
from datetime import datetime

from benchmarks.agent import cpu_of
from benchmarks.start import proportional
from iamroles_loadtests.asking.cpu import cpu_seconds
from iamroles_loadtests.bench import variants
from iamroles_loadtests.measuring.conductor import in_turn
from iamroles_scenarios.checks.live.stream import StreamShape, expiry_of
from iamroles_scenarios.engine.bench import own_bench
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.worlds import Worlds
from iamroles_scenarios.stage import open_stage
from iamroles_scenarios.stage.reference import reference_agent

SOCKET = StreamShape("websocket")
QUIET = {"live": {"revocations": "r.toml"}, "audit": {"path": "none"}}
SO_TIMESTAMPNS = 35
EACH = 400
"""Requests in a turn."""


def percentiles(values):
    values = sorted(values)
    if not values:
        return "none"
    return "  ".join(
        f"p{p:g} {1000 * values[min(len(values) - 1, int(len(values) * p / 100))]:.1f} ms"
        for p in (50, 90, 99, 100)
    )


@contextmanager
def standing(haproxy=None):
    """A gate on this host, with as many descriptors as the host allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with open_stage("processes", haproxy=haproxy) as stage:
        agent = reference_agent()
        worlds = Worlds(stage, agent, namespace="-live")
        yield Target("gate", stage, agent, worlds, 5.0)
        worlds.close()


async def asked(proxy, gate, head, until):
    """Ask on a connection of its own, for an answer with these bytes; returns its reader and writer."""
    async with gate:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        writer.write(head)
        answer = await reader.readuntil(b"\r\n\r\n")
    assert until in answer, answer
    return reader, writer


async def end_of(reader, writer):
    """When a stream ends, epoch seconds."""
    with suppress(OSError):
        while await reader.read(4096):
            pass
    writer.close()
    return time.time()


def busy_streams(proxy, token, count, expires):
    """Busy WebSockets on plain sockets; returns seconds, one list each:
    last byte after `expires`; end after `expires`; end after the first piece that was sent past `expires`.

    The last byte carries the kernel's stamp of its arrival, so a backlog of this process is not counted as
    HAProxy's. The end is read by this process: it is an upper bound.
    """
    beat, shift = 0.25, 0.0
    poller, socks, last, first, ends = select.epoll(), {}, {}, {}, {}
    for _ in range(count):
        sock = socket.create_connection((proxy.host, proxy.port))
        sock.sendall(SOCKET.head("/live/reader", token))
        head = b""
        while b"\r\n\r\n" not in head:
            head += (piece := sock.recv(4096))
            assert piece, head
        assert b" 101 " in head, (len(socks), head)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        sock.setblocking(False)
        socks[sock.fileno()] = sock
        poller.register(sock, select.EPOLLIN)
    left = expires - time.time()
    assert left > 2, f"{count} streams took too long to open: {left:.1f} s are left"
    due = {fd: time.time() + beat * i / count for i, fd in enumerate(socks)}
    turn = deque(sorted(due, key=due.get))
    frames = 0
    while len(ends) < count and time.time() < expires + 10:
        while turn and due[turn[0]] <= time.time():
            fd = turn.popleft()
            if fd in ends:
                continue
            shift = max(shift, time.time() - due[fd])
            due[fd] += beat
            turn.append(fd)
            try:
                frames += bool(socks[fd].send(SOCKET.beat))
                if (sent := time.time()) >= expires:
                    first.setdefault(fd, sent)
            except OSError:
                pass  # the end is read below
        for fd, _ in poller.poll(0.002):
            try:
                piece, extra, *_ = socks[fd].recvmsg(4096, 64)
            except OSError:
                piece, extra = b"", []
            if piece:
                last[fd] = max(
                    (s + n / 1e9 for *_, s, n in (struct.unpack("@ll", d) for *_, d in extra)), default=0
                )
            else:
                ends[fd] = time.time()
                poller.unregister(fd)
                socks[fd].close()
    print(
        f"  {frames} frames sent, the latest {1000 * shift:.0f} ms behind its turn; "
        f"{count - len(ends)} never ended"
    )
    answers = [end - first[fd] for fd, end in ends.items() if fd in first]
    return [last[fd] - expires for fd in ends], [end - expires for end in ends.values()], answers


def plain(world, token, count):
    """HAProxy's CPU seconds for each of so many requests on 16 connections."""
    head = f"GET /plain/a HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    socks = [socket.create_connection((world.proxy.host, world.proxy.port)) for _ in range(16)]
    worker = world.haproxy.worker
    before = cpu_seconds(worker)
    for _ in range(count // len(socks)):
        for sock in socks:
            sock.sendall(head)
        for sock in socks:
            answer = b""
            while not answer.endswith(b"}"):
                answer += (piece := sock.recv(65536))
                assert piece, answer
            assert answer.startswith(b"HTTP/1.1 200"), answer
    took = cpu_seconds(worker) - before
    for sock in socks:
        sock.close()
    return took / count


def cost(target, rounds):
    """Return what backends without streams pay, in pairs."""
    with (
        own_bench(target, "live", override=QUIET) as here,
        own_bench(target, "live", override=QUIET) as other,
    ):
        bare = other.world.haproxy
        bare._files = variants.without_streams(bare._files)
        bare.reload()
        worlds = [(one.world, one.token(exp="+900s")) for one in (here, other)]
        for world in worlds:
            plain(*world, EACH)
        took = [], []
        for _, at in in_turn((0, 1), rounds):
            took[at].append(plain(*worlds[at], EACH))
    ratios = sorted(one / other for one, other in zip(*took, strict=True))
    tenth = [sorted(column)[rounds // 10] for column in took]
    print(
        f"requests to a backend without streams, {rounds} pairs of {EACH}: HAProxy's CPU, best tenth "
        f"{1e6 * tenth[0]:.1f} us, without the rules of this subject {1e6 * tenth[1]:.1f} us, "
        f"ratio {tenth[0] / tenth[1]:.3f}; ratios of the pairs, quartiles: "
        + " ".join(f"{ratios[rounds * part // 4]:.3f}" for part in (1, 2, 3)),
        flush=True,
    )


def said(proxy, count, since, expires):
    """Return the ends by HAProxy's log: whole seconds after `exp`, and termination flags."""
    deadline = time.monotonic() + 10
    while len(lines := proxy.log_lines(since)) < count and time.monotonic() < deadline:
        time.sleep(0.1)
    ends = Counter(
        (round(datetime.fromisoformat(line["time"]).timestamp() - expires), line["ended"]) for line in lines
    )
    text = ", ".join(f"{many} at exp+{at} s ({flags})" for (at, flags), many in sorted(ends.items()))
    return f"HAProxy logged the end of {text or 'none'}"


async def measure(options, here):
    world, proxy, gate = here.world, here.world.proxy, asyncio.Semaphore(64)

    async def group(count, token, path):
        heads = [SOCKET.head(path, token) for _ in range(count)]
        streams = await asyncio.gather(*(asked(proxy, gate, head, b" 101 ") for head in heads))
        if any(reader.at_eof() for reader, _ in streams):
            raise SystemExit("a stream ended while others were opened")
        return [asyncio.create_task(end_of(*stream)) for stream in streams]

    token = here.token(exp=f"+{options.life}s")
    since, expires = world.haproxy.log_mark, expiry_of(token)
    done = await asyncio.to_thread(busy_streams, proxy, token, options.busy, expires)
    for what, values in zip(
        ("last byte after `exp`", "end after `exp`", "end after a piece sent past `exp`"), done, strict=True
    ):
        print(f"{options.busy} busy streams, {what} ({len(values)}): {percentiles(values)}", flush=True)
    print(await asyncio.to_thread(said, world.haproxy, options.busy, since, expires), flush=True)
    if not options.idle:
        return
    token = here.token(exp=f"+{options.life}s")
    tasks = await group(options.busy, token, "/live/reader")
    late = [end - expiry_of(token) for end in await asyncio.gather(*tasks)]
    print(f"{options.busy} idle streams that expire together, late: {percentiles(late)}", flush=True)

    parts = {"agent": world.agent.pid, "HAProxy": world.haproxy._runs[-1].part.pid}
    empty = {name: proportional(pid) for name, pid in parts.items()}
    idle = await group(options.idle, here.token(exp="+10m"), "/live/reader")
    few = await group(100, here.token(roles=["writer"], exp="+10m"), "/live/writer")
    world.agent.put("r.toml", "")
    await asyncio.sleep(10)  # what a start or a change costs is over
    before, began = {name: cpu_of(pid) for name, pid in parts.items()}, time.monotonic()
    await asyncio.sleep(20)
    took = time.monotonic() - began
    for name, pid in parts.items():
        share = 100 * (cpu_of(pid) - before[name]) / took
        print(
            f"{options.idle + 100} idle tunnels: {name} {share:.2f} % of a core, "
            f"{proportional(pid):.0f} MB, {empty[name]:.0f} MB before them",
            flush=True,
        )
    at, spent = time.time(), cpu_of(parts["agent"])
    world.agent.put("r.toml", '[[revocations]]\nid = "a"\nroles = ["writer"]\n')
    ends = await asyncio.wait_for(asyncio.gather(*few), 30)
    print(
        f"100 streams of a role revoked among {options.idle}, after the file changed: "
        f"{percentiles([end - at for end in ends])}; "
        f"still open: {sum(not task.done() for task in idle)} of {options.idle}; "
        f"the agent's CPU for it: {cpu_of(parts['agent']) - spent:.2f} s"
    )
    for task in idle:
        task.cancel()


async def uploads(proxy, token, done):
    """Send short chunked uploads on a connection of its own; `done` counts them."""
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    fields = f"Host: g\r\nAuthorization: Bearer {token}\r\nTransfer-Encoding: chunked"
    while True:
        writer.write(f"POST /plain/a HTTP/1.1\r\n{fields}\r\n\r\n".encode())
        await asyncio.sleep(0.005)  # else it is whole when its head is, and no stream
        writer.write(b"1\r\nx\r\n0\r\n\r\n")
        await reader.readuntil(b"}")
        done.append(1)


async def beside_uploads(here, connections):
    """Print how late ten revoked streams end while somebody else sends short uploads."""
    gate, done, took, rows = asyncio.Semaphore(8), [], [], []
    head = [SOCKET.head("/live/reader", here.token(sub=f"v{n}", exp="+10m")) for n in range(10)]
    streams = [await asked(here.world.proxy, gate, one, b" 101 ") for one in head]
    token = here.token(sub="other", exp="+10m")
    tasks = [asyncio.create_task(uploads(here.world.proxy, token, done)) for _ in range(connections)]
    began = time.monotonic()
    for n, stream in enumerate(streams):
        await asyncio.sleep(1)
        rows += [f'[[revocations]]\nid = "{n}"\nprincipals = ["v{n}"]\n']
        at = time.time()
        here.world.agent.put("r.toml", "".join(rows))
        took.append(await end_of(*stream) - at)
    rate = len(done) / (time.monotonic() - began)
    for task in tasks:
        task.cancel()
    print(f"10 streams, revoked beside {rate:.0f} short uploads a second: {percentiles(took)}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--busy", type=int, default=1000)
    parser.add_argument("--idle", type=int, default=4000)
    parser.add_argument("--life", type=int, default=15, help="seconds that the expiring tokens live")
    parser.add_argument("--haproxy", default=None)
    parser.add_argument("--rounds", type=int, default=0, help="pairs of requests without streams")
    parser.add_argument("--short", type=int, default=0, help="connections with short uploads")
    options = parser.parse_args()
    with standing(options.haproxy) as target:
        if options.rounds:
            cost(target, options.rounds)
        for connections in (options.short, 0) if options.short else ():
            with own_bench(target, "live", override=QUIET) as here:
                asyncio.run(beside_uploads(here, connections))
        if not options.busy:
            return
        with own_bench(target, "live", override=QUIET) as here:
            print(f"HAProxy {here.world.haproxy.version}", flush=True)
            asyncio.run(measure(options, here))


if __name__ == "__main__":
    main()
