"""The backplane of several machines passes the suite, with Redis between its processes."""

import pytest
from conformance import BackplaneConformance
from redis_server import redis_server

from microws.redis_hub.backplane import RedisBackplane

pytestmark = [pytest.mark.anyio, pytest.mark.sockets]


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


class TestRedis(BackplaneConformance):
    processes = 3

    @pytest.fixture(autouse=True)
    def server(self, redis):
        redis.command("FLUSHALL")
        self.url = redis.url

    def connect(self):
        return RedisBackplane(self.url)
