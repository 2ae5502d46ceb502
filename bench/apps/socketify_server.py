"""socketify, which is uWebSockets in C++, with its own ``publish``: ``python -m bench.apps.socketify_server PORT``."""

import sys

from socketify import App, CompressOptions

SETTINGS = {"compression": CompressOptions.DISABLED, "max_payload_length": 1 << 20, "idle_timeout": 120}

app = App()


def json_view(response, request):
    response.write_header("Content-Type", "application/json")
    response.end('{"message":"Hello, World!"}')


def echo(ws, message, opcode):
    ws.send(message, opcode)


def subscribe(ws):
    ws.subscribe("fan")


def ignore(ws, message, opcode):
    pass


def publish(ws, message, opcode):
    app.publish("fan", message, opcode)


app.get("/json", json_view)
app.ws("/echo", SETTINGS | {"message": echo})
app.ws("/sub", SETTINGS | {"open": subscribe, "message": ignore})
app.ws("/pub", SETTINGS | {"message": publish})

if __name__ == "__main__":
    app.listen(int(sys.argv[1]))
    app.run()
