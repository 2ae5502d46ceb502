"""
Runs the cluster on this machine: Redis, two servers, "left" and "right", with two workers each, and nginx before them.
Clients connect through nginx, messages are published, and left is killed without warning. Then it prints where the
clients went, and that they missed nothing.

    python examples/cluster/demo.py
    python examples/cluster/demo.py --keep      (goes on until Ctrl-C, for a look at the page)

It needs redis-server, nginx, and pip install 'microws[redis]'. All files are in a temporary folder.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import Request, urlopen

from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

FOLDER = Path(__file__).parent
MESSAGES, KILLED_AFTER = 300, 100
LIMIT = 20  # seconds for what takes one or two
SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Around nginx.conf, which is made for /etc/nginx/conf.d.
FRAME = """\
daemon off; pid nginx.pid; {user} worker_processes 1; events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path a; proxy_temp_path b; fastcgi_temp_path c; uwsgi_temp_path d; scgi_temp_path e;
    {conf}
}}
"""


class Client(threading.Thread):
    """A client that connects again when it is disconnected, and names the position of the last message that it got."""

    def __init__(self, name, url, published):
        super().__init__(daemon=True)
        self.name, self.url, self.published = name, url, published
        self.position = "start"
        self.numbers = []
        self.processes = []  # those that served it
        self.resumed_at = ""  # a position
        self.due = self.caught_up = 0
        self.gaps = 0

    def run(self):
        while not self.is_done:
            try:
                self.listen()
            except (OSError, HTTPException, WebSocketException):
                pass
            time.sleep(0.2 + 0.3 * random.random())  # not all clients at the same moment

    def open(self):
        self.due = len(self.published)
        if self.processes:
            self.resumed_at = self.position

    def take(self, position, message):
        self.position = position
        self.numbers.append(number := int(message["text"]))
        self.caught_up += number < self.due

    @property
    def is_done(self):
        return self.numbers[-1:] == [MESSAGES - 1]

    @property
    def missing(self):
        return MESSAGES - len(set(self.numbers))

    @property
    def twice(self):
        return len(self.numbers) - len(set(self.numbers))


class WebSocketClient(Client):
    def listen(self):
        url = f"{self.url.replace('http', 'ws')}/ws?since={self.position}"
        with connect(url, subprotocols=["microws.v1"], open_timeout=LIMIT) as ws:
            self.open()
            for data in ws:
                message = json.loads(data)
                if "data" in message and "topic" not in message:  # from the view
                    self.processes.append(message["data"]["process"])
                elif "data" in message:
                    self.take(message["id"], message["data"])
                elif message.get("gap") or message.get("recovered") is False:
                    self.gaps += 1
                if self.is_done:
                    return


class EventClient(Client):
    def listen(self):
        headers = {} if self.position == "start" else {"Last-Event-ID": self.position}
        with urlopen(Request(f"{self.url}/events", headers=headers), timeout=LIMIT) as response:
            self.open()
            self.processes.append(response.headers["set-cookie"].partition("=")[2])
            event = {}
            for line in response:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                event[name] = value
                if not name:
                    self.gaps += event.get("event") == "gap"
                    if "data" in event and "event" not in event:
                        self.take(event["id"], json.loads(event["data"]))
                    event = {}
                if self.is_done:
                    return


@contextmanager
def uninterrupted():
    """Let Ctrl-C wait until the block ends: otherwise a program that has just been started would go on."""
    received = []
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt


class Programs:
    """The programs that were started, each with the processes that it starts in a group of its own."""

    def __init__(self, folder):
        self.folder = folder

    def __enter__(self):
        self.running = {}
        return self

    def __exit__(self, *_):
        with uninterrupted():
            for name in [*self.running]:
                self.kill(name)

    def start(self, name, *command, **environment):
        with (self.folder / f"{name}.log").open("ab") as log, uninterrupted():
            self.running[name] = subprocess.Popen(
                command,
                cwd=self.folder,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self, name):
        process = self.running.pop(name)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def wait_for(self, what, is_true):
        end = time.monotonic() + LIMIT
        while not is_true():
            ended = [name for name, process in self.running.items() if process.poll() is not None]
            if ended or time.monotonic() > end:
                logs = "\n".join(path.read_text() for path in self.folder.glob("*.log"))
                sys.exit(f"expected {what}, got {f'the end of {ended[0]}' if ended else 'nothing'}; the logs:\n{logs}")
            time.sleep(0.02)


def find(name):
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    return found or sys.exit(f"{name} is not installed: apt-get install {name}")


def free_port():
    """A port below those that the system gives to others."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def responds(url):
    try:
        with urlopen(url, timeout=1):
            return True
    except OSError:
        return False


def process_at(url):
    """The process that serves the next event stream."""
    with urlopen(f"{url}/events", timeout=1) as response:
        return response.headers["set-cookie"].partition("=")[2]


def start_server(programs, name, port, redis_port):
    command = [sys.executable, "-m", "microws", "run", str(FOLDER / "app.py"), "--port", str(port), "--workers", "2"]
    programs.start(name, *command, "--hub", f"redis://127.0.0.1:{redis_port}", MACHINE=name)
    programs.wait_for(f"{name} to serve", lambda: responds(f"http://127.0.0.1:{port}/readyz"))


def configuration(port, left, right):
    """nginx.conf with addresses of this machine."""
    conf = (FOLDER / "nginx.conf").read_text()
    for shown, needed in {"listen 80": port, "server left:8000": left, "server right:8000": right}.items():
        conf = conf.replace(shown, f"{shown.split()[0]} 127.0.0.1:{needed}")
    return FRAME.format(user="user root;" if os.getuid() == 0 else "", conf=conf)


def put(url, text):
    """Publish a message, again if there is no response. It has an ID, so it is published once."""
    end = time.monotonic() + LIMIT
    while True:
        try:
            with urlopen(Request(url, data=text.encode(), method="PUT"), timeout=2):
                return
        except (OSError, HTTPException):
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def main():
    parser = argparse.ArgumentParser(description="Run a cluster on this machine, and kill a part of it.")
    parser.add_argument("--keep", action="store_true", help="go on until Ctrl-C, for a look at the page")
    keep = parser.parse_args().keep
    redis, nginx = find("redis-server"), find("nginx")
    with TemporaryDirectory(prefix="cluster-") as directory, Programs(Path(directory)) as programs:
        folder = programs.folder
        redis_port, left, right, port = (free_port() for _ in range(4))
        url = f"http://127.0.0.1:{port}"

        programs.start("redis", redis, "--port", str(redis_port), "--bind", "127.0.0.1", "--save", "")
        start_server(programs, "left", left, redis_port)
        start_server(programs, "right", right, redis_port)
        (folder / "nginx.conf").write_text(configuration(port, left, right))
        programs.start("nginx", nginx, "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf"))
        programs.wait_for("nginx to forward", lambda: responds(f"{url}/readyz"))
        print(f"nginx at {url}, left at port {left}, right at port {right}, redis at port {redis_port}")

        published = []
        clients = [WebSocketClient(f"WebSocket {number}", url, published) for number in range(1, 5)]
        clients += [EventClient(f"event stream {number}", url, published) for number in range(1, 5)]
        for client in clients:
            client.start()
        programs.wait_for("the clients to connect", lambda: all(client.processes for client in clients))
        on_left = sum(client.processes[0].startswith("left-") for client in clients)
        print(f"{len(clients)} clients are connected: {on_left} to left, {len(clients) - on_left} to right")

        for number in range(MESSAGES):
            if number == KILLED_AFTER:
                programs.kill("left")
                print(f"left was killed after {number} messages; {MESSAGES - number} more are published")
            published.append(number)
            put(f"{url}/messages/{number}", str(number))
            time.sleep(0.005)
        programs.wait_for("the clients to get the last message", lambda: all(client.is_done for client in clients))
        for client in clients:
            way = " → ".join(client.processes)
            if client.resumed_at:
                way += f", went on after {client.resumed_at}, and caught up on {client.caught_up} messages"
            print(f"  {client.name}: {way}")
        missing, twice, gaps = (sum(getattr(each, name) for each in clients) for name in ("missing", "twice", "gaps"))
        print(f"each client got {MESSAGES} messages: {missing} missing, {twice} twice, {gaps} gaps")
        if any(client.numbers != [*range(MESSAGES)] or client.gaps for client in clients):
            sys.exit("some clients did not get all messages in their order")

        if keep:
            start_server(programs, "left", left, redis_port)
            programs.wait_for("nginx to use left again", lambda: process_at(url).startswith("left"))
            print(f"left is back: open {url}/ and kill one side (Ctrl-C ends everything)")
            for name in ("left", "right"):
                print(f"  kill -KILL -- -{programs.running[name].pid}  # {name}", flush=True)
            signal.pause()


if __name__ == "__main__":
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
