"""The redis-server and the proxy of the tests do to a connection what their names say."""

import shutil
import socket
import time
from contextlib import closing, suppress

import pytest
import redis
import redis_server as module
from redis_server import LIMIT, Proxy, free_port, redis_server, sentinel_of

PONG = b"+PONG\r\n"


@pytest.fixture
def server(tmp_path):
    with redis_server(tmp_path / "redis") as server:
        yield server


def connected(port):
    return closing(socket.create_connection(("127.0.0.1", port), LIMIT))


def ping(sock, *, until=b"\n"):
    """What is received until the answer is complete, or the connection ends."""
    got = b""
    with suppress(ConnectionResetError, BrokenPipeError):
        sock.sendall(b"PING\r\n")
        while not got.endswith(until) and (data := sock.recv(100)):
            got += data
    return got


def test_a_killed_server_keeps_what_it_wrote_to_disk(tmp_path):
    with redis_server(tmp_path / "a", appendfsync="always") as durable, redis_server(tmp_path / "b") as volatile:
        for server in (durable, volatile):
            run = server.info("server")["run_id"]
            server.command("SET", "a", 1)
            server.restart()
            assert server.info("server")["run_id"] != run
        assert durable.command("GET", "a") == b"1"
        assert volatile.command("GET", "a") is None


def test_the_files_of_a_server_are_put_back(tmp_path):
    with redis_server(tmp_path / "redis", appendfsync="always") as server:
        server.command("SET", "a", 1)
        server.copy_files(tmp_path / "copy")
        server.command("SET", "a", 2)
        server.kill()
        server.put_back(tmp_path / "copy")
        server.start()
        assert server.command("GET", "a") == b"1"


def test_a_paused_server_answers_later(server):
    server.pause()
    with closing(server.client(socket_timeout=0.05, retry=None)) as client, pytest.raises(redis.TimeoutError):
        client.ping()
    server.resume()
    assert server.command("PING")


def test_settings_and_cpu_are_of_the_server(tmp_path):
    with redis_server(tmp_path / "redis", requirepass="secret", maxmemory="20mb") as server:
        server.set(maxmemory_policy="allkeys-lru")
        assert server.info("memory")["maxmemory_policy"] == "allkeys-lru"
        assert server.info("memory")["maxmemory"] == 20 << 20
        with closing(server.client(password=None, retry=None)) as client, pytest.raises(redis.AuthenticationError):
            client.ping()
        before = server.cpu
        while server.cpu == before:
            server.command("EVAL", "for i = 1, 1000000 do end", 0)


@pytest.mark.parametrize("options", [{"unix": True}, {"tls": True}], ids=str)
def test_a_server_listens_on_a_unix_socket_or_with_tls(tmp_path, options):
    with redis_server(tmp_path / "redis", **options) as server:
        assert server.command("PING")
        assert server.url.startswith("unix:///" if "unix" in options else "rediss://127.0.0.1:")


def test_a_replica_is_promoted(tmp_path, server):
    with redis_server(tmp_path / "replica") as replica:
        server.command("SET", "a", 1)
        replica.replicate(server)
        assert replica.command("GET", "a") == b"1"
        with pytest.raises(redis.ReadOnlyError):
            replica.command("SET", "a", 2)
        replica.promote()
        assert replica.command("SET", "a", 2)


def test_a_sentinel_names_the_master(tmp_path, server):
    with sentinel_of(server, tmp_path / "sentinel") as sentinel:
        [(_, port)] = [sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")]
        assert int(port) == server.port


def test_a_port_in_use_is_not_taken(tmp_path, monkeypatch):
    ports = [free_port(), free_port()]
    with socket.create_server(("127.0.0.1", ports[0])):
        monkeypatch.setattr(module, "free_port", iter(ports).__next__)
        with redis_server(tmp_path / "redis") as server:
            assert server.port == ports[1]


def test_a_missing_server_skips_a_test_but_fails_ci(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for ci, outcome in (("true", pytest.fail.Exception), ("", pytest.skip.Exception)):
        monkeypatch.setenv("CI", ci)
        with pytest.raises(outcome, match="redis-server is not installed"), redis_server(tmp_path / "redis"):
            pass


class TestProxy:
    @pytest.fixture(autouse=True)
    def proxied(self, server):
        with Proxy(server.port) as self.proxy:
            yield

    def test_it_forwards_large_answers(self, server):
        with closing(redis.Redis("127.0.0.1", self.proxy.port)) as client:
            client.set("a", "x" * 5_000_000)
            assert len(client.get("a")) == 5_000_000
            assert self.proxy.connections == 1

    def test_it_cuts_connections(self):
        with connected(self.proxy.port) as sock:
            assert ping(sock) == PONG
            self.proxy.cut()
            assert ping(sock) == b""
        with connected(self.proxy.port) as sock:
            assert ping(sock) == PONG
        assert self.proxy.connections == 2
        self.proxy.refuses = True
        for _ in range(3):
            with connected(self.proxy.port) as sock:
                assert ping(sock) == b""

    def test_a_frozen_one_closes_nothing(self):
        with connected(self.proxy.port) as sock:
            assert ping(sock) == PONG
            self.proxy.freeze()
            sock.settimeout(0.05)
            with pytest.raises(TimeoutError):
                ping(sock)
            self.proxy.thaw()
            sock.settimeout(LIMIT)
            assert sock.recv(100) == PONG

    @pytest.mark.parametrize(("direction", "expected"), [("requests", None), ("answers", b"1")])
    def test_it_loses_one_direction(self, server, direction, expected):
        with connected(self.proxy.port) as sock:
            assert ping(sock) == PONG
            self.proxy.loses = {direction}
            sock.sendall(b"SET a 1\r\n")
            end = time.monotonic() + LIMIT
            while not self.proxy.lost and time.monotonic() < end:
                time.sleep(0.001)
            self.proxy.loses = {}
            assert ping(sock) == PONG
        assert server.command("GET", "a") == expected

    def test_it_loses_messages_alone(self, server):
        with Proxy(server.port, splits=True) as proxy, connected(proxy.port) as sock:
            sock.sendall(b"HELLO 3\r\nSUBSCRIBE a\r\n")
            got = b""
            while b"subscribe\r\n$1\r\na\r\n:1\r\n" not in got:
                got += sock.recv(1 << 16)
            for number, loses in enumerate([(), {"messages"}, ()]):
                proxy.loses = loses
                assert server.command("PUBLISH", "a", number) == 1
                expected = b"" if loses else b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\n%d\r\n" % number
                assert ping(sock, until=PONG) == expected + PONG

    def test_it_cuts_after_so_many_bytes(self):
        with connected(self.proxy.port) as sock:
            assert ping(sock) == PONG
            self.proxy.left = 4
            assert ping(sock) == b"+PON"

    def test_the_end_of_the_server_ends_connections(self, server):
        with connected(self.proxy.port) as sock:
            assert ping(sock) == PONG
            server.kill()
            assert ping(sock) == b""
