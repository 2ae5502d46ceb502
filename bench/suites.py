"""The suites: contenders, the tests that they run, and the goals of microws."""

import sys
from typing import Literal, NamedTuple

__all__ = ["FLOORS", "MEASURES", "SUITES", "Contender", "Goal", "Measure", "Suite", "Table", "microws_run"]


class Measure(NamedTuple):
    """
    One test, one column of the table.

    Attributes:
        mode: The mode of the load generator.
        options: Options of the load generator.
        kind: A rate per second of the server's CPU time; growth of memory per connection; or a latency, the 99th
            percentile. For the last two, less is better.
        counted: The count in the load generator's output that a rate is computed from.
        scale: Converts the count to the figure.
        weight: Multiplies the number of slices, for measures that vary more.
        seconds: Length of one slice; ``None``: that of the suite.
    """

    title: str
    mode: str
    options: list
    kind: Literal["rate", "memory", "latency"] = "rate"
    counted: str = "count"
    scale: float = 1
    weight: int = 1
    seconds: float | None = None

    @property
    def less_is_better(self):
        return self.kind != "rate"


class Contender(NamedTuple):
    """
    An app on its server, one row of the table.

    Attributes:
        command: Starts the server in the root of the project; ``{port}`` in it stands for the port.
        packages: Packages whose versions are reported.
        tests: The tests that it runs; ``None``: all of its suite.
        options: Options of the load generator, by its mode, that replace the measure's.
    """

    title: str
    command: list
    packages: tuple
    tests: tuple | None = None
    options: dict = {}  # noqa: RUF012 - the suites only read it


class Goal(NamedTuple):
    """
    What one contender has to reach.

    Attributes:
        bound: The minimum, or the maximum if less is better.
        peers: The bound is a share of the best figure of these; empty: the bound is a figure.
        within_error: Whether the goal is met if the interval of twice the standard error reaches the bound.
    """

    test: str
    contender: str
    bound: float
    peers: tuple = ()
    within_error: bool = False


class Table(NamedTuple):
    """
    Columns of a report, with the contenders that have a figure there.

    Attributes:
        tests: Keys of ``MEASURES``, in the order in which they are measured.
        baseline: The contender to which the table gives ratios.
        title: Where a suite has several tables.
    """

    tests: tuple
    baseline: str
    title: str = ""


class Suite(NamedTuple):
    """
    What is measured in one run.

    Attributes:
        contenders: By their short names.
        tables: Of the report.
        on_request: Contenders and tests that are left out unless they are asked for.
        slices: In how many samples a rate is measured in one round.
        seconds: Length of all slices of a round together.
        together: Whether rates are measured of all contenders at once.
    """

    contenders: dict
    tables: tuple
    goals: list
    on_request: frozenset
    slices: int = 6
    seconds: float = 3
    together: bool = False

    @property
    def tests(self):
        return tuple(test for table in self.tables for test in table.tests)


ECHO = ["-u", "/echo"]
EVENTS = ["-K", "events", "-u", "/events"]
FAN = ["-u", "/sub", "-U", "/pub"]
MIB = 1 << 20

# Memory first: the heap that other samples leave behind would hide the memory of the connections.
MEASURES = {
    "idle": Measure("memory per idle connection, KiB", "idle", [*ECHO, "-c", 2000], kind="memory"),
    "echo": Measure("echo over 100 connections, /s", "echo", [*ECHO, "-c", 100]),
    "connect": Measure("connects, 32 at a time, /s", "connect", [*ECHO, "-c", 32], weight=3),
    "large": Measure(
        "echo of 1 MiB binary over 4 connections, MB/s",
        "echo",
        ["-u", "/binary", "-c", 4, "-b", "-s", MIB],
        scale=MIB / 1e6,
    ),
    "http": Measure("GET of small JSON, 50 connections, /s", "http", ["-u", "/json", "-c", 50]),
    "post": Measure(
        "POST of JSON to 1 subscriber, 50 connections, /s", "post", ["-u", "/json/pub", "-U", "/json/sub", "-c", 50]
    ),
    "file": Measure(
        "GET of a file of 10 MB, 50 connections, MB/s",
        "http",
        ["-u", "/file", "-c", 50],
        counted="bytes",
        scale=1 / 1e6,
        seconds=1,
    ),
    "latency": Measure(
        "99th percentile of 2,000 GETs a second, ms",
        "http",
        ["-u", "/json", "-c", 50, "-r", 2000],
        kind="latency",
        seconds=2,
    ),
    "fan1": Measure("deliveries to 1,000, 1 in flight, /s", "fan", [*FAN, "-c", 1000, "-d", 1]),
    "fan8": Measure("deliveries to 1,000, 8 in flight, /s", "fan", [*FAN, "-c", 1000, "-d", 8]),
    "events1": Measure("events to 1,000 streams, 1 in flight, /s", "fan", [*FAN, *EVENTS, "-c", 1000, "-d", 1]),
    "events8": Measure("events to 1,000 streams, 8 in flight, /s", "fan", [*FAN, *EVENTS, "-c", 1000, "-d", 8]),
    "fan-p99": Measure(
        "99th percentile of 10 messages a second to 1,000, ms",
        "fan",
        [*FAN, "-c", 1000, "-r", 10],
        kind="latency",
        seconds=2,
    ),
    "fan1-5000": Measure("deliveries to 5,000, 1 in flight, /s", "fan", [*FAN, "-c", 5000, "-d", 1]),
    "fan8-5000": Measure("deliveries to 5,000, 8 in flight, /s", "fan", [*FAN, "-c", 5000, "-d", 8]),
}


def python(module, *arguments):
    return [sys.executable, "-m", module, *arguments]


def hypercorn(app, *options):
    return python("hypercorn", "--config", "bench/hypercorn.toml", "--bind", "127.0.0.1:{port}", *options, app)


def uvicorn(app, websocket="websockets-sansio"):
    fastest = ["--loop", "uvloop", "--http", "httptools", "--ws", websocket]
    return python("uvicorn", "--port", "{port}", *fastest, "--no-access-log", "--log-level", "warning", app)


def granian(app):
    # Its backpressure is the number of connections that it serves; the default is too low for the test of memory.
    options = ["--workers", "1", "--loop", "uvloop", "--http", "1", "--backlog", "4096", "--backpressure", "4096"]
    return python("granian", "--interface", "asgi", "--port", "{port}", *options, "--log-level", "warning", app)


def microws_run(app, loop, *log, port=("--port", "{port}")):
    log = log or ("--no-access-log", "--log-level", "warning")
    return python("microws", "run", app, *port, "--loop", loop, *log)


BARE = "bench.apps.bare:app"
MICROWS = "bench.apps.microws_app:app"
STARLETTE = "bench.apps.starlette_app:app"
STARLETTE_QUEUES = "bench.apps.starlette_app:queue_app"
FASTAPI = "bench.apps.fastapi_app:app"
HYPERCORN_PACKAGES = ("hypercorn", "h11", "wsproto")
MICROWS_PACKAGES = ("microws", "uvloop")
UVICORN_PACKAGES = ("uvicorn", "uvloop", "httptools", "websockets")

FRAMEWORK = Suite(
    contenders={
        "bare": Contender("no framework", hypercorn(BARE), HYPERCORN_PACKAGES),
        "microws": Contender("microws", hypercorn(MICROWS), ("microws",)),
        "starlette": Contender("Starlette", hypercorn(STARLETTE), ("starlette",)),
        "quart": Contender("Quart", hypercorn("bench.apps.quart_app:app"), ("quart",)),
    },
    tables=(Table(("idle", "echo", "connect", "http", "fan1", "fan8"), "bare"),),
    goals=[
        Goal("echo", "microws", 0.90, ("bare",)),
        Goal("http", "microws", 0.90, ("bare",)),
        *(
            Goal(test, "microws", 1.00, (peer,))
            for test in ("idle", "echo", "connect", "http", "fan1", "fan8")
            for peer in ("starlette", "quart")
        ),
    ],
    on_request=frozenset({"fan1", "fan8"}),
    together=True,
)

WEBSOCKETS = ("idle", "echo", "connect", "large")
AS_EVENTS = {"fan": EVENTS, "idle": EVENTS}
GRANIAN_PACKAGES = ("granian", "uvloop")

SERVER = Suite(
    contenders={
        "bare": Contender(
            "microws run, no framework", microws_run(BARE, "uvloop"), MICROWS_PACKAGES, (*WEBSOCKETS, "http")
        ),
        "microws": Contender("microws run, microws", microws_run(MICROWS, "uvloop"), MICROWS_PACKAGES),
        "microws-asyncio": Contender(
            "microws run --loop asyncio, microws",
            microws_run(MICROWS, "asyncio"),
            MICROWS_PACKAGES,
            (*WEBSOCKETS, "http", "post", "file"),
        ),
        "microws-log": Contender(
            "microws run --access-log, microws",
            microws_run(MICROWS, "uvloop", "--access-log", "--log-level", "info"),
            MICROWS_PACKAGES,
            ("http",),
        ),
        "microws-kept": Contender(
            "microws run, kept-alive HTTP",
            microws_run(MICROWS, "uvloop"),
            MICROWS_PACKAGES,
            ("idle",),
            {"idle": ("-K", "http", "-u", "/json")},
        ),
        "microws-events": Contender(
            "microws run, event streams",
            microws_run(MICROWS, "uvloop"),
            MICROWS_PACKAGES,
            ("idle", "fan1", "fan8"),
            AS_EVENTS,
        ),
        "uvicorn": Contender(
            "uvicorn, websockets-sansio, no framework", uvicorn(BARE), UVICORN_PACKAGES, (*WEBSOCKETS, "http")
        ),
        "uvicorn-websockets": Contender(
            "uvicorn, websockets, no framework", uvicorn(BARE, "websockets"), UVICORN_PACKAGES, WEBSOCKETS
        ),
        "uvicorn-wsproto": Contender(
            "uvicorn, wsproto, no framework", uvicorn(BARE, "wsproto"), (*UVICORN_PACKAGES, "wsproto"), WEBSOCKETS
        ),
        "uvicorn-microws": Contender(
            "microws on uvicorn", uvicorn(MICROWS), ("microws", *UVICORN_PACKAGES), ("http", "post", "file")
        ),
        "uvicorn-events": Contender(
            "microws on uvicorn, event streams",
            uvicorn(MICROWS),
            ("microws", *UVICORN_PACKAGES),
            ("fan1", "fan8"),
            AS_EVENTS,
        ),
        "starlette": Contender(
            "Starlette on uvicorn", uvicorn(STARLETTE), ("starlette", *UVICORN_PACKAGES), ("http", "file", "latency")
        ),
        "starlette-events": Contender(
            "Starlette on uvicorn, event streams, queues",
            uvicorn(STARLETTE_QUEUES),
            ("starlette", *UVICORN_PACKAGES),
            ("fan1", "fan8"),
            AS_EVENTS,
        ),
        "starlette-granian-events": Contender(
            "Starlette on granian, event streams, queues",
            granian(STARLETTE_QUEUES),
            ("starlette", *GRANIAN_PACKAGES),
            ("fan1", "fan8"),
            AS_EVENTS,
        ),
        "fastapi": Contender(
            "FastAPI on uvicorn, which publishes nothing",
            uvicorn(FASTAPI),
            ("fastapi", *UVICORN_PACKAGES),
            ("post",),
            {"post": ("-U", "")},
        ),
        "hypercorn": Contender(
            "Hypercorn, no framework",
            hypercorn(BARE, "--worker-class", "uvloop"),
            (*HYPERCORN_PACKAGES, "uvloop"),
            (*WEBSOCKETS, "http"),
        ),
        "hypercorn-asyncio": Contender(
            "Hypercorn on asyncio, no framework", hypercorn(BARE), HYPERCORN_PACKAGES, (*WEBSOCKETS, "http")
        ),
        "hypercorn-microws": Contender(
            "microws on Hypercorn",
            hypercorn(MICROWS, "--worker-class", "uvloop"),
            ("microws", *HYPERCORN_PACKAGES, "uvloop"),
            ("http",),
        ),
        "aiohttp": Contender(
            "aiohttp", python("bench.apps.aiohttp_server", "{port}"), ("aiohttp", "uvloop"), (*WEBSOCKETS, "http")
        ),
        "granian": Contender("granian, no framework", granian(BARE), GRANIAN_PACKAGES, (*WEBSOCKETS, "http")),
        "granian-microws": Contender(
            "microws on granian", granian(MICROWS), ("microws", *GRANIAN_PACKAGES), ("http", "post", "file")
        ),
        "websockets": Contender(
            "websockets", python("bench.apps.websockets_server", "{port}"), ("websockets", "uvloop"), WEBSOCKETS
        ),
        "node-ws": Contender(
            "Node ws", ["node", "bench/apps/node_ws/server.js", "{port}"], ("node", "ws"), (*WEBSOCKETS, "http")
        ),
    },
    tables=(
        Table(WEBSOCKETS, "aiohttp", "WebSockets, and the memory of other idle connections"),
        Table(("http", "post", "file", "latency"), "granian-microws", "HTTP"),
        Table(("fan1", "fan8"), "microws", "To WebSockets, and to event streams"),
    ),
    goals=[
        Goal("idle", "microws", 8.0),
        Goal("idle", "microws-events", 9.0),
        Goal("idle", "microws-kept", 5.0),
        Goal("echo", "bare", 0.95, ("aiohttp",)),
        Goal("echo", "bare", 1.50, ("uvicorn",)),
        Goal("echo", "microws", 0.85, ("aiohttp",)),
        Goal("echo", "microws", 1.35, ("uvicorn",)),
        Goal("echo", "microws-asyncio", 0.70, ("microws",)),
        Goal("connect", "microws", 1.30, ("aiohttp",)),
        Goal("connect", "microws", 1.00, ("uvicorn",)),
        Goal("connect", "bare", 1.70, ("hypercorn",)),
        Goal("connect", "microws", 1.70, ("hypercorn",)),
        Goal("large", "bare", 0.80, ("aiohttp",)),
        Goal("large", "microws", 0.80, ("aiohttp",)),
        Goal("http", "microws", 0.80, ("granian-microws",)),
        Goal("http", "microws", 1.80, ("starlette",)),
        Goal("http", "microws", 6.00, ("hypercorn-microws",)),
        Goal("http", "microws-log", 0.70, ("microws",)),
        Goal("post", "microws", 1.10, ("granian-microws",)),
        Goal("post", "microws", 1.30, ("fastapi",)),
        Goal("file", "microws", 0.80, ("granian-microws",)),
        Goal("latency", "microws", 1.00, ("starlette",)),
        *(
            goal
            for test in ("fan1", "fan8")
            for goal in (
                Goal(test, "microws-events", 0.80, ("microws",)),
                Goal(test, "microws-events", 3.00, ("starlette-granian-events",)),
                Goal(test, "microws-events", 3.00, ("starlette-events",)),
                Goal(test, "uvicorn-events", 0.90, ("starlette-events",)),
            )
        ),
    ],
    on_request=frozenset({"uvicorn-websockets", "uvicorn-wsproto", "hypercorn-asyncio"}),
    slices=2,
    seconds=1,
)

FLOORS = {
    "floor": Contender("floor: `send()` in C", ["bench/bin/floor", "{port}"], ("cc",)),
    "floor-uvloop": Contender(
        "floor: `transport.write` of uvloop", python("bench.floors.transports", "{port}", "uvloop"), ("uvloop",)
    ),
    "floor-asyncio": Contender(
        "floor: `transport.write` of asyncio", python("bench.floors.transports", "{port}", "asyncio"), ()
    ),
}

# A framework that cannot publish has two apps: a loop of awaited sends, and a queue and a task for each connection.
FRAMEWORKS = {
    "starlette-loop": Contender("Starlette on uvicorn, loop", uvicorn(STARLETTE), ("starlette", *UVICORN_PACKAGES)),
    "starlette-queue": Contender(
        "Starlette on uvicorn, queues", uvicorn(STARLETTE_QUEUES), ("starlette", *UVICORN_PACKAGES)
    ),
    "fastapi-loop": Contender("FastAPI on uvicorn, loop", uvicorn(FASTAPI), ("fastapi", *UVICORN_PACKAGES)),
    "fastapi-queue": Contender(
        "FastAPI on uvicorn, queues", uvicorn("bench.apps.fastapi_app:queue_app"), ("fastapi", *UVICORN_PACKAGES)
    ),
    "falcon-loop": Contender(
        "Falcon on uvicorn, loop", uvicorn("bench.apps.falcon_app:app"), ("falcon", *UVICORN_PACKAGES)
    ),
    "falcon-queue": Contender(
        "Falcon on uvicorn, queues", uvicorn("bench.apps.falcon_app:queue_app"), ("falcon", *UVICORN_PACKAGES)
    ),
    "litestar": Contender(
        "Litestar channels on uvicorn", uvicorn("bench.apps.litestar_app:app"), ("litestar", *UVICORN_PACKAGES)
    ),
    "quart": Contender(
        "Quart on Hypercorn, queues", hypercorn("bench.apps.quart_app:app"), ("quart", *HYPERCORN_PACKAGES)
    ),
}

OTHERS = {
    "aiohttp": Contender("aiohttp, loop", SERVER.contenders["aiohttp"].command, ("aiohttp", "uvloop")),
    "sanic": Contender("Sanic, loop", python("bench.apps.sanic_server", "{port}"), ("sanic", "uvloop", "websockets")),
    "websockets": Contender(
        "`websockets.broadcast`", SERVER.contenders["websockets"].command, ("websockets", "uvloop")
    ),
    "picows": Contender("picows, loop", python("bench.apps.picows_server", "{port}"), ("picows", "uvloop")),
    "socketify": Contender("socketify `publish`", python("bench.apps.socketify_server", "{port}"), ("socketify",)),
    "node-ws": Contender("Node `ws`, loop", SERVER.contenders["node-ws"].command, ("node", "ws")),
}


def fan_out_goals(suffix, share):
    """The goals of the fan-out for one number of subscribers, each multiplied by ``share``."""
    waiting, in_flight = f"fan1{suffix}", f"fan8{suffix}"
    return [
        Goal(waiting, "microws", 0.75 * share, ("floor",)),
        Goal(waiting, "microws", 1.00 * share, (*FRAMEWORKS, *OTHERS)),
        Goal(waiting, "microws", 1.50 * share, (*FRAMEWORKS,)),
        Goal(waiting, "microws", 6.00 * share, ("quart",)),
        Goal(in_flight, "microws", 5.00 * share, ("floor",)),
        Goal(in_flight, "microws", 2.00 * share, ("aiohttp",)),
        Goal(in_flight, "microws", 5.00 * share, (*FRAMEWORKS,)),
        Goal(in_flight, "microws", 0.90 * share, ("socketify",)),
    ]


PEERS = Suite(
    contenders={
        **FLOORS,
        "microws": SERVER.contenders["microws"]._replace(title="microws"),
        "microws-post": SERVER.contenders["microws"]._replace(
            title="microws, JSON by `POST`",
            options={"fan": ("-u", "/json/sub", "-U", "/json/pub", "-J")},
            tests=("fan1", "fan1-5000"),
        ),
        **OTHERS,
        **FRAMEWORKS,
    },
    tables=(Table(("fan1", "fan8", "fan1-5000", "fan8-5000"), "floor"),),
    goals=[
        *fan_out_goals("", 1),
        Goal("fan1", "microws-post", 0.90, ("microws",)),
        *fan_out_goals("-5000", 0.85),
    ],
    on_request=frozenset(),
    slices=2,
    seconds=2,
)

BEFORE_TESTS = ("echo", "connect", "http", "post", "fan1", "fan8", "events1", "events8")

BEFORE = Suite(
    contenders={
        "microws": SERVER.contenders["microws"]._replace(title="microws"),
        "before": SERVER.contenders["microws"]._replace(title="microws of an earlier commit"),
    },
    tables=(Table(BEFORE_TESTS, "before"),),
    goals=[Goal(test, "microws", 0.98, ("before",), within_error=True) for test in BEFORE_TESTS],
    on_request=frozenset(),
    slices=8,
    seconds=4,
    together=True,
)

BY_POST = {"fan": ("-u", "/json/sub", "-U", "/json/pub", "-J")}
CLUSTER_WORKERS = ["--workers", "4"]


def over_redis(command, *environment, workers=CLUSTER_WORKERS):
    return ["env", *environment, *python("bench.apps.with_redis"), *command, *workers]


def channels(layer):
    app = uvicorn("bench.apps.channels_app:app")
    return over_redis(app, f"CHANNEL_LAYER=channels_redis.{layer}")


CHANNELS_PACKAGES = ("channels", "channels-redis", "redis", *UVICORN_PACKAGES)
PEERS_OVER_REDIS = {
    "litestar": Contender(
        "Litestar channels on uvicorn",
        over_redis(uvicorn("bench.apps.litestar_redis:app")),
        ("litestar", "redis", *UVICORN_PACKAGES),
        options=BY_POST,
    ),
    "channels": Contender(
        "channels_redis on uvicorn", channels("core.RedisChannelLayer"), CHANNELS_PACKAGES, options=BY_POST
    ),
    "channels-pubsub": Contender(
        "channels_redis, Pub/Sub, on uvicorn",
        channels("pubsub.RedisPubSubChannelLayer"),
        CHANNELS_PACKAGES,
        options=BY_POST,
    ),
    "socketio": Contender(
        "python-socketio on uvicorn",
        over_redis(uvicorn("bench.apps.socketio_app:app")),
        ("python-socketio", "redis", *UVICORN_PACKAGES),
        options={"fan": ("-u", "/socket.io/?EIO=4&transport=websocket", "-U", "/json/pub", "-J", "-O", "40")},
    ),
}

CLUSTER = Suite(
    contenders={
        "one": Contender("microws, one worker", microws_run(MICROWS, "uvloop"), MICROWS_PACKAGES, options=BY_POST),
        "microws": Contender(
            "microws, 4 workers", [*microws_run(MICROWS, "uvloop"), *CLUSTER_WORKERS], MICROWS_PACKAGES, options=BY_POST
        ),
        "one-view": Contender(
            "microws, one worker, by WebSocket", microws_run(MICROWS, "uvloop"), MICROWS_PACKAGES, ("fan1", "fan8")
        ),
        "microws-view": Contender(
            "microws, 4 workers, by WebSocket",
            [*microws_run(MICROWS, "uvloop"), *CLUSTER_WORKERS],
            MICROWS_PACKAGES,
            ("fan1", "fan8"),
        ),
        "microws-redis": Contender(
            "microws, 4 workers over Redis",
            over_redis(microws_run(MICROWS, "uvloop")),
            (*MICROWS_PACKAGES, "redis"),
            options=BY_POST,
        ),
        "microws-redis-two": Contender(
            "microws, 2 servers of 2 workers over Redis",
            over_redis(
                [*python("bench.apps.twice"), "{port}", *microws_run(MICROWS, "uvloop", port=()), "--workers", "2"],
                workers=(),
            ),
            (*MICROWS_PACKAGES, "redis"),
            options=BY_POST,
        ),
        **PEERS_OVER_REDIS,
    },
    tables=(Table(("fan1", "fan8", "fan-p99"), "one"),),
    goals=[
        Goal("fan1", "microws", 0.85, ("one",)),
        Goal("fan8", "microws", 0.85, ("one",)),
        Goal("fan1", "microws-view", 0.85, ("one-view",)),
        Goal("fan8", "microws-view", 0.85, ("one-view",)),
        Goal("fan1", "microws-redis", 0.8, ("microws",)),
        Goal("fan8", "microws-redis", 0.8, ("microws",)),
        Goal("fan1", "microws-redis-two", 0.8, ("microws",)),
        Goal("fan8", "microws-redis-two", 0.8, ("microws",)),
        *(
            Goal(test, contender, 1.00, (*PEERS_OVER_REDIS,))
            for test in ("fan1", "fan8", "fan-p99")
            for contender in ("microws", "microws-redis")
        ),
    ],
    on_request=frozenset(),
    slices=2,
    seconds=2,
)

SUITES = {"framework": FRAMEWORK, "server": SERVER, "peers": PEERS, "cluster": CLUSTER, "before": BEFORE}
