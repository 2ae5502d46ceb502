"""The echo that the Autobahn cases are run against, without compression and with it."""

from microws import App


def plain():
    return _echo()


def compressed():
    return _echo(compression=True)


def _echo(**settings):
    # Case 9.1.6 is a message of 16 MiB, case 9.3.1 one of 65,537 frames.
    app = App(max_message_size=16 << 20, max_fragments=1 << 17, **settings)

    @app.websocket_route("/", value_type="auto")
    async def echo(ws):
        async with ws:
            async for message in ws:
                await ws.send(message)

    return app
