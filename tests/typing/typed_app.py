"""
An app with types, as a user writes it: checked by mypy and pyright, for Python 3.11 and 3.13, and not run.

Each ``type: ignore`` is a mistake that both must find: without it they would say that the comment is not needed.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from dataclasses import dataclass
from typing import Annotated, Any, TypedDict, assert_never, assert_type

from msgspec import Meta
from pydantic import BaseModel

from microws import App, Message, MessageError, Request, WebSocket

app = App()


class Say(Message):
    text: Annotated[str, Meta(max_length=500)]


class Move(Message):
    x: float
    y: float


class Said(Message):
    user: str
    text: str


class Vote(TypedDict):
    choice: int


@dataclass
class Filter:
    limit: int = 10


class Poll(BaseModel):
    votes: int


app.topic("game:*", value_type=Said)


@app.websocket_route("/game/{room}", subscribe="game:{room}", on_invalid="error")
async def game(ws: WebSocket[Say | Move, Said], room: str) -> None:
    async with ws as entered:
        assert_type(entered, WebSocket[Say | Move, Said])
        async for message in ws:
            assert_type(message, Say | Move)
            match message:
                case Say(text):
                    assert_type(text, str)
                    await ws.publish(f"game:{room}", Said("x", text))
                case Move(x, y):
                    await ws.send(Said("x", f"{x} {y}"))
                    await ws.send(Move(x, y))  # type: ignore[call-overload]
                case _:
                    assert_never(message)


@app.websocket_route("/incomplete")
async def incomplete(ws: WebSocket[Say | Move]) -> None:
    async with ws:
        message = await ws.receive(timeout=1)
        await ws.send(message)
        if isinstance(message, Say):
            print(message.txt)  # type: ignore[attr-defined]
        else:
            assert_type(message, Move)
        assert_type(await ws.receive(type=Said), Said)
        assert_type(await ws.receive(type="json"), Any)
        await ws.send({"any": "value"}, type="json")


async def forgotten(ws: WebSocket[Say | Move]) -> None:
    match await ws.receive():
        case Say():
            pass
        case message:
            assert_never(message)  # type: ignore[arg-type]


@app.websocket_route("/text")
async def text(ws: WebSocket[str, bytes]) -> None:
    async for message in ws:
        await ws.send(message.encode())
        await ws.send(message)  # type: ignore[call-overload]


@app.websocket_route("/untyped", value_type="json")
async def untyped(ws: WebSocket) -> None:
    async for message in ws:
        await ws.send(message["any"])


@app.post("/polls/{id:int}/votes", query=Filter)
async def vote(request: Request[Vote, Filter], id: int) -> Poll:  # noqa: A002
    found = await request.json()
    assert_type(found, Vote)
    assert_type(await request.json(type=Filter), Filter)
    assert_type(request.typed_query, Filter)
    print(found["chioce"])  # type: ignore[typeddict-item]
    return Poll(votes=found["choice"] + id)


@app.get("/")
async def index(request: Request) -> str:
    return str((await request.json())["any"])


error: MessageError = {"type": "error", "detail": "Expected `str`", "path": "$.text"}
