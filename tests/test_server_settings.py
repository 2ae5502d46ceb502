"""The settings of a server: each value is checked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microws.server.settings import (
    FileDescriptor,
    InternetAddress,
    Settings,
    UnixPath,
    check_setting,
    parse_address,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8000", InternetAddress("127.0.0.1", 8000)),
        ("localhost:0", InternetAddress("localhost", 0)),
        ("my_host-1.example:65535", InternetAddress("my_host-1.example", 65535)),
        ("[::1]:80", InternetAddress("::1", 80)),
        ("[fe80::1%eth0]:80", InternetAddress("fe80::1%eth0", 80)),
        ("unix:/run/app.sock", UnixPath("/run/app.sock")),
        ("unix:app.sock", UnixPath("app.sock")),
        ("fd://3", FileDescriptor(3)),
    ],
)
def test_an_address_round_trips(text, address):
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "localhost", "127.0.0.1:", "::1:80", "[::1]", "h:65536", "h:-1", "a b:1", "unix:", "fd://", "fd://x",
        "http://h:1",
    ],
)  # fmt: skip
def test_an_invalid_address_is_refused_with_the_valid_forms(text):
    with pytest.raises(ValueError, match="expected"):
        parse_address(text)


def test_an_address_without_a_host_gets_a_hint():
    with pytest.raises(ValueError, match="write --port 8000"):
        parse_address("8000")
    with pytest.raises(ValueError, match=r"write '0\.0\.0\.0:8000'"):
        parse_address(":8000")


@given(st.text())
def test_any_text_is_an_address_or_a_value_error(text):
    try:
        address = parse_address(text)
    except ValueError:
        return
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (1, 1),
        ("65536", 65536),
        ("64KiB", 65536),
        ("1 MiB", 1 << 20),
        ("1mb", 10**6),
        ("1.5kB", 1500),
        ("2GiB", 2 << 30),
    ],
)
def test_a_size_is_a_number_with_or_without_a_unit(value, size):
    assert parse_size(value) == size


@pytest.mark.parametrize("value", [0, "0", "0.5B", -1, "-1", "1 TiB", "MiB", "", "1e3", True, 1.5j, None, "1" * 400])
def test_an_invalid_size_is_refused(value):
    with pytest.raises(ValueError, match="expected"):
        parse_size(value)


@given(st.text())
def test_any_text_is_a_size_or_a_value_error(text):
    try:
        assert parse_size(text) >= 1
    except ValueError:
        pass


@pytest.mark.parametrize(
    ("name", "value", "held"),
    [
        ("bind", "a:1, [::1]:2", ("a:1", "[::1]:2")),
        ("bind", ["a:1"], ("a:1",)),
        ("port", "0", 0),
        ("port", None, None),
        ("loop", "TRIO", "trio"),
        ("root_path", "/api/", "/api"),
        ("root_path", "", ""),
        ("forwarded_allow_ips", "127.0.0.1, ::1 ,unix,10.0.0.0/8", ("127.0.0.1", "::1", "unix", "10.0.0.0/8")),
        ("forwarded_allow_ips", ["*"], ("*",)),
        ("forwarded_allow_ips", "", ()),
        ("forwarded_allow_ips", [], ()),
        ("ping_interval", "0", 0),
        ("drain_timeout", 2.5, 2.5),
        ("drain_spread", "0.5", 0.5),
        ("access_log", "off", False),
        ("access_log", "Yes", True),
        ("access_log", True, True),
        ("max_message_size", "1MiB", 1 << 20),
        ("max_head_size", "32KiB", 32 << 10),
        ("keep_alive", "0", 0),
        ("stop_delay", 5, 5),
        ("unix_mode", "660", 0o660),
        ("unix_mode", "0600", 0o600),
        ("unix_mode", "0o777", 0o777),
        ("unix_mode", 0o666, 0o666),
        ("server", "Hypercorn", "hypercorn"),
    ],
)
def test_a_value_is_converted(name, value, held):
    assert check_setting(name, value) == held
    assert getattr(Settings(**{name: value}), name) == held


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("bind", 8000, "HOST:PORT"),
        ("bind", [8000], "HOST:PORT"),
        ("host", "", "text"),
        ("host", "a\0b", "text"),
        ("port", 65536, "0 to 65535"),
        ("port", True, "0 to 65535"),
        ("port", "٣", "0 to 65535"),
        ("loop", "curio", "auto, asyncio, uvloop or trio"),
        ("root_path", "api", "begins with '/'"),
        ("root_path", "/a b", "begins with '/'"),
        ("root_path", "/a?b", "begins with '/'"),
        ("forwarded_allow_ips", "proxy.example", "IP addresses"),
        ("forwarded_allow_ips", "127.0.0.1:80", "IP addresses"),
        ("forwarded_allow_ips", 127, "IP addresses"),
        ("forwarded_allow_ips", [127], "IP addresses"),
        ("ping_interval", "never", "seconds"),
        ("drain_timeout", -1, "seconds"),
        ("drain_timeout", "inf", "seconds"),
        ("drain_timeout", "nan", "seconds"),
        ("drain_timeout", True, "seconds"),
        ("max_head_size", 0, "at least 1 byte"),
        ("max_head_size", 1023, "a size from 1KiB to 1MiB"),
        ("max_head_size", "1.1MiB", "a size from 1KiB to 1MiB"),
        ("unix_mode", "rw-rw----", "octal mode"),
        ("unix_mode", "1777", "octal mode"),
        ("unix_mode", 660, "octal mode"),
        ("unix_mode", True, "octal mode"),
        ("unix_mode", -1, "octal mode"),
        ("server", "granian", "microws or hypercorn"),
        ("server", "uvicorn", "microws or hypercorn"),
        ("log_level", "loud", "debug, info, warning, error or critical"),
        ("log_format", "xml", "text or json"),
        ("access_log", "perhaps", "true or false"),
        ("access_log", 1, "true or false"),
    ],
)
def test_an_invalid_value_names_the_setting_and_what_was_expected(name, value, expected):
    with pytest.raises(ValueError, match=rf"^{name}: expected .*{expected.replace('/', '.')}.*, got "):
        Settings(**{name: value})


def test_a_network_with_host_bits_is_refused_with_both_readings():
    with pytest.raises(ValueError, match=r"got '10\.0\.0\.1/8'; write '10\.0\.0\.0/8', or '10\.0\.0\.1' for the one"):
        Settings(forwarded_allow_ips="10.0.0.1/8")


def test_contradicting_settings_are_refused():
    with pytest.raises(ValueError, match=r"^expected either bind, or host and port, got both; leave out one of them$"):
        Settings(bind="a:1", port=2)
    with pytest.raises(ValueError, match=r"^keyfile: expected certfile too, got the key alone; add the certificate$"):
        Settings(keyfile="x")


def test_trio_selects_hypercorn_and_refuses_microws():
    assert Settings(loop="trio").server == "hypercorn"
    with pytest.raises(
        ValueError, match=r"^loop: expected .* with the server microws, got 'trio'; for trio set server to "
    ):
        Settings(loop="trio", server="microws")


@pytest.mark.parametrize("server", [{"server": "hypercorn"}, {"loop": "trio"}])
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("body_timeout", 5, "no value with the server hypercorn, .*, got 5; leave it"),
        ("ping_timeout", 5, "no value with the server hypercorn, .*, got 5; leave it"),
        ("write_timeout", 0, "no value with the server hypercorn, .*, got 0; leave it"),
        ("keep_alive", 0, "more than 0 seconds with the server hypercorn, which cannot close"),
    ],
)
def test_a_setting_that_hypercorn_does_not_have_is_refused(server, name, value, expected):
    with pytest.raises(ValueError, match=f"^{name}: expected {expected}"):
        Settings(**server, **{name: value})


def test_the_default_address_is_port_8000_of_this_machine():
    assert Settings().addresses == [InternetAddress("127.0.0.1", 8000)]
    assert Settings(host="0.0.0.0", port=1).addresses == [InternetAddress("0.0.0.0", 1)]
    assert Settings(bind="fd://3").addresses == [FileDescriptor(3)]
