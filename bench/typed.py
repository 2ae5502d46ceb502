#!/usr/bin/env python
"""
What types cost or save: CPU time, measured in memory, as a ratio to the same with ``value_type="json"``.

"decode" is a message without anything around it. "echo" is a message through a view, and "publish" one to 1,000
subscribers, as in ``overhead.py``. All are measured in turn, in each round, and the minimum of the rounds counts.
"""

import argparse
import asyncio
import gc
import json
from dataclasses import dataclass
from time import process_time
from typing import Literal

from overhead import Lifespan, close_websocket, open_websocket
from pydantic import BaseModel

from microws import App, Message
from microws.codec import Codecs

SUBSCRIBERS = 1_000
TIME_LIMIT = 600  # seconds, for everything together


class Say(Message):
    user: str
    room: str
    text: str
    at: float
    tags: list[str]


class Move(Message):
    x: float
    y: float


@dataclass
class SayData:
    type: str
    user: str
    room: str
    text: str
    at: float
    tags: list[str]


class SayModel(BaseModel):
    type: Literal["say"] = "say"
    user: str
    room: str
    text: str
    at: float
    tags: list[str]


FIELDS = {"user": "anna", "room": "lobby", "text": "See you at the library at eight?", "at": 17.5, "tags": ["a", "b"]}
VALUE = {"type": "say", **FIELDS}
TEXT = json.dumps(VALUE)
TYPES = {"json": "json", "Struct": Say | Move, "dataclass": SayData, "pydantic": SayModel}
VALUES = {"json": VALUE, "Struct": Say(**FIELDS), "dataclass": SayData(**VALUE), "pydantic": SayModel(**FIELDS)}


async def time_decode(name, n):
    decode = Codecs().get(TYPES[name]).decode
    start = process_time()
    for _ in range(n):
        decode(TEXT)
    return process_time() - start


async def time_echo(name, n):
    app = App()

    @app.websocket_route("/echo", value_type=TYPES[name])
    async def echo(ws):
        async with ws:
            async for message in ws:
                await ws.send(message)

    left = n
    finished = asyncio.get_running_loop().create_future()

    def on_message(event):
        nonlocal left
        left -= 1
        if left:
            channel.put_soon({"type": "websocket.receive", "text": TEXT})
        else:
            assert json.loads(event["text"]) == VALUE
            finished.set_result(None)

    async with Lifespan(app):
        channel, task = await open_websocket(app, on_message)
        start = process_time()
        channel.put_soon({"type": "websocket.receive", "text": TEXT})
        await finished
        elapsed = process_time() - start
        await close_websocket(channel, task)
    return elapsed


async def time_publish(name, n):
    app = App()
    if name != "json":
        app.topic("fan", value_type=TYPES[name])

    @app.websocket_route("/echo", value_type=TYPES[name], subscribe="fan")
    async def subscribe(ws):
        async with ws:
            await ws.wait_closed()

    left = 0
    delivered = asyncio.Event()

    def on_message(event):
        nonlocal left
        left -= 1
        if not left:
            delivered.set()

    async with Lifespan(app):
        connections = [await open_websocket(app, on_message) for _ in range(SUBSCRIBERS)]
        start = process_time()
        for _ in range(n):
            left = SUBSCRIBERS
            delivered.clear()
            await app.publish("fan", VALUES[name])
            await delivered.wait()
        elapsed = process_time() - start
        for connection in connections:
            await close_websocket(*connection)
    return elapsed


async def measure(counts, rounds):
    """``{measure: {type: microseconds}}``, the minimum of all rounds, because noise only adds."""
    figures = {key: {} for key in counts}
    for round_ in range(rounds):
        for key, n in counts.items():
            time = {"decode": time_decode, "echo": time_echo, "publish": time_publish}[key]
            for name in list(TYPES) if round_ % 2 == 0 else list(TYPES)[::-1]:
                gc.collect()
                microseconds = await time(name, n) / n * 1e6
                figures[key][name] = min(microseconds, figures[key].get(name, microseconds))
    return figures


def table(figures):
    lines = ["| | " + " | ".join(TYPES) + " |", "|---|" + "---:|" * len(TYPES)]
    for key, row in figures.items():
        cells = [f"{row[name]:.2f} ({row[name] / row['json']:.2f})" for name in TYPES]
        lines.append(f"| {key}, µs | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description="What types cost or save, as a ratio to untyped JSON.")
    parser.add_argument("-n", type=int, default=20_000, help="messages a sample (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="samples of each; the minimum counts (%(default)s)")
    arguments = parser.parse_args()
    counts = {"decode": arguments.n * 2, "echo": arguments.n // 4, "publish": max(1, arguments.n // 400)}
    print(table(asyncio.run(asyncio.wait_for(measure(counts, arguments.rounds), TIME_LIMIT))))
    print("\nIn brackets: the ratio to the column json. Under 1 is faster.")


if __name__ == "__main__":
    main()
