"""Locust hosts the loop: alone, with processes, with a master and workers; all say the same numbers."""

import csv
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from truth import truth

import iamroles_loadtests
from iamroles_loadtests.measuring.book import Book
from iamroles_loadtests.measuring.histogram import Histogram
from iamroles_scenarios.traffic import Case
from iamroles_scenarios.traffic.records import FIELDS

LOCUSTFILE = Path(iamroles_loadtests.__file__).with_name("locusting") / "locustfile.py"
RATE = 1000


def locust(address, directory, *arguments):
    result = directory / "result.json"
    command = [
        sys.executable,
        "-m",
        "locust",
        "-f",
        str(LOCUSTFILE),
        "--headless",
        "--only-summary",
        "--json",
    ]
    done = subprocess.run(
        [*command, *arguments, "--host", f"http://{address}/", "--csv", str(directory / "out")],
        env={**os.environ, "IAMROLES_LOAD_RESULT": str(result), "IAMROLES_LOAD_RATE": str(RATE)},
        check=False,
        capture_output=True,
        text=True,
        timeout=90,
    )
    measured = json.loads(result.read_text()) if result.exists() else None
    return done, measured


def rows(directory):
    with (directory / "out_stats.csv").open() as file:
        return {(row["Type"], row["Name"]): row for row in csv.DictReader(file)}


@pytest.mark.parametrize("processes", [1, 2], ids=["one", "two"])
def test_the_numbers_are_the_servers(tmp_path, processes):
    many = ["-u", str(processes), "-r", str(processes)]
    with truth("fixed") as server:
        if processes > 1:
            with socket.create_server(("127.0.0.1", 0)) as free:  # locust's own port is everybody's
                port = str(free.getsockname()[1])
            many += ["--processes", str(processes), "--master-bind-port", port, "--master-port", port]
        done, measured = locust(server.address, tmp_path, "-t", "4s", *many)
    assert done.returncode == 0, done.stderr[-2000:]

    # Every request that the server answered is counted, once, by the book and by locust.
    told = rows(tmp_path)
    printed = done.stdout[done.stdout.index("[\n") :]  # workers print an empty list of their own
    entries, _ = json.JSONDecoder().raw_decode(printed)
    locusts = {entry["method"]: entry["num_requests"] for entry in entries}
    assert measured["answers"] == measured["samples"] == len(server.record)
    assert locusts == {"sent us": measured["samples"], "due us": measured["samples"]}
    assert RATE // 2 < measured["samples"] < 1.3 * 5 * RATE  # a busy host starts the users late
    sent = Histogram.decoded(measured["cases"]["GET /"]["sent"])
    assert sent.count == measured["samples"]
    # The server held each for 5 ms: in locust's own figures, in microseconds.
    held = float(np.median(server.record[:, 2])) / 1e3
    assert abs(sent.at(50) - held) < 0.3 * held
    assert abs(float(told["sent us", "GET /"]["50%"]) - held) < 0.3 * held
    assert float(told["due us", "GET /"]["50%"]) >= float(told["sent us", "GET /"]["50%"]) * 0.98


def test_a_master_and_its_workers(tmp_path):
    """As on several machines: the workers know nothing but the master's address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--worker", "--master-port", port]
    with truth("quick") as server:
        workers = [
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)
        ]
        try:
            done, measured = locust(
                server.address,
                tmp_path,
                *("--master", "--master-bind-port", port, "--expect-workers", "2"),
                *("-u", "2", "-r", "2", "-t", "3s"),
            )
            codes = [worker.wait(20) for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
    assert (done.returncode, codes) == (0, [0, 0]), done.stderr[-2000:]
    assert measured["samples"] == len(server.record) > 0.7 * 2 * RATE
    assert sum(Histogram.decoded(window["sent"]).count for window in measured["windows"]) == len(
        server.record
    )


def test_a_worker_that_dies_is_no_result(tmp_path):
    """The master forgets a dead worker after some seconds; the figures of the other are not those of both."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--worker", "--master-port", port]
    course = tmp_path / "out_stats_history.csv"

    def counted():
        return course.exists() and any(
            int(row["Total Request Count"] or 0) for row in csv.DictReader(course.read_text().splitlines())
        )

    with truth("quick") as server:
        workers = [
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)
        ]

        def kill():
            while not counted():  # they are at work
                time.sleep(0.05)
            workers[0].kill()

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        try:
            done, measured = locust(
                server.address,
                tmp_path,
                *("--master", "--master-bind-port", port, "--expect-workers", "2"),
                *("-u", "2", "-r", "2", "-t", "12s"),
            )
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
    assert not killer.is_alive()
    assert done.returncode == 3, done.stderr[-2000:]
    assert "1 workers did not hand in" in done.stderr
    assert measured is None


def test_failures_are_locusts_failures(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = "{}:{}".format(*gone.getsockname())
    done, measured = locust(address, tmp_path, "-u", "1", "-t", "2s")

    assert done.returncode == 1
    assert measured["faults"] > 0
    assert "refused" in (tmp_path / "out_failures.csv").read_text()


def test_books_of_parts_add_up_to_the_book_of_the_whole():
    raw = np.random.default_rng(3).integers(0, 10**7, (5000, len(FIELDS)))
    begin = 10**18
    raw[:, 0] %= 2
    raw[:, 1] += begin
    raw[:, 2] += raw[:, 1]
    raw[:, 3] += raw[:, 2]
    cases = [Case("a", 0), Case("b", 1)]

    whole = Book(begin, 0.001)
    whole.fold(raw.tobytes(), cases)
    summed = Book(begin, 0.001)
    for part in range(3):
        book = Book(begin, 0.001)
        book.fold(np.ascontiguousarray(raw[part::3]).tobytes(), cases)
        summed.add(Book.of(json.loads(json.dumps(book.measured("x", 1.0, closed=False)))))

    assert summed.measured("x", 1.0, closed=False) == whole.measured("x", 1.0, closed=False)
