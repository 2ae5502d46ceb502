"""What is compared: the contenders of each suite, the tests that they take, and the goals of microws."""

import sys
from typing import NamedTuple

__all__ = ["MEASURES", "SUITES", "Contender", "Goal", "Measure", "Suite"]


class Measure(NamedTuple):
    """
    One test, one column of the table.

    Attributes:
        mode: Of the load generator.
        options: For the load generator.
        scale: From a count to the figure.
        less_is_better: Memory, not a rate.
    """

    title: str
    mode: str
    options: list
    scale: float = 1
    less_is_better: bool = False


class Contender(NamedTuple):
    """
    An app on its server, one row of the table.

    Attributes:
        command: Starts it in the root of the project; ``{port}`` stands for the port to listen on.
        packages: Whose versions a reader wants to know.
    """

    title: str
    command: list
    packages: tuple


class Goal(NamedTuple):
    """
    What a contender of ours has to reach.

    Attributes:
        bound: The least that is good enough, or the most when less is better.
        peer: The bound is a share of its figure; ``None``: the bound is a figure.
    """

    test: str
    contender: str
    bound: float
    peer: str | None = None


class Suite(NamedTuple):
    """
    What is measured in one run.

    Attributes:
        contenders: By their short names.
        tests: Keys of ``MEASURES``, in the order in which they are measured.
        baseline: The contender to which the table gives ratios.
        on_request: Contenders and tests that are left out unless they are asked for.
    """

    contenders: dict
    tests: tuple
    baseline: str
    goals: list
    on_request: frozenset


ECHO = ["-u", "/echo"]
FAN = ["-u", "/sub", "-U", "/pub", "-c", 1000]
MIB = 1 << 20

# Memory first: what later samples leave behind in the heap would be taken for the connections' own.
MEASURES = {
    "idle": Measure("memory per idle connection, KiB", "idle", [*ECHO, "-c", 2000], less_is_better=True),
    "echo": Measure("echo over 100 connections, /s", "echo", [*ECHO, "-c", 100]),
    "connect": Measure("connects, 32 at a time, /s", "connect", [*ECHO, "-c", 32]),
    "large": Measure(
        "echo of 1 MiB binary over 4 connections, MB/s",
        "echo",
        ["-u", "/binary", "-c", 4, "-b", "-s", MIB],
        scale=MIB / 1e6,
    ),
    "http": Measure("GET of small JSON, 64 connections, /s", "http", ["-u", "/json", "-c", 64]),
    "fan1": Measure("deliveries to 1,000, 1 in flight, /s", "fan", [*FAN, "-d", 1]),
    "fan8": Measure("deliveries to 1,000, 8 in flight, /s", "fan", [*FAN, "-d", 8]),
}


def python(module, *arguments):
    return [sys.executable, "-m", module, *arguments]


def hypercorn(app, *options):
    return python("hypercorn", "--config", "bench/hypercorn.toml", "--bind", "127.0.0.1:{port}", *options, app)


def uvicorn(websocket):
    fastest = ["--loop", "uvloop", "--http", "httptools", "--ws", websocket]
    return python("uvicorn", "--port", "{port}", *fastest, "--no-access-log", "--log-level", "warning", BARE)


def granian():
    # Its backpressure is the number of connections that it serves, and by default too low for the test of memory.
    options = ["--workers", "1", "--loop", "uvloop", "--http", "1", "--backlog", "4096", "--backpressure", "4096"]
    return python("granian", "--interface", "asgi", "--port", "{port}", *options, "--log-level", "warning", BARE)


def microws_run(app, loop):
    return python(
        "microws", "run", app, "--port", "{port}", "--loop", loop, "--no-access-log", "--log-level", "warning"
    )


BARE = "bench.apps.bare:app"
MICROWS = "bench.apps.microws_app:app"
HYPERCORN_PACKAGES = ("hypercorn", "h11", "wsproto")
MICROWS_PACKAGES = ("microws", "uvloop", *HYPERCORN_PACKAGES)
UVICORN_PACKAGES = ("uvicorn", "uvloop", "httptools")

FRAMEWORK = Suite(
    contenders={
        "bare": Contender("no framework", hypercorn(BARE), HYPERCORN_PACKAGES),
        "microws": Contender("microws", hypercorn(MICROWS), ("microws",)),
        "starlette": Contender("Starlette", hypercorn("bench.apps.starlette_app:app"), ("starlette",)),
        "quart": Contender("Quart", hypercorn("bench.apps.quart_app:app"), ("quart",)),
    },
    tests=("idle", "echo", "connect", "http", "fan1", "fan8"),
    baseline="bare",
    goals=[
        Goal("echo", "microws", 0.90, "bare"),
        Goal("http", "microws", 0.90, "bare"),
        *(
            Goal(test, "microws", 1.00, peer)
            for test in ("idle", "echo", "connect", "http", "fan1", "fan8")
            for peer in ("starlette", "quart")
        ),
    ],
    on_request=frozenset({"fan1", "fan8"}),
)

SERVER = Suite(
    contenders={
        "bare": Contender("microws run, no framework", microws_run(BARE, "uvloop"), MICROWS_PACKAGES),
        "microws": Contender("microws run, microws", microws_run(MICROWS, "uvloop"), MICROWS_PACKAGES),
        "microws-asyncio": Contender(
            "microws run --loop asyncio, microws", microws_run(MICROWS, "asyncio"), MICROWS_PACKAGES
        ),
        "uvicorn": Contender(
            "uvicorn, websockets-sansio, no framework",
            uvicorn("websockets-sansio"),
            (*UVICORN_PACKAGES, "websockets"),
        ),
        "uvicorn-websockets": Contender(
            "uvicorn, websockets, no framework", uvicorn("websockets"), (*UVICORN_PACKAGES, "websockets")
        ),
        "uvicorn-wsproto": Contender(
            "uvicorn, wsproto, no framework", uvicorn("wsproto"), (*UVICORN_PACKAGES, "wsproto")
        ),
        "hypercorn": Contender(
            "Hypercorn, no framework", hypercorn(BARE, "--worker-class", "uvloop"), (*HYPERCORN_PACKAGES, "uvloop")
        ),
        "hypercorn-asyncio": Contender("Hypercorn on asyncio, no framework", hypercorn(BARE), HYPERCORN_PACKAGES),
        "aiohttp": Contender("aiohttp", python("bench.apps.aiohttp_server", "{port}"), ("aiohttp", "uvloop")),
        "granian": Contender("granian, no framework", granian(), ("granian", "uvloop")),
        "websockets": Contender(
            "websockets", python("bench.apps.websockets_server", "{port}"), ("websockets", "uvloop")
        ),
        "node-ws": Contender("Node ws", ["node", "bench/apps/node_ws/server.js", "{port}"], ("node", "ws")),
    },
    tests=("idle", "echo", "connect", "large", "http"),
    baseline="aiohttp",
    goals=[
        Goal("idle", "microws", 9.0),
        Goal("echo", "bare", 0.95, "aiohttp"),
        Goal("echo", "bare", 1.50, "uvicorn"),
        Goal("echo", "microws", 0.85, "aiohttp"),
        Goal("echo", "microws", 1.35, "uvicorn"),
        Goal("echo", "microws-asyncio", 0.70, "microws"),
        Goal("connect", "bare", 1.70, "hypercorn"),
        Goal("connect", "microws", 1.70, "hypercorn"),
        Goal("large", "bare", 0.80, "aiohttp"),
        Goal("large", "microws", 0.80, "aiohttp"),
    ],
    on_request=frozenset({"uvicorn-websockets", "uvicorn-wsproto", "hypercorn-asyncio", "http"}),
)

SUITES = {"framework": FRAMEWORK, "server": SERVER}
