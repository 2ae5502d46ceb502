"""What ``hub=`` takes: the grammar of the URLs of Redis, and errors that show no password."""

import pytest

from microws import FeatureUnavailable
from microws.hub_url import check_hub, directory_of, redis_address


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h", {"hosts": (("h", 6379),)}),
        ("redis://h/", {"hosts": (("h", 6379),)}),
        ("valkey://h:1/3", {"hosts": (("h", 1),), "db": 3}),
        ("redis://u:p%40%2Fx@h?prefix=A.b_c-1", {"username": "u", "password": "p@/x", "prefix": "A.b_c-1"}),
        ("REDIS://h", {"hosts": (("h", 6379),), "tls": None}),
        ("Rediss+Sentinel://h/Main", {"service": "Main", "tls": {}}),
        ("UNIX:///Run/r.sock", {"path": "/Run/r.sock"}),
        ("rediss://:pw@[::1]:7", {"hosts": (("::1", 7),), "password": "pw", "tls": {}}),
        ("valkeys://h?ssl_cert_reqs=none&ssl_ca_certs=/ca", {"tls": {"ssl_cert_reqs": "none", "ssl_ca_certs": "/ca"}}),
        ("unix:///run/r%20s.sock?db=2", {"path": "/run/r s.sock", "db": 2}),
        ("unix://u:p@/run/redis.sock", {"path": "/run/redis.sock", "username": "u", "password": "p"}),
        (
            "redis+sentinel://u:p@a:1,b,[::1]:2/main/4?sentinel_username=s&sentinel_password=t",
            {
                "hosts": (("a", 1), ("b", 26379), ("::1", 2)), "service": "main", "db": 4, "username": "u",
                "password": "p", "sentinel_username": "s", "sentinel_password": "t",
            },
        ),
        ("rediss+sentinel://a/main", {"hosts": (("a", 26379),), "service": "main", "tls": {}}),
    ],
)  # fmt: skip
def test_each_part_of_a_url_is_known(url, expected):
    address = redis_address(url)
    assert {name: getattr(address, name) for name in expected} == expected
    assert check_hub(url) == url
    assert directory_of(url) is None


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://", r"expected HOST, HOST:PORT or \[IPV6\]:PORT, got ''"),
        ("redis://h:x", "expected HOST, .*, got 'h:x'"),
        ("redis://::1", "expected HOST, .*, got '::1'"),
        ("redis://h:65536", "expected a port up to 65535, got 65536"),
        ("redis://a,b", "expected one host, got 2"),
        ("redis://h/x", "expected the number of a database, 0 or more, got 'x'"),
        ("redis://h?prefx=a", "expected the option prefix, got 'prefx'"),
        ("rediss://h?prefx=a", "expected the option prefix or ssl_cert_reqs or .*, got 'prefx'"),
        ("redis://h?ssl_cert_reqs=none", "expected rediss:// for ssl_cert_reqs, got redis://"),
        ("VALKEY+sentinel://h/m?ssl_ca_certs=x", r"expected valkeys\+sentinel:// for .*, got valkey\+sentinel://"),
        ("unix:///x?ssl_ca_certs=x", "expected the option prefix or db, got 'ssl_ca_certs'"),
        ("redis://h?sentinel_username=x", r"expected redis\+sentinel:// for sentinel_username, got redis://"),
        ("rediss://h?db=1", "expected the number of the database as redis://HOST/1, got it as an option"),
        ("rediss://h?ssl_cert_reqs=no", "expected ssl_cert_reqs to be one of required, optional, none, got 'no'"),
        *(
            (f"redis://h?prefix={prefix}", "expected prefix to have letters, digits, '.', '-' and '_' only, got '")
            for prefix in ("", "a:", "a:b", "a*", "a%20b", "a%0a", "%C3%A4")
        ),
        ("redis://h?prefix", "expected options as name=value, got 'prefix'"),
        ("redis://h?prefix=a&prefix=b", "expected each option once, in 'redis://h[?]prefix=a&prefix=b'"),
        ("unix://", "expected unix:///path/of/the/socket, got no path"),
        ("unix://run/redis.sock", "expected unix:///path/of/the/socket, got a host"),
        *(
            (url, "expected /, [?], # and @ as %2F, %3F, %23 and %40 in the user, password and options, in 'redis")
            for url in ("redis://:se/cret@h", "redis://u:se#cret@h", "redis://:12?34@h", "redis://u:p@a/b@h/0")
        ),
        ("unix:///x?db=-1", "expected the number of a database, 0 or more, got '-1'"),
        ("redis+sentinel://a", "expected the name of the service"),
        ("redis+sentinel://a//1", "expected the name of the service"),
        ("redis:h", "expected memory, local, local:PATH, redis://HOST or unix:///PATH, got 'redis:h'"),
        ("http://h", "expected memory, local"),
    ],
)
def test_an_invalid_url_is_refused(url, message):
    with pytest.raises(ValueError, match=message):
        check_hub(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:secret@h/x",
        "redis://:secret@h?foo=1",
        "redis://u:sec:ret@h/x",
        "redis://u:sec@ret@h/x",
        "redis://u:sec/ret@h",
        "redis://:sec#ret@h",
        "redis://:sec?ret@h",
        "redis://u:p@sec/ret@h",
        "unix://:secret@/x?db=x",
        "redis+sentinel://h?sentinel_password=secret",
        "http://u:secret@h",
        ":secret@h",
        "redis:u:secret@h",
    ],
)
def test_no_error_shows_a_password(url):
    with pytest.raises(ValueError, match=r"\*\*\*") as caught:
        check_hub(url)
    assert "sec" not in str(caught.value)
    assert "ret" not in str(caught.value)


def test_an_address_shows_no_password():
    address = redis_address("redis+sentinel://u:secret@h/main?sentinel_password=secret")
    assert repr(address) == "RedisAddress('redis+sentinel://u:***@h/main?sentinel_password=***')"


@pytest.mark.parametrize("scheme", ["redis+cluster", "rediss+cluster", "valkey+cluster"])
def test_a_cluster_is_refused(scheme):
    with pytest.raises(FeatureUnavailable, match="use one Redis or Sentinel, or several hubs on"):
        check_hub(f"{scheme}://h")
