"""How late streams are cut, and what waiting for it costs: the figures of docs/live.md.

    python -m benchmarks.live --busy 1000 --idle 4000 --rounds 40

One HAProxy of this host, one agent, one echo backend, all on loopback. Busy WebSockets send a frame each
250 ms and expire together; idle ones only wait. A busy stream's last byte is stamped by the kernel when it
arrives; all other ends are read by this process, so they are upper bounds. `--idle 0`: busy ones alone.
`--rounds`: requests to a backend without streams, by the shipped rules and by the same rules without those
of this subject, in turns; HAProxy's CPU for each, and their ratio. `--busy 0`: that alone.
"""

# ruff: noqa: T201 - a script that prints

import argparse
import asyncio
import base64
import os
import resource
import select
import socket
import struct
import time
import tomllib
from collections import Counter, deque
from datetime import datetime
from pathlib import Path

from iamroles_scenarios.jose import mint_for
from iamroles_scenarios.stage import open_stage
from iamroles_scenarios.stage.spec import AgentSpec

ROOT = Path(__file__).parents[1]
SO_TIMESTAMPNS = 35
EACH = 400
"""Requests in a turn."""
FRAME = b"\x81\x82\0\0\0\0hi"


def percentiles(values):
    values = sorted(values)
    if not values:
        return "none"
    return "  ".join(
        f"p{p:g} {1000 * values[min(len(values) - 1, int(len(values) * p / 100))]:.1f} ms"
        for p in (50, 90, 99, 100)
    )


def upgrade(path, token, key):
    return (
        f"GET {path} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {token}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    ).encode()


async def tunnel(proxy, token, path, ready, gate):
    """Open an idle WebSocket; returns (last byte, end), epoch seconds."""
    async with gate:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        key = base64.b64encode(os.urandom(16)).decode()
        writer.write(upgrade(path, token, key))
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 101 " in head, head
    ready()
    last = time.time()
    try:
        while await reader.read(4096):
            last = time.time()
    except OSError:
        pass
    writer.close()
    return last, time.time()


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
        key = base64.b64encode(os.urandom(16)).decode()
        sock.sendall(upgrade("/live/reader", token, key))
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
                frames += bool(socks[fd].send(FRAME))
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


def used(pid):
    """CPU seconds and memory (MB, shared pages by their share) of a process and its children."""
    ticks = os.sysconf("SC_CLK_TCK")
    seconds, memory = 0.0, 0.0
    for task in Path("/proc").glob("[0-9]*"):
        try:
            words = (task / "stat").read_text().rpartition(") ")[2].split()
            if pid not in (int(task.name), int(words[1])):
                continue
            pages = (task / "smaps_rollup").read_text()
        except OSError:
            continue
        seconds += (int(words[11]) + int(words[12])) / ticks
        memory += int(pages.partition("Pss:")[2].split()[0]) * 1024 / 1e6
    return seconds, memory


def on_cpu(pid):
    """Seconds on the CPU of a process, to the nanosecond."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def without_live(files):
    """The rendered files without the rules of this subject for a backend without streams."""
    kept, dropped = {}, 0
    for name, text in files.items():
        lines = text.splitlines(keepends=True)
        if name == "haproxy.cfg":
            first = next(n for n, line in enumerate(lines) if "When the credential expires" in line)
            last = next(n for n, line in enumerate(lines) if "http-drop-request-trailers" in line)
            end = max(n for n in range(first, last) if lines[n].startswith(".if version_atleast(3.2)"))
            dropped += end - first
            lines[first:end] = []
        if name == "iam-routes.cfg":
            left = [line for line in lines if "upgrade" not in line and "event-stream" not in line]
            dropped += len(lines) - len(left)
            lines = left
        kept[name] = "".join(lines)
    print(f"  {dropped} lines of rules and comments dropped", flush=True)
    return kept


def plain(world, token, count):
    """HAProxy's CPU seconds for each of so many requests on 16 connections."""
    head = f"GET /plain/a HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    socks = [socket.create_connection((world.proxy.host, world.proxy.port)) for _ in range(16)]
    worker = world.haproxy.worker
    before = on_cpu(worker)
    for _ in range(count // len(socks)):
        for sock in socks:
            sock.sendall(head)
        for sock in socks:
            answer = b""
            while not answer.endswith(b"}"):
                answer += (piece := sock.recv(65536))
                assert piece, answer
            assert answer.startswith(b"HTTP/1.1 200"), answer
    took = on_cpu(worker) - before
    for sock in socks:
        sock.close()
    return took / count


def cost(stage, spec, policy, token, rounds):
    """Return what backends without streams pay, in pairs."""
    with stage.world(spec, policy) as shipped, stage.world(spec, policy) as bare:
        bare.haproxy._files = without_live(bare.haproxy._files)
        bare.haproxy.reload()
        for world in (shipped, bare):
            plain(world, token, EACH)
        pairs = []
        for turn in range(rounds):
            order = (shipped, bare) if turn % 2 else (bare, shipped)
            took = {id(world): plain(world, token, EACH) for world in order}
            pairs.append((took[id(shipped)], took[id(bare)]))
    ratios = sorted(one / other for one, other in pairs)
    tenth = [sorted(column)[rounds // 10] for column in zip(*pairs, strict=True)]
    print(
        f"requests to a backend without streams, {rounds} pairs of {EACH}: HAProxy's CPU, best tenth "
        f"{1e6 * tenth[0]:.1f} us, without the rules of this subject {1e6 * tenth[1]:.1f} us, "
        f"ratio {tenth[0] / tenth[1]:.3f}; ratios of the pairs, quartiles: "
        + " ".join(f"{ratios[rounds * part // 4]:.3f}" for part in (1, 2, 3)),
        flush=True,
    )


def said(proxy, count, since, expires):
    """Return what HAProxy's own log says of the ends: whole seconds after `exp`, and the termination
    flags.
    """
    deadline = time.monotonic() + 10
    while len(lines := proxy.log_lines(since)) < count and time.monotonic() < deadline:
        time.sleep(0.1)
    ends = Counter(
        (round(datetime.fromisoformat(line["time"]).timestamp() - expires), line["ended"]) for line in lines
    )
    text = ", ".join(f"{many} at exp+{at} s ({flags})" for (at, flags), many in sorted(ends.items()))
    return f"HAProxy logged the end of {text or 'none'}"


async def measure(options, issuer, world):
    proxy = world.proxy

    def token(role, life, **more):
        recipe = {"roles": [f"arn:aws:iam::111111111111:role/{role}"], "issuer": "corp", "signer": "corp"}
        return mint_for({**recipe, "exp": f"+{life}s", **more}, {"corp": issuer}, time.time())

    gate, opened = asyncio.Semaphore(64), 0

    def ready():
        nonlocal opened
        opened += 1

    async def group(count, tok, path):
        nonlocal opened
        opened = 0
        tasks = [asyncio.create_task(tunnel(proxy, tok, path, ready, gate)) for _ in range(count)]
        while opened < count:
            if early := next((task for task in tasks if task.done()), None):
                raise SystemExit(
                    f"a stream ended while others were opened: {early.exception() or early.result()}"
                )
            await asyncio.sleep(0.05)
        return tasks

    exp = lambda tok: __import__("json").loads(base64.urlsafe_b64decode(tok.split(".")[1] + "=="))["exp"]  # noqa: E731
    tok = token("reader", options.life)
    since = world.haproxy.log_mark
    done = await asyncio.to_thread(busy_streams, proxy, tok, options.busy, exp(tok))
    for what, values in zip(
        ("last byte after `exp`", "end after `exp`", "end after a piece sent past `exp`"), done, strict=True
    ):
        print(f"{options.busy} busy streams, {what} ({len(values)}): {percentiles(values)}", flush=True)
    print(await asyncio.to_thread(said, world.haproxy, options.busy, since, exp(tok)), flush=True)
    if not options.idle:
        return
    tok = token("reader", options.life)
    tasks = await group(options.busy, tok, "/live/reader")
    late = [end - exp(tok) for _, end in await asyncio.gather(*tasks)]
    print(f"{options.busy} idle streams that expire together, late: {percentiles(late)}", flush=True)

    parts = {"agent": world.agent.pid, "HAProxy": world.haproxy._runs[-1].part.pid}
    empty = {name: used(pid)[1] for name, pid in parts.items()}
    idle = await group(options.idle, token("reader", 600), "/live/reader")
    few = await group(100, token("writer", 600), "/live/writer")
    world.agent.put("r.toml", "")
    await asyncio.sleep(70)  # what a start or a change costs is over
    before, began = {name: used(pid) for name, pid in parts.items()}, time.monotonic()
    await asyncio.sleep(20)
    took = time.monotonic() - began
    for name, pid in parts.items():
        share = 100 * (used(pid)[0] - before[name][0]) / took
        print(
            f"{options.idle + 100} idle tunnels: {name} {share:.2f} % of a core, "
            f"{before[name][1]:.0f} MB, {empty[name]:.0f} MB before them",
            flush=True,
        )
    at, spent = time.time(), used(parts["agent"])[0]
    world.agent.put("r.toml", '[[revocations]]\nid = "a"\nroles = ["writer"]\n')
    ends = await asyncio.wait_for(asyncio.gather(*few), 30)
    print(
        f"100 streams of a role revoked among {options.idle}, after the file changed: "
        f"{percentiles([end - at for _, end in ends])}; "
        f"still open: {sum(not task.done() for task in idle)} of {options.idle}; "
        f"the agent's CPU for it: {used(parts['agent'])[0] - spent:.2f} s"
    )
    for task in idle:
        task.cancel()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--busy", type=int, default=1000)
    parser.add_argument("--idle", type=int, default=4000)
    parser.add_argument("--life", type=int, default=15, help="seconds that the expiring tokens live")
    parser.add_argument("--haproxy", default=None)
    parser.add_argument("--rounds", type=int, default=0, help="pairs of requests without streams")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    policy = tomllib.loads((ROOT / "scenarios/iamroles_scenarios/data/worlds/live.toml").read_text())
    policy |= {"live": {"revocations": "r.toml"}, "audit": {"path": "none"}}
    spec = AgentSpec.load(ROOT / "conformance/agent.toml")
    with open_stage("processes", haproxy=options.haproxy) as stage:
        issuer = stage.idp.issuer("corp")
        if options.rounds:
            recipe = {"roles": ["arn:aws:iam::111111111111:role/reader"], "issuer": "corp", "signer": "corp"}
            token = mint_for({**recipe, "exp": "+900s"}, {"corp": issuer}, time.time())
            cost(stage, spec, policy, token, options.rounds)
        if not options.busy:
            return
        with stage.world(spec, policy) as world:
            print(f"HAProxy {world.haproxy.version}", flush=True)
            asyncio.run(measure(options, issuer, world))


if __name__ == "__main__":
    main()
