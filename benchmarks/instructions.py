"""Instructions of HAProxy a request, by valgrind: `python -m benchmarks.instructions [--rules]`.

CPU time on a shared host moves by more than most rules cost; the instructions that HAProxy itself executes
do not (0.1 % between runs). What the kernel does is not among them. The shipped configuration runs with the
verdict set by hand, in front of a server that answers at once, under `valgrind --tool=callgrind`, with many
requests and with few: their difference counts. Then without each step; `--rules`: without each single rule
too (a quarter of an hour). Rules that refuse by default cannot be left out.
"""

import argparse
import asyncio
import os
import re
import socket
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from iamroles_loadtests.asking import gate_config
from iamroles_loadtests.bench import agent, variants
from iamroles_scenarios.stage import haproxies

MANY, FEW, CONNECTIONS = 960, 160, 8
BODY = b'{"backend": "orders-ro"}'
TOKEN = b".".join((b"a" * 40, b"b" * 300, b"c" * 342))
REQUEST = (
    b"GET /orders/1 HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: meter\r\nAccept: */*\r\n"
    b"Authorization: Bearer " + TOKEN + b"\r\n\r\n"
)
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY)


def serve(listener):
    """A server that answers each request at once, in a thread."""

    async def answer(reader, writer):
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(RESPONSE + BODY)
        except (OSError, EOFError):
            writer.close()

    async def run():
        await (await asyncio.start_server(answer, sock=listener)).serve_forever()

    threading.Thread(target=lambda: asyncio.run(run()), daemon=True).start()


def rendered(port):
    """The files for a policy of backends at this port, with the verdict set by hand."""
    policy = agent.policy()
    for backend in policy["backends"]:
        backend["servers"] = [f"127.0.0.1:{port}"]
    files = gate_config.shipped_files(policy)
    files["iam-routes.cfg"] = files["iam-routes.cfg"].replace("check inter 2s", "")
    return files | {"haproxy.cfg": variants._FILTER.sub("", variants.by_hand(files["haproxy.cfg"]))}


def executed(files, requests):
    """Instructions of an HAProxy that started, answered so many requests, and stopped; None: it refused."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        for name, text in files.items():
            Path(folder, name).write_text(text)
        settings = {"IAM_BIND": f"fd@{listener.fileno()}", "IAM_STATS_SOCKET": f"{folder}/s"}
        words = "valgrind -v --tool=callgrind --callgrind-out-file=/dev/null"
        process = subprocess.Popen(
            [*words.split(), haproxies.find(), "-db", "-f", "haproxy.cfg", "-f", "iam-routes.cfg"],
            cwd=folder, env={**os.environ, **settings, "IAM_LOG": gate_config.NOWHERE, "IAM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, pass_fds=[listener.fileno()],
        )  # fmt: skip
        try:
            clients = [socket.create_connection(listener.getsockname()) for _ in range(CONNECTIONS)]
            listener.close()
            for _ in range(requests // CONNECTIONS):
                for client in clients:
                    client.sendall(REQUEST)
                for client in clients:
                    answer = b""
                    while not answer.endswith(BODY):
                        answer += (piece := client.recv(65536))
                        if not piece or not answer.startswith(b"HTTP/1.1 200"):
                            return None
            for client in clients:
                client.close()
        except ConnectionError:
            return None
        finally:
            process.terminate()
            said = process.communicate()[0]
        return int(re.search(r"Collected\s*:\s*(\d+)", said)[1])


def cost(files):
    """Instructions a request; None where HAProxy refuses it, or its configuration."""
    with ThreadPoolExecutor(2) as pool:
        many, few = pool.map(lambda requests: executed(files, requests), (MANY, FEW))
    return None if many is None or few is None else (many - few) / (MANY - FEW)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rules", action="store_true", help="each single rule too")
    options = parser.parse_args()
    listener = socket.create_server(("127.0.0.1", 0))
    serve(listener)
    files = rendered(listener.getsockname()[1])
    gate, bare = files["haproxy.cfg"], variants.without_streams(files)
    whole = cost(files)
    print(f"{whole:8.0f}           all rules", flush=True)

    def without(name, files):
        left = cost(files)
        spared = "cannot be left out" if left is None else f"{whole - left:8.0f}  {1 - left / whole:7.2%}"
        print(f"{spared}  {name}", flush=True)

    def with_gate(text):
        return files | {"haproxy.cfg": text}

    steps = variants.steps(gate)
    proxy = variants.without(gate, set(steps) - {"record"}).replace(
        "default_backend iam-unrouted", "default_backend route-orders-ro"
    )
    without("all but the record", bare | {"haproxy.cfg": proxy})
    without("live, and what refuses streams", bare)
    for step in sorted(set(steps) - {"3", "6"}):
        without(f"{step}: {steps[step]}", with_gate(variants.without(gate, {step})))
    lines = gate.splitlines(keepends=True)
    for number in [n for n, line in enumerate(lines) if options.rules and variants.RULE.match(line)]:
        without(lines[number].strip()[:110], with_gate("".join(lines[:number] + lines[number + 1 :])))


if __name__ == "__main__":
    main()
