"""A redis-server of a test's own, which may be killed, stopped and rolled back, and a proxy that cuts connections."""

import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
import redis

__all__ = ["TLS", "Proxy", "RedisServer", "redis_server", "sentinel_of"]

# Seconds for what ought to take a fraction of one.
LIMIT = 10

TLS = Path(__file__).with_name("tls")
_TICKS = os.sysconf("SC_CLK_TCK")


def find_redis():
    """The program, or the one that ``REDIS_SERVER`` names. Without it the test is skipped; in CI it fails."""
    if (program := shutil.which(os.environ.get("REDIS_SERVER", "redis-server"))) is None:
        stop = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        stop("redis-server is not installed: apt-get install redis-server")
    return program


def free_port():
    """A port of this machine, below those that the kernel gives to others."""
    while True:
        port = random.randrange(20_000, 32_000)
        with closing(socket.socket()) as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


class RedisServer:
    """
    A redis-server on a port of its own, or on a Unix socket. It writes nothing to disk unless a setting says so.

    Args:
        directory: Where it keeps its files, and its log.
        unix: It listens on a Unix socket in the directory instead.
        tls: It speaks TLS, with the certificate of ``tests/tls``.
        is_sentinel: It is a Sentinel.
        settings: As in redis.conf, with ``_`` for ``-``. ``appendfsync`` switches the append-only file on.

    Attributes:
        port: The port; 0 with ``unix``.
        path: Of the Unix socket; ``None`` without.
        log: The file.
    """

    def __init__(self, directory, *, unix=False, tls=False, is_sentinel=False, **settings):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.log = self.directory / "log"
        self.path = str(self.directory / "redis.sock") if unix else None
        self.tls = tls
        self.is_sentinel = is_sentinel
        self.settings = {} if is_sentinel else {"save": '""', "repl-diskless-sync-delay": 0}
        if "appendfsync" in settings:
            self.settings["appendonly"] = "yes"
        self.settings |= {name.replace("_", "-"): value for name, value in settings.items()}
        self.process = None
        self._program = find_redis()
        for _ in range(5):
            self.port = 0 if unix else free_port()
            if self._start():
                return
        pytest.fail(f"redis-server does not start:\n{self.log.read_text()}")

    @property
    def url(self):
        """What a hub connects to, without a password."""
        if self.path:
            return f"unix://{self.path}"
        return f"{'rediss' if self.tls else 'redis'}://127.0.0.1:{self.port}"

    def start(self):
        """Start it again with its files, on the same port. Returns once it answers."""
        assert self._start(), self.log.read_text()

    def _start(self):
        where = {"port": self.port, "bind": "127.0.0.1"}
        if self.path:
            where = {"port": 0, "unixsocket": self.path}
        elif self.tls:
            where = {
                "port": 0, "bind": "127.0.0.1", "tls-port": self.port, "tls-auth-clients": "no",
                "tls-cert-file": TLS / "localhost.pem", "tls-key-file": TLS / "localhost.key",
            }  # fmt: skip
        settings = where | {"dir": self.directory, "daemonize": "no"} | self.settings
        file = self.directory / "redis.conf"
        # A Sentinel writes down in it what it knows.
        if not (self.is_sentinel and file.exists()):
            lines = [f"{name} {line}" for name, value in settings.items() for line in _lines(value)]
            file.write_text("\n".join(lines) + "\n")
        command = [self._program, str(file), *(["--sentinel"] if self.is_sentinel else [])]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return self.wait_ready()

    def wait_ready(self, within=LIMIT):
        """Whether it answers within so many seconds."""
        end = time.monotonic() + within
        while time.monotonic() < end and self.process.poll() is None:
            with suppress(redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError):
                self.command("PING", timeout=0.2)
                # Of this process, not of one that had the port before.
                return self.is_sentinel or self.info("server")["process_id"] == self.process.pid
            time.sleep(0.005)
        self.kill()
        return False

    def client(self, **options):
        """A client of redis-py."""
        options = {"socket_timeout": LIMIT, "password": self.settings.get("requirepass")} | options
        if self.path:
            return redis.Redis(unix_socket_path=self.path, **options)
        if self.tls:
            options |= {"ssl": True, "ssl_ca_certs": str(TLS / "localhost.pem"), "ssl_check_hostname": False}
        return redis.Redis("127.0.0.1", self.port, **options)

    def command(self, *arguments, timeout=LIMIT):
        """The answer to a command, on a connection of its own."""
        with closing(self.client(socket_timeout=timeout, retry=None)) as client:
            return client.execute_command(*arguments)

    def info(self, section):
        """A part of INFO, by name."""
        return self.command("INFO", section)

    def set(self, **settings):
        """CONFIG SET, until it is started again."""
        for name, value in settings.items():
            self.command("CONFIG", "SET", name.replace("_", "-"), value)

    def signal(self, number):
        self.process.send_signal(number)

    def pause(self):
        """SIGSTOP: connections stay open, and nothing is answered."""
        self.signal(signal.SIGSTOP)

    def resume(self):
        self.signal(signal.SIGCONT)

    def kill(self):
        """SIGKILL: what was not written to disk is lost."""
        self.process.kill()
        self.process.wait(LIMIT)

    def stop(self):
        """SIGTERM: it writes everything to the files that it has."""
        self.process.terminate()
        self.process.wait(LIMIT)

    def restart(self):
        """``kill``, and ``start``."""
        self.kill()
        self.start()

    def copy_files(self, to):
        """Copy what it has written to disk."""
        shutil.copytree(self.directory, to, ignore=shutil.ignore_patterns("log", "redis.conf", "*.sock"))

    def put_back(self, copy):
        """Replace its files with a copy. Only while it does not run."""
        assert self.process.poll() is not None
        for path in self.directory.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.suffix in (".rdb", ".aof"):
                path.unlink()
        shutil.copytree(copy, self.directory, dirs_exist_ok=True)

    def replicate(self, master):
        """Become a replica of another one. Returns once it has everything."""
        self.command("REPLICAOF", "127.0.0.1", master.port)
        end = time.monotonic() + LIMIT
        while self.info("replication").get("master_link_status") != "up":
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.01)

    def promote(self):
        """Become a master again."""
        self.command("REPLICAOF", "NO", "ONE")

    @property
    def cpu(self):
        """Seconds of CPU that it took so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def close(self):
        """Kill it."""
        if self.process is not None:
            self.kill()


def _lines(value):
    return value if isinstance(value, list) else [value]


@contextmanager
def redis_server(directory, **options):
    """A ``RedisServer``, for as long as the block lasts."""
    with closing(RedisServer(directory, **options)) as server:
        yield server


@contextmanager
def sentinel_of(master, directory, *, name="main", down_after=500):
    """A Sentinel that watches ``master``, and promotes a replica of it after so many ms without an answer."""
    watch = [
        f"monitor {name} 127.0.0.1 {master.port} 1",
        f"down-after-milliseconds {name} {down_after}",
        f"failover-timeout {name} 5000",
    ]
    with redis_server(directory, is_sentinel=True, sentinel=watch) as server:
        yield server


class Proxy:
    """
    A TCP proxy in threads. What it does to connections may be changed at any time.

    Args:
        port: Of the server on 127.0.0.1 that it forwards to.
        splits: It knows where answers begin and end, and forwards whole ones.

    Attributes:
        target: As above; for new connections.
        port: Its own.
        connections: How many were accepted so far.
        loses: ``"requests"``, ``"answers"`` or both: what arrives of them is thrown away; or ``"messages"``: of the
            answers only what was published, if it splits them.
        lost: Bytes that were thrown away so far.
        refuses: New connections are closed at once.
        left: Bytes of answers that are still forwarded before all connections are cut, once; ``None``: no limit.
    """

    def __init__(self, port, *, splits=False):
        self.target = port
        self._splits = splits
        self.connections = 0
        self.loses = frozenset()
        self.lost = 0
        self.refuses = False
        self.left = None
        self._flows = threading.Event()
        self._flows.set()
        self._pairs = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = []
        self._start(self._accept)

    @property
    def url(self):
        """What a hub connects to."""
        return f"redis://127.0.0.1:{self.port}"

    def freeze(self):
        """Forward nothing from now on, and close nothing: as a network does that fails."""
        self._flows.clear()

    def thaw(self):
        """Forward what has arrived meanwhile, and what follows."""
        self._flows.set()

    def cut(self):
        """Close every connection; what was not forwarded is lost."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for sock in pair:
                # This wakes the thread that reads, which closes the socket.
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.refuses = True
        self.cut()
        self._flows.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(LIMIT)
        self._listener.close()

    def _start(self, function, *arguments):
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            try:
                if self.refuses:
                    raise ConnectionRefusedError
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                client.close()
                continue
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs.append((client, server))
            self._start(self._forward, client, server, "requests")
            self._start(self._forward, server, client, "answers")

    def _forward(self, source, target, direction):
        try:
            rest = b""
            while data := source.recv(1 << 16):
                self._flows.wait()
                if self._splits and direction == "answers":
                    answers, rest = _split(rest + data)
                    if "messages" in self.loses:
                        answers = [answer for answer in answers if not answer.startswith(b">3\r\n$7\r\nmessage")]
                    data = b"".join(answers)
                if direction in self.loses:
                    self.lost += len(data)
                    continue
                is_last = False
                if direction == "answers" and self.left is not None:
                    data = data[: self.left]
                    self.left -= len(data)
                    is_last = not self.left
                target.sendall(data)
                if is_last:
                    self.left = None
                    self.cut()
        except OSError:
            pass
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)
        source.close()


def _split(data):
    """The answers in ``data``, and the beginning of the next one."""
    answers, at = [], 0
    while True:
        try:
            end = _end_of(data, at)
        except ValueError:
            return answers, data[at:]
        answers.append(data[at:end])
        at = end


def _end_of(data, at):
    """Where the answer at ``at`` ends. ``ValueError``: later."""
    line = data.index(b"\r\n", at)
    end = line + 2
    kind = data[at : at + 1]
    if kind in b"*~>%|":
        for _ in range(int(data[at + 1 : line]) * (2 if kind in b"%|" else 1)):
            end = _end_of(data, end)
    elif kind in b"$=!" and (size := int(data[at + 1 : line])) >= 0:
        end += size + 2
        if end > len(data):
            raise ValueError
    return end
