"""The backplane of one process passes the suite, and is a call."""

from contextlib import asynccontextmanager

import pytest
from conformance import PAYLOADS, BackplaneConformance

from microws.hub.backplane import MemoryBackplane


class TestMemory(BackplaneConformance):
    @asynccontextmanager
    async def connect(self, deliver):
        yield MemoryBackplane(deliver)


@pytest.mark.anyio
async def test_publish_raises_what_the_hub_raises():
    def deliver(topic, payload, skip):
        raise KeyError(topic)

    with pytest.raises(KeyError, match="t"):
        await MemoryBackplane(deliver).publish("t", PAYLOADS[0])
