"""The configuration and the files that it names, changed under the server (see `tests/dns_served.py`)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from netplane.model.errors import Invalid

from ..dns_served import D, Scripted, Served, honest, until

pytestmark = pytest.mark.root


def test_the_configuration_is_reloaded_and_a_wrong_one_changes_nothing(
    served: Served, upstream: Callable[..., Scripted], tmp_path: Path
) -> None:
    upstream(1)
    upstream(2, lambda q: honest(q, address="192.0.2.2"))
    served.start("forward: {upstreams: [127.0.1.1]}")
    assert served.dig("example.com") == "NOERROR 192.0.2.1"
    served.write("forward: {upstreams: [127.0.1.2]}")  # and what was cached of the first is gone
    until(lambda: served.dig("example.com") == "NOERROR 192.0.2.2")
    for wrong, said in (
        (
            "forward: {upstreams: [127.0.1.1]}\npods: maybe\n",
            f"{served.path}:2: pods: 'maybe' is not supported",
        ),
        ("forward: {upstreams: [127.0.0.1]}", "127.0.0.1 port 53 is this server itself"),
        (
            "stubs: [{zone: in.cluster.local, upstreams: [127.0.1.1]}]",
            "stubs[0].zone: 'in.cluster.local' is within cluster.local, which is answered here",
        ),
        (f"hosts: {{file: {tmp_path}/none}}", "none: No such file or directory"),
        (f"tls: {{listen: [127.0.0.1], cert: {tmp_path}/c, key: {tmp_path}/k}}", "No such file"),
    ):
        served.write(wrong)
        until(lambda: said in served.setup.problem)  # noqa: B023
        assert served.dig("example.com") == "NOERROR 192.0.2.2"
        assert "netplane_dns_config_refused 1.0" in served.metrics()
    served.write("forward: {upstreams: [127.0.1.1]}")
    until(lambda: served.dig("example.com") == "NOERROR 192.0.2.1")
    assert served.setup.problem == ""


def test_a_wrong_file_at_the_start_is_refused(served: Served) -> None:
    with pytest.raises(Invalid, match=r"dns\.yaml:1: ttl: expected"):
        served.start("ttl: x")


def test_the_hosts_file_is_followed(served: Served, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("192.0.2.7 box\n")
    served.start(f"hosts: {{file: {hosts}}}")
    assert served.dig("box") == "NOERROR 192.0.2.7"
    hosts.write_text("192.0.2.8 box\n")
    until(lambda: served.dig("box") == "NOERROR 192.0.2.8")
    assert served.dig("-x", "192.0.2.8") == "NOERROR box."


def test_the_query_log_is_switched_and_sampled(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    served.start("ttl: 5")
    caplog.set_level(logging.INFO, "netplane.dns.query")
    served.dig(f"web.{D}")
    assert not caplog.records
    served.write("log: {queries: true, sample: 2}")
    until(lambda: served.server.log.every == 2)
    for _ in range(4):
        served.dig("+tcp", f"nope.{D}", "AAAA")
    assert len([r for r in caplog.records if r.name == "netplane.dns.query"]) == 2
    assert f"127.0.0.1 tcp nope.{D}. AAAA NXDOMAIN" in caplog.text
