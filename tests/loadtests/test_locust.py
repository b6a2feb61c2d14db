"""Locust hosts the loop: alone, with processes, with a master and workers; all say the same numbers."""

import contextlib
import csv
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from invoking import finished
from listening import nowhere
from truth import truth

import iamroles_loadtests
from iamroles_loadtests.asking.targets import url
from iamroles_loadtests.measuring import hosted
from iamroles_loadtests.measuring.generator import GeneratorError
from iamroles_loadtests.measuring.measurement import Measurement
from iamroles_scenarios.traffic import Case
from iamroles_scenarios.traffic.records import FIELDS

LOCUSTFILE = Path(iamroles_loadtests.__file__).with_name("locusting") / "locustfile.py"
RATE = 1000
STOP = """
import gevent
import os
from locust import events
from locust.runners import WorkerRunner
from iamroles_loadtests.measuring.drive import Driver

real = Driver.loop
Driver.loop = lambda driver, phase: (os.write(2, b"seed %d;" % phase.seed), real(driver, phase))[1]

@events.test_start.add_listener
def start(environment, **_):
    def stop(runner):
        while not {when}:
            gevent.sleep(0.1)
        runner.quit()
        if environment.web_ui:
            environment.web_ui.stop()
    if not isinstance(environment.runner, WorkerRunner):
        gevent.spawn(stop, environment.runner)
"""
"""A locustfile that ends the test at an event, however slow the host is."""
TYPED = """
@events.init.add_listener
def swarm(web_ui, **_):
    form = {"user_count": 2, "spawn_rate": 2}
    gevent.spawn(lambda: web_ui.app.test_client().post("/swarm", data=form))
"""
"""Begins the test as a person does on locust's page, with two users."""


def locust(address, directory, *arguments, when="runner.stats.total.num_requests >= 1000", more=""):
    stop, result = directory / "stop.py", directory / "result.json"
    stop.write_text(STOP.format(when=when) + more)
    command = [sys.executable, "-m", "locust", "-f", f"{LOCUSTFILE},{stop}", "--host", f"http://{address}/"]
    command += ["--only-summary", "--json", "--csv", str(directory / "out"), *arguments]
    command += [] if more else ["--headless"]
    env = {"IAMROLES_LOAD_RESULT": str(result), "IAMROLES_LOAD_RATE": str(RATE)}
    done = finished(*command, env=env, timeout=90)
    return done, (Measurement.model_validate_json(result.read_text()) if result.exists() else None)


@contextlib.contextmanager
def two_workers():
    """Yield them, and the options of a master that waits for them."""
    port = nowhere().rpartition(":")[2]
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--worker", "--master-port", port]
    workers = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)
    ]
    try:
        yield workers, ["--master", "--master-bind-port", port, "--expect-workers", "2", "-u", "2", "-r", "2"]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def pace(measured):
    """Return the rate from the first window with samples to the last answer, as a multiple of RATE."""
    first = min(measured.windows) * measured.width
    return (measured.samples + measured.owed) / (measured.until - first) / RATE


def median(entry):
    values, counts = zip(*entry["response_times"].items(), strict=True)
    return np.median(np.repeat(np.asarray(values, dtype=float), counts))


@pytest.mark.parametrize("processes", [1, 2], ids=["one", "two"])
def test_the_numbers_are_the_servers(tmp_path, processes):
    many = ["-u", str(processes), "-r", str(processes)]
    with truth("fixed") as server:
        if processes > 1:
            port = nowhere().rpartition(":")[2]  # locust's own port is everybody's
            many += ["--processes", str(processes), "--master-bind-port", port, "--master-port", port]
        done, measured = locust(server.address, tmp_path, *many)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(set(re.findall(r"seed (\d+);", done.stderr))) == processes

    # Every request that the server answered is counted, once, by the book and by locust.
    printed = done.stdout[done.stdout.index("[\n") :]  # workers print an empty list of their own
    entries = {entry["method"]: entry for entry in json.JSONDecoder().raw_decode(printed)[0]}
    locusts = {method: entry["num_requests"] for method, entry in entries.items()}
    assert measured.answers == measured.samples == len(server.record)
    assert locusts == {"sent us": measured.samples, "due us": measured.samples}
    assert pace(measured) < 1.3
    sent = measured.cases["GET /"].sent
    assert sent.count == measured.samples
    # The server held each for 5 ms: in locust's own figures, in microseconds.
    held = float(np.median(server.record[:, 2])) / 1e3
    assert abs(sent.at(50) - held) < 0.3 * held
    assert abs(median(entries["sent us"]) - held) < 0.3 * held
    assert median(entries["due us"]) >= 0.98 * median(entries["sent us"])


def test_users_that_are_typed_share_the_rate(tmp_path):
    port = nowhere().rpartition(":")[2]
    with truth("quick") as server:
        done, measured = locust(server.address, tmp_path, "--web-port", port, more=TYPED)
    assert done.returncode == 0, done.stderr[-2000:]
    assert measured.samples >= 1000
    assert pace(measured) < 1.3


def test_no_locust_outlives_its_tokens(monkeypatch):
    monkeypatch.setattr(hosted, "LIFE", 60.1)
    target = url("http://127.0.0.1:9/")
    target.world = object()  # as that of a stage, which has tokens
    with pytest.raises(GeneratorError, match="its tokens live 60 s; give it -t"):
        hosted.hosted(target, {"name": "x"}, ["--headless"])


def test_a_master_and_its_workers(tmp_path):
    """As on several machines: the workers know nothing but the master's address."""
    with truth("quick") as server, two_workers() as (workers, options):
        done, measured = locust(server.address, tmp_path, *options)
        codes = [worker.wait(20) for worker in workers]
    assert (done.returncode, codes) == (0, [0, 0]), done.stderr[-2000:]
    assert measured.samples == len(server.record)
    assert pace(measured) < 1.3
    assert sum(window.sent.count for window in measured.windows.values()) == len(server.record)


def test_a_worker_that_dies_is_no_result(tmp_path):
    """The master forgets a dead worker after some seconds; the figures of the other are not those of both."""
    with truth("quick") as server, two_workers() as (workers, options):
        at_work = server.said.readline
        killer = threading.Thread(target=lambda: (at_work(), workers[0].kill()), daemon=True)
        killer.start()
        done, measured = locust(server.address, tmp_path, *options, when="runner.clients.missing")
    assert not killer.is_alive()
    course = csv.DictReader((tmp_path / "out_stats_history.csv").read_text().splitlines())
    assert any(int(row["Total Request Count"] or 0) for row in course)
    assert done.returncode == 3, done.stderr[-2000:]
    assert "1 workers did not hand in" in done.stderr
    assert measured is None


def test_a_user_that_fails_is_no_result(tmp_path):
    """Locust ends with 1, as after wrong answers."""
    done, measured = locust("x" * 64, tmp_path, when="runner.exceptions")

    assert (done.returncode, measured) == (3, None)
    assert "no result: encoding with 'idna' codec failed" in done.stderr


def test_failures_are_locusts_failures(tmp_path):
    done, measured = locust(nowhere(), tmp_path, when="runner.stats.errors")

    assert done.returncode == 1
    assert measured.faults > 0
    assert "refused" in done.stderr.partition("Error report")[2]  # the CSV may be of a second before the end


def test_books_of_parts_add_up_to_the_book_of_the_whole():
    raw = np.random.default_rng(3).integers(0, 10**7, (5000, len(FIELDS)))
    begin = 10**18
    raw[:, 0] %= 2
    raw[:, 1] += begin
    raw[:, 2] += raw[:, 1]
    raw[:, 3] += raw[:, 2]
    cases = [Case("a", 0), Case("b", 1)]

    whole = Measurement(begin=begin, width=0.001)
    whole.record(raw.tobytes(), cases)
    summed = Measurement(begin=begin, width=0.001)
    for part in range(3):
        measured = Measurement(begin=begin, width=0.001)
        measured.record(np.ascontiguousarray(raw[part::3]).tobytes(), cases)
        summed.add(Measurement.model_validate_json(measured.model_dump_json()))

    assert sorted(summed.windows) == sorted(whole.windows)
    summed.windows = {number: summed.windows[number] for number in whole.windows}
    assert summed.model_dump() == whole.model_dump()
