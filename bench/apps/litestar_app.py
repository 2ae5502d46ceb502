"""Litestar, with its channels in memory."""

from litestar import Litestar, WebSocket, get, websocket
from litestar.channels import ChannelsPlugin
from litestar.channels.backends.memory import MemoryChannelsBackend
from litestar.exceptions import WebSocketDisconnect


@get("/json")
async def json_view() -> dict[str, str]:
    return {"message": "Hello, World!"}


@websocket("/echo")
async def echo(socket: WebSocket) -> None:
    await socket.accept()
    try:
        while True:
            await socket.send_text(await socket.receive_text())
    except WebSocketDisconnect:
        pass


@websocket("/sub")
async def sub(socket: WebSocket, channels: ChannelsPlugin) -> None:
    await socket.accept()
    async with channels.start_subscription(["fan"]) as subscriber, subscriber.run_in_background(socket.send_text):
        try:
            while True:
                await socket.receive_text()
        except WebSocketDisconnect:
            pass


@websocket("/pub")
async def pub(socket: WebSocket, channels: ChannelsPlugin) -> None:
    await socket.accept()
    try:
        while True:
            channels.publish((await socket.receive_text()).encode(), ["fan"])
    except WebSocketDisconnect:
        pass


app = Litestar(
    [json_view, echo, sub, pub],
    plugins=[ChannelsPlugin(backend=MemoryChannelsBackend(), channels=["fan"])],
    openapi_config=None,
)
