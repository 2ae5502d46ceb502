"""Every async test runs on asyncio, on asyncio with uvloop, and on trio."""

import pytest

BACKENDS = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


@pytest.fixture(params=BACKENDS.values(), ids=BACKENDS)
def anyio_backend(request):
    return request.param
