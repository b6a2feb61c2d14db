"""Prometheus's format, and that the Grafana dashboard asks for existing metrics only."""

import asyncio
import json
import re
import socket
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from tokens_support import issuer

from iamroles_agent.audit.log import Audit, AuditState
from iamroles_agent.base.config import AuditSettings, Config, MetricsSettings
from iamroles_agent.base.errors import StartError
from iamroles_agent.base.reasons import Reason
from iamroles_agent.serving import scrape
from iamroles_agent.serving.bounded import MOST
from iamroles_agent.serving.metrics import BUCKETS, ConnectionStats, Metrics
from iamroles_agent.serving.scrape import registry
from iamroles_agent.tokens import Authenticator

DASHBOARD = Path(__file__).parents[3] / "reference" / "grafana" / "iamroles.json"


@pytest.fixture
def metrics():
    numbers = Metrics(MetricsSettings(listen="127.0.0.1:0"), clock=lambda: 1000.0)
    numbers.audit = lambda: AuditState(records=7, lost=2, failures=1, failing=True, buffered=512)
    numbers.connections = ConnectionStats(open=1, pending=3, accepted=2, refused=4, protocol_errors=5)
    numbers.authenticator = Authenticator(Config(version=1, issuers=[issuer()]))
    return numbers


def scraped(metrics):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(generate_latest(registry(metrics)).decode())
        for sample in family.samples
    }


def test_decisions_by_verdict_and_reason(metrics):
    metrics.decided(None, 20e-6)
    metrics.decided(None, 20e-6)
    metrics.decided(Reason.NO_GRANT, 3.0)

    found = scraped(metrics)

    for reason, verdict, count in (("", "allow", 2), ("no_grant", "deny", 1), ("token_expired", "deny", 0)):
        assert found["iamroles_decisions_total", ("reason", reason), ("verdict", verdict)] == count
    for bound, count in (("2.5e-05", 2), ("2.5", 2), ("+Inf", 3)):
        assert found["iamroles_decision_seconds_bucket", ("le", bound)] == count
    assert found["iamroles_decision_seconds_count",] == 3
    assert found["iamroles_decision_seconds_sum",] == pytest.approx(3.00004)


@pytest.mark.parametrize("bound", BUCKETS)
def test_a_latency_on_a_bound_counts_below_it(metrics, bound):
    metrics.decided(None, bound)

    found = scraped(metrics)
    counts = [found["iamroles_decision_seconds_bucket", ("le", str(le))] for le in BUCKETS]
    assert counts == [le >= bound for le in BUCKETS]


def test_everything_else(metrics):
    metrics.policy("sha256:feed")
    metrics.policy_rejected()
    metrics.cut("expired", "filter", 0.004)
    metrics.cache_sizes["verdict"] = lambda: 41
    metrics.verdict_hits, metrics.identity_misses = 5, 6
    metrics.authenticator.sts.counts["rejected"] += 1
    metrics.authenticator.sources["corp"].fetches += 2

    found = scraped(metrics)

    plain = {"policy_since_seconds": 1000, "connections": 1, "connections_opened_total": 2}
    plain |= {"connections_refused_total": 4, "pending_decisions": 3, "frame_errors_total": 5}
    plain |= {"audit_records_total": 7, "audit_lost_total": 2, "audit_failures_total": 1}
    plain |= {"audit_failing": 1, "audit_buffered_bytes": 512}
    expected = {(f"iamroles_{name}",): value for name, value in plain.items()} | {
        ("iamroles_key_set_fetches_total", ("issuer", "corp")): 2,
        ("iamroles_key_set_failures", ("issuer", "corp")): 0,
        ("iamroles_key_set_keys", ("issuer", "corp")): 0,
        ("iamroles_sts_calls_total", ("outcome", "rejected")): 1,
        ("iamroles_policy_loads_total", ("outcome", "accepted")): 1,
        ("iamroles_policy_loads_total", ("outcome", "rejected")): 1,
        ("iamroles_cuts_total", ("by", "filter"), ("cause", "expired")): 1,
        ("iamroles_cache_entries", ("cache", "verdict")): 41,
        ("iamroles_cache_entries", ("cache", "identity")): 0,
        ("iamroles_cache_lookups_total", ("cache", "verdict"), ("outcome", "hit")): 5,
        ("iamroles_cache_lookups_total", ("cache", "identity"), ("outcome", "miss")): 6,
    }
    assert {key: found.get(key) for key in expected} == expected
    [info] = [key for key in found if key[0] == "iamroles_agent_info"]
    assert ("policy", "sha256:feed") in info


@asynccontextmanager
async def served(metrics):
    host, _, port = (await metrics.serve()).rpartition(":")
    yield host, int(port)
    await metrics.close()


async def asked(address, request, source="127.0.0.1"):
    reader, writer = await asyncio.open_connection(*address, local_addr=(source, 0))
    writer.write(request)
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def test_served_over_http_and_a_head_request_gets_no_body(metrics):
    async with served(metrics) as address:
        text = await asked(address, b"GET /metrics HTTP/1.1\r\n\r\n")
        head = await asked(address, b"HEAD /metrics HTTP/1.1\r\n\r\n")

    assert b'iamroles_decisions_total{reason="",verdict="allow"} 0.0' in text
    assert head.endswith(b"Connection: close\r\n\r\n")


async def test_strangers_that_hold_connections_keep_nobody_out(metrics, caplog):
    """Each gets as far as it likes: silent, a byte, half a request, an answer that it does not read."""
    said = (b"", b"G", b"GET /metrics HTTP/1.1\r\n", b"GET /metrics HTTP/1.1\r\n\r\n")
    async with served(metrics) as address:
        held = []
        for number in range(4 * MOST):
            held.append((await asyncio.open_connection(*address))[1])
            held[-1].write(said[number % 4])
        assert (await asked(address, b"GET /healthz HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
        assert b"iamroles_decisions_total" in await asked(address, b"GET /metrics HTTP/1.1\r\n\r\n")
        assert len(metrics._server._guests._tasks) <= MOST
        for writer in held:
            writer.close()
    assert caplog.records == []


@pytest.mark.parametrize("said", [b"", b"GET /metrics HTTP/1.1\r\n\r\n"], ids=["silent", "asks"])
async def test_a_flood_of_another_address_takes_no_scrape_its_answer(metrics, monkeypatch, said):
    """A scrape that waits for its rendering was ended by the next 32 connections."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def render(_server):
        begun.set()
        await go_on.wait()
        return b"numbers"

    monkeypatch.setattr(scrape.MetricsServer, "_render", render)
    async with served(metrics) as address:
        scrape_ = asyncio.create_task(asked(address, b"GET / HTTP/1.0\r\n\r\n"))
        await begun.wait()
        held = []
        for _ in range(3 * MOST):
            held.append((await asyncio.open_connection(*address, local_addr=("127.0.0.2", 0)))[1])
            held[-1].write(said)
        await asked(address, b"GET /healthz HTTP/1.0\r\n\r\n", "127.0.0.2")
        go_on.set()
        assert (await scrape_).endswith(b"numbers")
        for writer in held:
            writer.close()


@pytest.mark.parametrize(
    "request_", [b"", b"G", b"\xff" * 9000, b"GET", b"G /healthz HTTP/1.1\r\nA: b"], ids=range(5)
)
async def test_a_request_that_does_not_end_is_ended(metrics, caplog, monkeypatch, request_):
    monkeypatch.setattr(scrape, "_PATIENCE", 0.05)
    async with served(metrics) as address:
        assert await asked(address, request_) == b""
    assert caplog.records == []


async def test_many_scrapes_are_rendered_once(metrics, monkeypatch):
    rendered = []
    monkeypatch.setattr(scrape, "generate_latest", lambda found: rendered.append(found) or b"numbers")
    monkeypatch.setattr(scrape, "_APART", 0.2)
    async with served(metrics) as address:
        answers = await asyncio.gather(*(asked(address, b"GET / HTTP/1.0\r\n\r\n") for _ in range(MOST)))

    assert {answer.rpartition(b"\r\n\r\n")[2] for answer in answers} == {b"numbers"}
    assert len(rendered) <= 2


def test_the_audit_log_reports_its_own_state(metrics, tmp_path):
    log = Audit(AuditSettings(path=str(tmp_path / "audit.jsonl")))
    metrics.audit = log.state

    assert scraped(metrics)["iamroles_audit_records_total",] == 1  # the start record
    log.close()


async def test_nothing_is_served_unless_asked():
    assert await Metrics(MetricsSettings()).serve() == ""


async def test_each_worker_has_the_port_after_the_one_before():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    second = Metrics(MetricsSettings(listen=f"127.0.0.1:{port - 1}"), worker=1)

    assert await second.serve() == f"127.0.0.1:{port}"
    await second.close()


async def test_a_busy_port_is_said():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=rf"metrics\.listen 127\.0\.0\.1:{port} cannot be used"):
            await Metrics(MetricsSettings(listen=f"127.0.0.1:{port}")).serve()


def _served(numbers):
    """Families by the name under which a query asks for them."""
    suffix = {"counter": "_total", "info": "_info"}
    return {family.name + suffix.get(family.type, ""): family for family in registry(numbers).collect()}


def _queries():
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return "\n".join(target["expr"] for panel in panels for target in panel.get("targets", []))


def test_the_dashboard_asks_only_for_metrics_that_exist_and_for_all(metrics):
    queries, served = _queries(), set(_served(metrics))
    asked = set(re.findall(r"iamroles_\w+", queries))

    assert len(asked) > 15
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked} <= served
    assert [name for name in served if name not in queries] == []


def test_the_dashboard_asks_for_labels_and_values_that_exist(metrics):
    metrics.cut("expired", "filter", 0.004)
    queries = _queries()
    found = [sample.labels for family in _served(metrics).values() for sample in family.samples]
    labels, values = ({text for about in found for text in part(about)} for part in (dict.keys, dict.values))
    grouped = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", queries))))
    quoted = re.findall(r'(?:verdict|reason|cache|outcome)=~?"([^"]*)"', queries)
    selected = set("|".join(quoted).split("|"))

    assert grouped - {"instance"} <= labels
    assert selected <= values
    assert selected


def test_the_dashboards_panels_lie_side_by_side():
    panels = json.loads(DASHBOARD.read_text())["panels"]
    places = [panel["gridPos"] for panel in panels]
    spans = ([range(place[at], place[at] + place[size]) for at, size in ("xw", "yh")] for place in places)
    taken = [point for span in spans for point in product(*span)]

    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)
