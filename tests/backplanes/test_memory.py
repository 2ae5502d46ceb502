"""The backplane of one process passes the suite, and is a call."""

import pytest
from conformance import BackplaneConformance, text
from hubs import HISTORY_BYTES, Process

from microws.hub.backplane import MemoryBackplane


class TestMemory(BackplaneConformance):
    def connect(self):
        return MemoryBackplane(HISTORY_BYTES)


@pytest.mark.anyio
async def test_publish_raises_what_the_hub_raises():
    def deliver(payload, skip):
        raise KeyError(payload.topic)

    process = Process(MemoryBackplane())
    process.backplane.start(process)
    process.deliver = deliver
    with pytest.raises(KeyError, match="t"):
        await process.backplane.publish(text("hi"))


@pytest.mark.anyio
async def test_the_log_is_made_when_history_needs_it():
    process = Process(MemoryBackplane())
    process.backplane.start(process)
    await process.backplane.publish(text("hi"))
    assert process.backplane._made is None
