"""A proxy of TCP that loses, cuts and refuses what a test names, in a thread of its own."""

import asyncio
import threading
from contextlib import suppress


class Proxy:
    """
    Attributes:
        target: The port that new connections go to; ``None``: they are closed at once.
        is_silent: Nothing passes, in both directions, and new connections get no answer.
        refuses_upgrades: Handshakes of WebSockets get 403.
        cut: ``"before"``: what a client sends next closes its connection, and is lost. ``"after"``: it passes, then the
            connection is closed. ``"answer"``: what the server sends next closes it, and is lost. Once each, on
            WebSockets and on connections with a POST.
        upgrades: Handshakes so far.
    """

    def __init__(self, target):
        self.target = target
        self.is_silent = False
        self.refuses_upgrades = False
        self.cut = None
        self.upgrades = 0
        self._open = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def cut_all(self):
        """Close every connection."""

        async def close():
            for writer in self._open:
                writer.transport.abort()

        self._run(close())

    def close(self):
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _stop(self):
        # asyncio leaves a connection open that it has accepted, and not begun to serve, when the server is closed.
        for sock in self._server.sockets:
            self._loop.remove_reader(sock.fileno())
        for _ in range(5):
            await asyncio.sleep(0)
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(5):
            await asyncio.sleep(0)  # the transports that are closed close their sockets

    async def _serve(self, reader, writer):
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            self._open.add(writer)
            try:
                await self._forward(reader, writer)
            finally:
                self._open.discard(writer)
                writer.close()

    async def _forward(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        is_upgrade = b"\r\nupgrade: websocket" in head.lower()
        is_post = head.startswith(b"POST ")
        self.upgrades += is_upgrade
        if is_upgrade and self.refuses_upgrades:
            writer.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            return
        if self.target is None:
            return
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target)
        try:
            if not self.is_silent:
                there_writer.write(head)
            state = {"counts": is_upgrade or is_post}
            there = asyncio.ensure_future(self._pass_on(reader, there_writer, state, ("before", "after")))
            back = asyncio.ensure_future(self._pass_on(there_reader, writer, state, ("answer",)))
            await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
            for task in (there, back):
                task.cancel()
            await asyncio.gather(there, back, return_exceptions=True)
        finally:
            there_writer.close()

    async def _pass_on(self, reader, writer, state, cuts):
        while data := await reader.read(65536):
            if self.is_silent:
                continue
            # A browser uses a connection again, for other requests.
            state["counts"] |= data.startswith(b"POST ")
            cut = self.cut if state["counts"] and self.cut in cuts else None
            if cut:
                self.cut = None
            if cut in ("before", "answer"):
                return
            writer.write(data)
            await writer.drain()
            if cut:
                return
