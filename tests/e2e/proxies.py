"""nginx, Caddy and HAProxy, each with the configuration that docs/how-to.md shows."""

import grp
import os
import pwd
import random
import re
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from serving import LIMIT, ROOT

__all__ = ["PROXIES", "block_for", "find", "is_listening", "proxying"]

# The address of microws in the guide.
UPSTREAM = "127.0.0.1:8000"


class Proxy(NamedTuple):
    """
    How to run a proxy with its block of the guide.

    Attributes:
        language: The block's.
        command: Arguments; the configuration's file follows.
        changes: What the block says, and what a test needs in its place: another port, and the rule that denies
            ``/admin``.
        frame: The whole configuration around the block.
        unix: How it writes the address of a Unix socket.
    """

    language: str
    command: str
    changes: dict[str, str]
    frame: str
    unix: str


_USER = f"{pwd.getpwuid(os.getuid()).pw_name} {grp.getgrgid(os.getgid()).gr_name}"

PROXIES = {
    "nginx": Proxy(
        "nginx",
        "nginx -e stderr -p . -c",
        {
            "listen 80;": "listen 127.0.0.1:PORT;",
            "    location / {": "    location /admin { deny all; }\n    location / {",
        },
        f"""daemon off; pid pid; user {_USER}; events {{ worker_connections 256; }} http {{ access_log off;
        client_body_temp_path a; proxy_temp_path b; fastcgi_temp_path c; uwsgi_temp_path d; scgi_temp_path e;
        BLOCK }}""",
        "unix:PATH",
    ),
    "caddy": Proxy(
        "caddyfile",
        "caddy run --adapter caddyfile --config",
        {
            "chat.example {": "http://:PORT {\n    bind 127.0.0.1\n    @admin path /admin*\n    respond @admin 403",
        },
        "{\n    admin off\n}\nBLOCK",
        "unix/PATH",
    ),
    "haproxy": Proxy(
        "haproxy",
        "haproxy -db -f",
        {
            "bind :80": "bind 127.0.0.1:PORT",
            "    default_backend": "    http-request deny if { path_beg /admin }\n    default_backend",
        },
        "BLOCK",
        "unix@PATH",
    ),
}

# As in most guides: every upgrade reaches the server.
PROXIES["nginx-usual"] = PROXIES["nginx"]._replace(
    changes=PROXIES["nginx"].changes
    | {
        "Upgrade $upgrade_to;": "Upgrade $http_upgrade;",
        "Connection $connection_upgrade;": 'Connection "upgrade";',
    }
)


def find(name):
    """The program. Without it the test is skipped; without nginx it fails in CI. Not every Debian has the others."""
    directories = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
    if (program := shutil.which(name, path=directories)) is None:
        stop = pytest.fail if os.environ.get("CI") == "true" and name == "nginx" else pytest.skip
        stop(f"{name} is not installed: apt-get install {name}")
    return program


def block_for(language):
    """The block of the guide."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "docs/how-to.md").read_text(), re.M | re.S)
    assert len(found) == 1, f"expected one block for {language} in docs/how-to.md, got {len(found)}"
    return found[0]


def configuration(proxy, upstream, port):
    """The block of the guide, with the changes that a test needs."""
    block = block_for(proxy.language)
    for shown, needed in {UPSTREAM: upstream, **proxy.changes}.items():
        assert block.count(shown) == 1, f"expected {shown!r} once in the block for {proxy.language}"
        block = block.replace(shown, needed)
    return proxy.frame.replace("BLOCK", block).replace("PORT", str(port))


@contextmanager
def proxying(name, directory, *, port=None, path=None):
    """
    The proxy of that name in front of microws, for as long as the block lasts; its port.

    Args:
        directory: Where it keeps its files.
        port: Of microws on 127.0.0.1, or
        path: of the Unix socket of microws.
    """
    proxy = PROXIES[name]
    program, *arguments = proxy.command.split()
    upstream = proxy.unix.replace("PATH", str(path)) if path else f"127.0.0.1:{port}"
    file = directory / f"{name}.conf"
    for _ in range(5):
        # Below the ports that the kernel gives to others. A port in use ends the proxy.
        port = random.randrange(20_000, 32_000)
        file.write_text(configuration(proxy, upstream, port))
        with running_proxy([find(program), *arguments, str(file)], directory) as process:
            if has_started(process, port):
                yield port
                assert process.poll() is None, f"{name} has ended with {process.returncode}"
                return
    pytest.fail(f"{name} does not start:\n{(directory / 'log').read_text()}")


@contextmanager
def running_proxy(command, directory):
    """Its output is in the file ``log``."""
    homes = dict.fromkeys(["HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"], str(directory))
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=directory, env=os.environ | homes, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(LIMIT)


def has_started(process, port):
    """Whether it listens; otherwise it has ended."""
    end = time.monotonic() + LIMIT
    while process.poll() is None and not is_listening(port) and time.monotonic() < end:
        time.sleep(0.02)
    return process.poll() is None and is_listening(port)


def is_listening(port):
    try:
        socket.create_connection(("127.0.0.1", port), LIMIT).close()
    except ConnectionRefusedError:
        return False
    return True
