"""The page of a result: whole in itself, escaped, drawn for every kind of run."""

import copy
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import jsonschema
import pytest
from rich.console import Console

from iamroles_loadtests.measuring.histogram import PERCENTILES
from iamroles_loadtests.pages import page, report
from iamroles_loadtests.results import result
from iamroles_loadtests.results.compare import compared
from iamroles_scenarios.base.durations import duration
from iamroles_scenarios.base.pages import charts


class Outline(HTMLParser):
    """Tags, and attributes that would fetch something."""

    def __init__(self):
        super().__init__()
        self.tags, self.fetched, self.ids, self.words = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        fetching = {"src", "href", "srcset", "data", "action"}
        self.fetched += [value for name, value in attrs if name in fetching]

    def handle_data(self, data):
        self.words.append(data)


def outline(text):
    found = Outline()
    found.feed(text)
    return found


def test_the_example_follows_the_schema(example):
    jsonschema.validate(example, json.loads(result.SCHEMA.read_text()))


def test_the_page_needs_no_network(example):
    text = page.render(example)
    found = outline(text)

    # Links lead to places of the page itself.
    assert found.fetched
    assert all(place.startswith("#") and place[1:] in found.ids for place in found.fetched)
    assert not {"script", "link", "img", "iframe"} & set(found.tags)
    assert "url(" not in text
    assert "@import" not in text
    # A curve and a course for each phase, the knee, the CPU, what the check adds (two) and the lanes.
    assert found.tags.count("svg") == found.tags.count("desc") == 2 * len(example["phases"]) + 5
    assert "nan" not in re.sub(r"<style>.*</style>", "", text, flags=re.DOTALL).lower()


def test_what_a_run_did_not_have_is_not_shown(example):
    bare = {**example, "knee": None, "pairs": None, "phases": example["phases"][:1]}

    assert outline(page.render(bare)).tags.count("svg") == 3


def test_a_phase_without_answers_is_drawn(example):
    empty = copy.deepcopy(example["phases"][0])
    none = result.Histogram().shown()
    for name in ("due", "sent", "noticed", "lag", "punctual"):
        empty[name] = none
    empty |= {"samples": 0, "cases": {}, "windows": [], "closed": True, "rate": 0.0, "cpu": {}}
    pairs = {**example["pairs"], "differences": {pool: {"cpu": {}} for pool in ("remembered", "new")}}
    changed = {**example, "phases": [empty], "knee": {**example["knee"], "steps": []}, "pairs": pairs}
    text = page.render(changed)
    report.summary(changed, Console(quiet=True))

    assert "closed loop" in text
    assert "not known" in text
    assert "do not compare" in page.render_comparison(changed, example)


def test_what_a_server_said_is_text(example):
    hostile = "<script>alert(1)</script>"
    changed = copy.deepcopy(example)
    changed |= {"examples": [hostile], "doubts": [hostile], "reproduce": hostile}
    changed["target"]["agent"]["name"] = changed["target"]["haproxy"] = hostile
    changed["environment"]["cpu"] = changed["objectives"][0]["got"] = hostile
    phase = changed["phases"][0]
    phase["name"] = hostile
    phase["cases"] = {hostile: next(iter(phase["cases"].values()))}
    phase["cpu"] = {'"><script>': 1.0}
    changed["events"] = [{"at": phase["begin"] + 1, "what": hostile}]
    tags = outline(page.render(changed)).tags

    assert "script" not in tags
    assert "script" not in outline(page.render_comparison(changed, changed)).tags
    assert tags.count("svg") == 2 * len(changed["phases"]) + 5


def test_the_numbers_are_those_of_the_result(example):
    """Every section is there, and each percentile, objective and interval that the result holds."""
    found = outline(page.render(example))
    words = {word.strip() for word in found.words}
    headings = {"percentiles", "knee", "cpu", "cost", "time", "objectives", "cases", "again"}
    assert headings <= set(found.ids)
    for phase in example["phases"]:
        for origin in ("due", "sent"):
            for at in PERCENTILES:
                if at in phase[origin]:
                    told = duration(phase[origin][at])
                    assert told in words
                    assert f"{at} from {origin}: {told}" in words
        for case in phase["cases"].values():
            assert f"{case['samples']:,}" in words
    for one in example["objectives"]:
        assert {one["name"], "met" if one["met"] else "not met"} <= words
    for lane, told in example["pairs"]["differences"].items():
        value, low, high = (duration(told["p50"][name]) for name in ("value", "low", "high"))
        assert value in words, lane
        assert f"{value} ({low} to {high})" in words
    assert {f"knee {example['knee']['rate']:,.0f}/s", example["reproduce"]} <= words


@pytest.mark.parametrize(
    ("valid", "met", "wrong", "said"),
    [
        *((True, True, 0, "The run is valid"), (False, True, 0, "The run is invalid:")),
        *((True, False, 0, "Not every objective is met."), (True, False, 3, "3 verdicts were wrong")),
    ],
)
def test_the_verdict_stands_on_top(example, valid, met, wrong, said):
    changed = {"valid": valid, "met": met, "wrong": wrong, "doubts": [] if valid else ["it rained"]}
    top = page.render(example | changed).partition("<nav")[0]

    assert said in top
    assert ("The run is valid" in top, "Every objective is met." in top) == (valid, met)
    assert ("was judged, and right" in top, "it rained" in top) == (not wrong, not valid)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "Figures from sent still hold."),
        ({"stamped": False}, "without kernel stamps are bent, too"),
        ({"steps": [40.0]}, "The clock stepped, so figures from sent are not sure either."),
    ],
)
def test_what_still_holds_of_an_invalid_run(example, change, said):
    phases = [{**example["phases"][0], "steps": [], "stamped": True, **change}]
    top = page.render({**example, "valid": False, "phases": phases}).partition("<nav")[0]

    assert said in top
    assert ("still hold" in top) == (not change)


def test_two_runs_on_a_page(example):
    changed = copy.deepcopy(example)
    changed["environment"]["cpu"] = "another machine"
    found = outline(page.render_comparison(example, changed))

    assert any("differs: " in word and "another machine" in word for word in found.words)
    assert found.fetched == []
    lines = compared(example, changed)
    assert found.tags.count("svg") == len({line.phase for line in lines}) + len(example["phases"])
    for line in lines:
        assert any(f"x{line.ratio:.2f}" in word for word in found.words)


@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_the_screen(example, tmp_path, width):
    """Laid out by a real browser, in a frame: a headless window itself is never narrower than 500."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs chromium: apt-get install chromium")
    long = "averyveryverylongnamewithoutanyspaces" * 3
    odd = copy.deepcopy(example)
    odd["target"]["agent"]["name"] = odd["doubts"][0] = odd["objectives"][0]["name"] = long
    odd["reproduce"] = long * 4
    pages = {"a": page.render(example), "b": page.render(odd), "c": page.render_comparison(example, odd)}
    for name, text in pages.items():
        (tmp_path / f"{name}.html").write_text(text)
    frames = "".join(f'<iframe width="{width}" height="800" src="{name}.html"></iframe>' for name in pages)
    (tmp_path / "frames.html").write_text(
        f"""{frames}<script>onload = () => document.title = [...document.querySelectorAll("iframe")].map(
        frame => frame.contentDocument.documentElement.scrollWidth).join()</script>"""
    )
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    command.append((tmp_path / "frames.html").as_uri())
    dom = subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True, timeout=60)
    widths = re.search("<title>(.*)</title>", dom)[1].split(",")

    assert len(widths) == len(pages)
    assert all(int(found) <= width for found in widths), widths


def test_events_and_stalls_are_marked(example):
    changed = copy.deepcopy(example)
    phase = changed["phases"][0]
    phase["stalls"] = [[1.0, 120.0]]
    changed["events"] = [{"at": phase["begin"] + 1.5, "what": "keys <rotated>"}]
    text = page.render(changed)

    assert "generator 120 ms" in text
    assert "keys &lt;rotated&gt;" in text


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 97), (-3, 900), (-800, 0.5), (0, 12_345), (0, 1e-12)])
def test_axes_hold_their_values(low, high):
    axis = charts.linear(high, "x", low=low)

    assert axis.low <= low <= high <= axis.high + 1e-9
    assert 2 <= len(axis.ticks) <= 9
    assert axis.share(axis.low) == 0
    assert axis.share(axis.high) == 1


@pytest.mark.parametrize("values", [[], [0.0], [37.0], [10, 20], [0.2, 5e6]])
def test_latency_axes_hold_their_values(values):
    axis = charts.microseconds(values)

    assert all(axis.low <= value <= axis.high for value in values if value)
    assert len(axis.ticks) >= 2
