"""The backplane of one process passes the suite, and is a call."""

from contextlib import asynccontextmanager

from conformance import BackplaneConformance

from microws.hub.backplane import MemoryBackplane


class TestMemory(BackplaneConformance):
    @asynccontextmanager
    async def connect(self, receiver):
        backplane = MemoryBackplane()
        backplane.start(receiver)
        yield backplane
