"""picows, on uvloop: ``python -m bench.apps.picows_server PORT``."""

import sys

import uvloop
from picows import WSListener, WSMsgType, WSUpgradeResponse, WSUpgradeResponseWithListener, ws_create_server

JSON = b'{"message":"Hello, World!"}'

subscribers = set()


class Listener(WSListener):
    def on_ws_frame(self, transport, frame):
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        elif frame.msg_type == WSMsgType.PING:
            transport.send_pong(frame.get_payload_as_bytes())
        else:
            self.on_message(transport, frame)

    def on_message(self, transport, frame):
        pass


class Echo(Listener):
    def on_message(self, transport, frame):
        transport.send(frame.msg_type, frame.get_payload_as_memoryview())


class Sub(Listener):
    def on_ws_connected(self, transport):
        subscribers.add(transport)

    def on_ws_disconnected(self, transport):
        subscribers.discard(transport)


class Pub(Listener):
    def on_message(self, transport, frame):
        message = frame.get_payload_as_bytes()
        for subscriber in subscribers:
            subscriber.send(WSMsgType.TEXT, message)


LISTENERS = {b"/echo": Echo, b"/sub": Sub, b"/pub": Pub}


def answer(request):
    if request.path == b"/json":
        return WSUpgradeResponseWithListener(WSUpgradeResponse.create_ok_response(JSON), None)
    return LISTENERS[request.path]()


async def main(port):
    server = await ws_create_server(answer, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
