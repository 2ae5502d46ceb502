"""Listening sockets: addresses, files of Unix sockets, inherited sockets, and TLS."""

import asyncio
import logging
import os
import resource
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from microws.server import listening
from microws.server.listening import ListenError, bind, tls_context
from microws.server.settings import InternetAddress, parse_address

TLS = Path(__file__).parent / "tls"


def listen_on(*texts):
    return bind([parse_address(text) for text in texts])


def close(listeners):
    for listener in listeners:
        listener.close()


def test_port_0_is_a_free_port_which_the_url_names():
    listeners = listen_on("127.0.0.1:0", "127.0.0.1:0")
    ports = [listener.sock.getsockname()[1] for listener in listeners]
    assert [listener.url for listener in listeners] == [f"http://127.0.0.1:{port}" for port in ports]
    assert len(set(ports)) == 2
    close(listeners)


def test_an_ipv6_url_has_brackets():
    listeners = bind([parse_address("[::1]:0")], secure=True)
    assert listeners[0].url == f"https://[::1]:{listeners[0].sock.getsockname()[1]}"
    close(listeners)


def test_a_name_with_several_numbers_binds_each_to_one_port(monkeypatch):
    def two_numbers(host, port, **options):
        # 192.0.2.1 is in no network (RFC 5737).
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]

    monkeypatch.setattr(listening.socket, "getaddrinfo", two_numbers)
    listeners = listen_on("both:0")
    assert [listener.sock.getsockname()[0] for listener in listeners] == ["::1", "127.0.0.1"]
    assert len({listener.sock.getsockname()[1] for listener in listeners}) == 1
    close(listeners)


def test_an_address_in_use_gets_a_hint_and_frees_the_others():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        [free] = listen_on("127.0.0.1:0")
        other = free.sock.getsockname()[1]
        free.close()
        with pytest.raises(ListenError, match=rf"^127.0.0.1:{port} is in use: .*--port {port + 1}$"):
            listen_on(f"127.0.0.1:{other}", f"127.0.0.1:{port}")
        close(listen_on(f"127.0.0.1:{other}"))


def test_a_name_in_use_on_one_number_frees_the_others(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        numbers = [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]
        monkeypatch.setattr(listening.socket, "getaddrinfo", lambda *_, **__: numbers)
        with pytest.raises(ListenError, match="in use"):
            listen_on(f"both:{port}")
    monkeypatch.undo()
    close(listen_on(f"[::1]:{port}"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied"), "ports below 1024"),
        (OSError(99, "Cannot assign requested address"), "is not an address of this machine"),
        (OSError(98, "Address already in use"), "--port 8000"),
        (OSError(12, "Cannot allocate memory"), "Cannot allocate memory"),
    ],
)
def test_an_error_of_the_system_gets_a_hint(error, message):
    assert message in listening._explain(InternetAddress("192.0.2.1", 65535), error)


def test_an_address_of_another_machine_and_an_unknown_host_are_named():
    with pytest.raises(ListenError, match=r"192\.0\.2\.1 is not an address of this machine"):
        listen_on("192.0.2.1:0")
    with pytest.raises(ListenError, match=r"got 'a\.\.b'"):
        listen_on("a..b:1")


def test_without_file_descriptors_bind_fails_in_one_line():
    first = os.open(os.devnull, os.O_RDONLY)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first, before[1]))
    try:
        with pytest.raises(ListenError, match=r"^cannot listen on 127\.0\.0\.1:0: Too many open files$"):
            listen_on("127.0.0.1:0")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        os.close(first)


def test_clients_are_refused_before_listen(tmp_path):
    for text in ("127.0.0.1:0", f"unix:{tmp_path / 'app.sock'}"):
        [listener] = listen_on(text)
        with socket.socket(listener.sock.family) as client, pytest.raises(ConnectionRefusedError):
            client.connect(listener.sock.getsockname())
        listener.listen()
        with socket.socket(listener.sock.family) as client:
            client.connect(listener.sock.getsockname())
        listener.close()


# Both families


def reaches(host, port, listener):
    """Whether a client that connects to this number is the listener's."""
    with socket.create_connection((host, port), 5) as client:
        try:
            accepted, name = listener.sock.accept()
        except BlockingIOError:
            return False
        accepted.close()
        return name[1] == client.getsockname()[1]


@pytest.mark.parametrize("texts", [("0.0.0.0:{}", "[::]:{}"), ("[::]:{}", "0.0.0.0:{}")])
def test_both_wildcards_may_have_one_port(texts):
    [free] = listen_on("[::]:0")
    port = free.sock.getsockname()[1]
    free.close()
    listeners = listen_on(*(text.format(port) for text in texts))
    for listener in listeners:
        listener.listen()
    by_family = {listener.sock.family: listener for listener in listeners}
    assert reaches("127.0.0.1", port, by_family[socket.AF_INET])
    assert reaches("::1", port, by_family[socket.AF_INET6])
    close(listeners)


def test_the_ipv6_wildcard_alone_keeps_the_systems_default():
    [listener] = listen_on("[::]:0")
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as untouched:
        default = untouched.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    assert listener.sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == default
    listener.close()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", ("asyncio", {"use_uvloop": True})], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("text", ["127.0.0.1:0", "[::1]:0"])
async def test_connections_have_tcp_nodelay(text):
    """Nagle's algorithm (RFC 896) would delay short messages."""
    connected = asyncio.get_running_loop().create_future()

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport):
            connected.set_result(transport)

    [listener] = listen_on(text)
    server = await asyncio.get_running_loop().create_server(Protocol, sock=listener.sock)
    with socket.create_connection(listener.sock.getsockname()[:2]):
        transport = await connected
        assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        transport.abort()
        server.close()
        await server.wait_closed()


# Unix sockets


def permissions(path):
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("mask", [0, 0o777])
def test_a_unix_sockets_file_has_mode_660_whatever_the_umask(tmp_path, mask):
    path = tmp_path / "app.sock"
    before = os.umask(mask)
    try:
        [listener] = listen_on(f"unix:{path}")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert permissions(path) == 0o660
    listener.close()


def test_the_file_has_its_mode_from_the_first_moment(tmp_path):
    path = tmp_path / "app.sock"
    seen, ended = set(), threading.Event()

    def look():
        while not ended.is_set():
            try:
                seen.add(permissions(path))
            except FileNotFoundError:
                continue

    interval = sys.getswitchinterval()
    before = os.umask(0)
    looking = threading.Thread(target=look)
    sys.setswitchinterval(1e-6)
    looking.start()
    try:
        for _ in range(100):
            close(bind([parse_address(f"unix:{path}")], unix_mode=0o600))
        [listener] = bind([parse_address(f"unix:{path}")], unix_mode=0o600)
        while not seen:
            pass
    finally:
        ended.set()
        looking.join()
        sys.setswitchinterval(interval)
        os.umask(before)
    listener.close()
    assert seen == {0o600}


def test_a_socket_for_every_user_is_warned_of(tmp_path, caplog):
    for mode, count in ((0o660, 0), (0o666, 1)):
        caplog.clear()
        close(bind([parse_address(f"unix:{tmp_path / 'app.sock'}")], unix_mode=mode))
        assert [record.levelno for record in caplog.records] == [logging.WARNING] * count
    assert "every user of this machine can connect to unix:" in caplog.text
    assert "(--unix-mode 666)" in caplog.text


TAKE = """
import sys
from microws.server.listening import ListenError, bind
from microws.server.settings import parse_address
try:
    [listener] = bind([parse_address(sys.argv[1])])
except ListenError as error:
    print(error, flush=True)
else:
    print("bound", flush=True)
    sys.stdin.readline()
    listener.listen()
    print("listening", flush=True)
    sys.stdin.readline()
    listener.close()
"""


def taking(path):
    return subprocess.Popen(
        [sys.executable, "-c", TAKE, f"unix:{path}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def go_on(process):
    process.stdin.write("\n")
    process.stdin.flush()


def test_one_of_several_new_servers_gets_the_file_of_a_killed_one(tmp_path):
    path = tmp_path / "app.sock"
    with taking(path) as killed:
        assert killed.stdout.readline() == "bound\n"
        killed.kill()
    assert path.is_socket()
    processes = [taking(path) for _ in range(3)]
    # None of them listens yet.
    lines = [process.stdout.readline() for process in processes]
    assert sum(line.startswith(f"unix:{path} is in use: ") for line in lines) == 2
    winner = processes[lines.index("bound\n")]
    go_on(winner)
    assert winner.stdout.readline() == "listening\n"
    with pytest.raises(ListenError, match=r"app\.sock is in use"):
        listen_on(f"unix:{path}")
    go_on(winner)
    for process in processes:
        process.communicate(timeout=10)
    assert list(tmp_path.iterdir()) == []


def test_a_socket_in_use_is_refused_and_a_stale_one_replaced(tmp_path):
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(ListenError, match=r"app\.sock is in use"):
            listen_on(f"unix:{path}")
    [first] = listen_on(f"unix:{path}")
    # A program that ignores the lock takes the path over: its file stays.
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        first.close()
        assert path.is_socket()
    [second] = listen_on(f"unix:{path}")
    second.close()
    second.close()
    assert list(tmp_path.iterdir()) == []


def test_files_of_a_relative_path_are_removed_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [listener] = listen_on("unix:app.sock")
    monkeypatch.chdir("/")
    listener.close()
    assert list(tmp_path.iterdir()) == []


def test_symbolic_links_are_not_followed(tmp_path):
    path, target = tmp_path / "app.sock", tmp_path / "precious"
    target.write_text("precious")
    path.symlink_to(target)
    with pytest.raises(ListenError, match="got another kind of file"):
        listen_on(f"unix:{path}")
    path.unlink()
    lock = tmp_path / "app.sock.lock"
    lock.symlink_to(target)
    with pytest.raises(ListenError, match="cannot listen on"):
        listen_on(f"unix:{path}")
    assert target.read_text() == "precious"
    assert permissions(target) == 0o666 & ~umask()


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_invalid_unix_path_is_refused(tmp_path):
    (tmp_path / "file").write_text("precious")
    for path, message in (
        ("file", "got another kind of file"),
        ("none/app.sock", "No such file"),
        ("x" * 200, "too long"),
    ):
        with pytest.raises(ListenError, match=message):
            listen_on(f"unix:{tmp_path / path}")
    assert (tmp_path / "file").read_text() == "precious"


def test_a_socket_that_refuses_streams_is_in_use(tmp_path):
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(ListenError, match="in use"):
            listen_on(f"unix:{path}")


# Sockets of the parent process, and TLS


def test_an_inherited_socket_is_used():
    parent = socket.create_server(("127.0.0.1", 0))
    number = parent.detach()
    os.set_inheritable(number, True)
    [listener] = listen_on(f"fd://{number}")
    listener.listen()
    assert listener.sock.fileno() == number
    assert not os.get_inheritable(number)
    assert listener.url.startswith("http://127.0.0.1:")
    listener.close()


def test_an_inherited_file_must_be_a_stream_socket():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        with pytest.raises(ListenError, match="expected a stream socket"):
            listen_on(f"fd://{datagrams.fileno()}")
        assert datagrams.fileno() >= 0
    read, write = os.pipe()
    with pytest.raises(ListenError, match="is not a socket of this process"):
        listen_on(f"fd://{read}")
    os.close(read)
    os.close(write)


def test_an_unusable_certificate_is_named_with_the_reason(tmp_path):
    with pytest.raises(ListenError, match=r"--certfile: expected a PEM file, got .*none"):
        tls_context(str(tmp_path / "none"), None)
    (tmp_path / "empty.pem").write_text("")
    with pytest.raises(ListenError, match=r"cannot use the certificate '.*empty\.pem'"):
        tls_context(str(tmp_path / "empty.pem"), None)
    certificate, key = str(TLS / "localhost.pem"), str(TLS / "localhost.key")
    damaged = tmp_path / "damaged.key"
    damaged.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    for files, reason in (
        ((key, certificate), r"no PEM certificate in '.*localhost\.key'"),
        ((certificate, certificate), r"no PEM private key in '.*localhost\.pem'"),
        ((certificate, str(damaged)), "one is damaged, or the key is not that of the certificate"),
    ):
        with pytest.raises(ListenError, match=rf": {reason}$"):
            tls_context(*files)


@pytest.mark.timeout(10)
def test_an_encrypted_key_is_refused_without_a_prompt():
    with pytest.raises(ListenError, match=r"got '.*encrypted\.key'; decrypt it: openssl pkey -in "):
        tls_context(str(TLS / "localhost.pem"), str(TLS / "encrypted.key"))
