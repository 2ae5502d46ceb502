"""Messages, both ways, on every server."""

import json
from contextlib import suppress

import anyio
import pytest
from websockets.exceptions import ConnectionClosed

pytestmark = pytest.mark.anyio

MIB = 1 << 20


async def test_text_bytes_and_json_come_back_as_they_went(client):
    async with client.connect("/echo/text") as ws:
        for text in ("", "hello", "grüße 🌍", "a\0b", "x" * 70_000):
            await ws.send(text)
            assert await ws.recv() == text
    async with client.connect("/echo/bytes") as ws:
        for data in (b"", b"\0\xff", bytes(range(256)) * 300):
            await ws.send(data)
            assert await ws.recv() == data
    async with client.connect("/echo/json") as ws:
        for value in (None, 2**64, [1.5, "ü"], {"a": {"b": []}}):
            await ws.send(json.dumps(value))
            assert json.loads(await ws.recv()) == value
    async with client.connect("/echo/auto") as ws:
        for message in ("text", b"bytes"):
            await ws.send(message)
            assert await ws.recv() == message


async def test_a_message_of_1_mib_comes_back(client):
    data = bytes(range(256)) * (MIB // 256)
    async with client.connect("/echo/bytes", max_size=None, compression=None) as ws:
        await ws.send(data)
        assert await ws.recv() == data


async def test_a_message_in_fragments_is_one_message(client):
    async with client.connect("/echo/text") as ws:
        await ws.send(["a", "ü", "", "c" * 1000])
        assert await ws.recv() == "aü" + "c" * 1000


@pytest.mark.parametrize("compression", [None, "deflate"])
async def test_many_messages_come_back_in_order(client, compression):
    async with client.connect("/echo/text", compression=compression) as ws:

        async def send():
            for number in range(1000):
                await ws.send(str(number))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            assert [await ws.recv() for _ in range(1000)] == [str(number) for number in range(1000)]


@pytest.mark.parametrize("compression", [None, "deflate"])
async def test_a_client_that_comes_back_gets_what_it_missed(client, compression):
    topic = f"kept-{compression}"
    path, options = f"/topics/{topic}", {"subprotocols": ["microws.v1"], "compression": compression}
    async with client.connect(path, **options) as ws:
        assert list(json.loads(await ws.recv())) == ["hello"]
        position = json.loads(await ws.recv())["id"]
    async with client.connect(f"/topics/{topic}") as ws:
        for number in range(600):
            await ws.send(str(number))
    async with client.connect(f"{path}?since={position}", **options) as ws:
        assert list(json.loads(await ws.recv())) == ["hello"]
        assert json.loads(await ws.recv()) == {"topic": topic, "id": position, "recovered": True}
        messages = [json.loads(await ws.recv()) for _ in range(600)]
        assert [message["data"] for message in messages] == list(range(600))
        await client.http.post(f"/publish/{topic}", json=600)
        assert json.loads(await ws.recv())["data"] == 600
    last = {"last-event-id": messages[99]["id"]}
    async with client.http.stream("GET", f"/events/{topic}", headers=last) as response:
        data = []
        async for line in response.aiter_lines():
            if line.startswith("data:"):
                data.append(json.loads(line[5:]))
                if data[-1] == 600:
                    break
        assert data == list(range(100, 601))


@pytest.mark.parametrize(
    "message", ["x" * (MIB + 1), "ü" * (MIB // 2 + 1), b"x" * (MIB + 1)], ids=["ascii", "two bytes each", "binary"]
)
async def test_a_message_over_the_limit_in_bytes_is_1009(client, message):
    path = "/echo/text" if isinstance(message, str) else "/echo/bytes"
    async with client.connect(path, compression=None) as ws:
        with suppress(ConnectionClosed):
            await ws.send(message)
        with pytest.raises(ConnectionClosed) as closed:
            await ws.recv()
        assert closed.value.rcvd.code == 1009


async def test_a_message_of_the_wrong_kind_closes_with_the_reason(client):
    for path, message, code in (
        ("/echo/bytes", "text", 1003),
        ("/echo/text", b"bytes", 1003),
        ("/echo/json", "{", 1007),
        ("/echo/json", "NaN", 1007),
    ):
        async with client.connect(path) as ws:
            await ws.send(message)
            with pytest.raises(ConnectionClosed) as closed:
                await ws.recv()
            assert closed.value.rcvd.code == code
            assert closed.value.rcvd.reason
