"""One app behind every server: each test runs against each of them, over real sockets."""

import pytest
from servers import PROGRAMS, Client, failures, started


@pytest.fixture(scope="session", params=PROGRAMS)
def server(request):
    """A server, started when its first test asks for it."""
    with started(request.param) as server:
        server.at_rest = None
        yield server
        assert server.stop() == server.program.exit_code
        assert failures(server) == []


@pytest.fixture
def anyio_backend():
    """The clients' event loop; the server's is the server's own."""
    return "asyncio"


@pytest.fixture
async def client(server):
    """Whoever uses it leaves nothing behind in the server."""
    async with Client.of(server) as client:
        if server.at_rest is None:
            # What is made once only is there from now on.
            async with client.connect("/same") as ws:
                await ws.recv()
            await client.look_at_rest()
        yield client
        await client.wait_until_at_rest()
