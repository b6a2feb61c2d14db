"""Random orders of everything: no verdict but the right one; and ordering bugs that are planted are found."""

import re

from programs import module


def schedules(*options):
    return module("benchmarks.schedules", *options, timeout=900)


def test_nothing_goes_wrong_in_any_order():
    done = schedules("--count", "100", "--jobs", "1")  # `.ci/run` plays 10,000
    counts = {name: count for count, name in re.findall(r"(\d[\d,]*) (\w+)", done.stdout)}
    figures = {name: int(count.replace(",", "")) for name, count in counts.items()}

    assert done.returncode == figures["wrong"] == 0, done.stdout + done.stderr
    assert figures["events"] >= 50 * figures["schedules"] == 50 * 100
    assert min(figures[name] for name in ("allowed", "reloads", "deaths")) > 10


def test_a_seed_plays_the_same_schedule_again():
    done = schedules("--twice", "--count", "40")

    assert done.returncode == 0, done.stdout + done.stderr


def test_what_schedules_found_once_stays_mended():
    seeds = ["15815", "103123", "682818", "766429", "958010"]
    done = schedules("--seed", *seeds)

    assert done.stdout.splitlines() == [f"seed {seed}: nothing is wrong" for seed in seeds], done.stderr


def test_each_ordering_bug_is_found():
    done = schedules("--mutants", "--count", "10000")

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": found by seed ") >= 14


def test_a_failure_is_shrunk_to_what_matters():
    planted = ("--mutant", "calls-revocations-settled-before-they-are")
    found = schedules(*planted, "--jobs", "1", "--count", "20")
    seed = re.findall(r"^seed (\d+): ", found.stdout, re.MULTILINE)[0]
    done = schedules(*planted, "--seed", seed)

    assert found.returncode == 1
    assert int(re.findall(r"(\d+) of 60 choices matter", done.stdout)[0]) <= 12, done.stdout
    assert "WRONG" in done.stdout
