"""The DNS configuration file: what it means, and what is refused with which line and reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from netplane.dns import config
from netplane.dns.upstreams import Upstream, parse_upstream
from netplane.model.errors import Invalid

WHOLE = """\
ttl: 30
negativeTTL: 10
pods: insecure
autopath: true
forward:
  upstreams: [/etc/resolv.conf, 9.9.9.9, "tls://[2620:fe::fe]:853@dns.quad9.net", tcp://1.1.1.1:5353]
  policy: random
  timeout: 2
  attempts: 2
  inFlight: 64
  probeInterval: 1.5
stubs:
  - zone: corp.example.
    upstreams: [10.0.0.53]
  - zone: 10.in-addr.arpa
    upstreams: [10.0.0.53]
cache:
  {size: 100, maxTTL: 60, negativeTTL: 5, servfailTTL: 1, serveStale: 0, prefetch: {hits: 2, percent: 20}}
hosts: {file: /etc/hosts, ttl: 60}
tls: {listen: [10.0.0.1, "[fd00::1]:8853"], cert: /c.pem, key: /k.pem}
log: {queries: true, sample: 100}
"""


def test_a_whole_file() -> None:
    found = config.parse(WHOLE)
    assert found.forward is not None and found.tls is not None
    assert found.forward.sources == (
        "/etc/resolv.conf",
        Upstream("9.9.9.9"),
        Upstream("2620:fe::fe", 853, "tls", "dns.quad9.net"),
        Upstream("1.1.1.1", 5353, "tcp"),
    )
    assert found.cache.options == (100, 60, 5, 1, 2, 0.2, 0)
    assert found.tls.addresses == (("10.0.0.1", 853), ("fd00::1", 8853))
    assert found.files == ("/etc/hosts", "/c.pem", "/k.pem") and found.log.every == 100


def test_an_empty_file_is_the_defaults() -> None:
    assert config.parse("") == config.parse("# nothing\n") == config.DnsConfig()
    assert config.DnsConfig().pods == "verified" and config.DnsConfig().log.every == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ttl: 5\nfoward: {}\n", "f:2: foward: object contains unknown field `foward`"),
        ("forward:\n  upstreams: []\n  polcy: x\n", "f:3: forward.polcy: object contains unknown field"),
        ("pods: yes please\n", "f:1: pods: 'yes please' is not supported; use one of 'disabled'"),
        ("\nttl: five\n", "f:2: ttl: expected `int`, got `str`"),
        ("ttl: -1\n", "f:1: ttl: -1 is out of bounds: it must be 0 to 3600"),
        ("forward:\n  upstreams:\n   - 1.1.1.1\n   - nine\n", "f:4: forward.upstreams[1]: upstream 'nine'"),
        ("forward: {upstreams: [udp://1.1.1.1@x]}\n", "f:1: forward.upstreams[0]: upstream 'udp:"),
        ("stubs:\n- zone: a.b\n  upstreams: []\n", "f:3: stubs[0].upstreams: a stub domain needs at"),
        ("stubs:\n- upstreams: [1.1.1.1]\n", "f:2: stubs[0]: object missing required field `zone`"),
        (
            "stubs:\n- {zone: a.b, upstreams: [1.1.1.1]}\n- {zone: A.B., upstreams: [1.1.1.1]}\n",
            "f:3: stubs[1].zone: 'A.B' is not a DNS name",
        ),
        (
            "stubs:\n- {zone: a.b, upstreams: [1.1.1.1]}\n- {zone: a.b., upstreams: [1.1.1.1]}\n",
            "f:3: stubs[1].zone: ",
        ),
        ("tls: {listen: [host], cert: /c, key: k}\n", "f:1: tls.listen[0]: 'host': it takes IP"),
        ("tls: {listen: [\"::1\"], cert: /c, key: k}\n", "f:1: tls.key: 'k' is not an absolute path"),
        ("cache:\n  prefetch:\n    percent: 0\n", "f:3: cache.prefetch.percent: 0 is out of bounds"),
        ("a: 1\na: 2\n", "f: line 2: the key 'a' stands twice"),
        ("a: [\n", "f: line 2 not YAML"),
        ("- 1\n", "f:1: the DNS configuration is a mapping such as 'ttl: 5', not a list"),
        ("ttl: 1\n---\nttl: 2\n", "f: 2 documents: the DNS configuration is one"),
    ],
)  # fmt: skip
def test_what_is_refused_says_where_and_why(text: str, said: str) -> None:
    with pytest.raises(Invalid) as caught:
        config.parse(text, "f")
    assert said in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"/dns.yaml: No such file or directory"):
        config.read(str(tmp_path / "dns.yaml"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("10.0.0.1", "10.0.0.1:53"), ("fd00::1", "[fd00::1]:53"), ("[fd00::1]:54", "[fd00::1]:54"),
        ("tcp://10.0.0.1", "tcp://10.0.0.1:53"), ("tls://10.0.0.1@a.b", "tls://10.0.0.1:853"),
    ],
)  # fmt: skip
def test_an_upstream_in_words(text: str, shown: str) -> None:
    assert str(parse_upstream(text)) == shown


@pytest.mark.parametrize("text", ["", "x", "1.1.1.1:0", "1.1.1.1:x", "https://1.1.1.1", "[::1", "1.1.1.1@x"])
def test_no_upstream(text: str) -> None:
    with pytest.raises(Invalid):
        parse_upstream(text)


def test_the_example_in_the_documentation_is_a_whole_file() -> None:
    page = (Path(__file__).parents[2] / "docs/dns.md").read_text()
    text = page.partition("```yaml\n")[2].partition("```")[0]
    found = config.parse(text, "docs/dns.md")
    assert found.stubs and found.tls and found.hosts and found.forward
    assert found.cache == config.CacheConfig() and found.log == config.LogConfig()  # it shows the defaults
    assert found.forward.limits == config.Limits()
