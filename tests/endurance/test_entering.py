"""Who may enter and stay, with thousands of connections: tickets, and the end of a session."""

import json
import selectors
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager

import pytest
from byte_client import LIMIT, ByteClient, frame, upgrade
from endurance import LOOPS, PATIENCE, enduring, share
from redis_server import redis_server

pytestmark = pytest.mark.timeout(300)


def ask(client, method, path):
    """The body of a response, on a connection that is kept."""
    client.send(f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n".encode())
    status, headers = client.read_head()
    assert status == 200, status
    return client.read_bytes(int(headers["content-length"])).decode()


def serve(*flags, **options):
    return enduring(*flags, app="entering:app", **options)


@contextmanager
def two_local_workers(_):
    with serve("--workers", "2") as process:
        yield [process], [process.port, process.port]


@contextmanager
def two_servers_with_redis(directory):
    with redis_server(directory) as redis, ExitStack() as stack:
        processes = [stack.enter_context(serve("--hub", redis.url)) for _ in range(2)]
        yield processes, [process.port for process in processes]


# Tickets


class Workers:
    """Connections to two workers, each of which has said whose it is."""

    def __init__(self, ports):
        self._ports = ports
        self._waiting = defaultdict(list)

    def pair(self):
        """A connection to each."""
        while len(self._waiting) < 2 or not all(self._waiting.values()):
            for port in self._ports:
                client = ByteClient(port)
                self._waiting[ask(client, "GET", "/pid")].append(client)
        assert len(self._waiting) == 2
        return [clients.pop() for clients in self._waiting.values()]

    def close(self):
        for clients in self._waiting.values():
            for client in clients:
                client.sock.close()


@pytest.mark.parametrize("serve_two", [two_local_workers, two_servers_with_redis], ids=["local", "redis"])
def test_ticket_taken_in_two_workers_at_once_lets_one_in(serve_two, tmp_path, figure):
    count, at_once = share(10_000), 50
    winners = defaultdict(int)
    with serve_two(tmp_path) as (processes, ports):
        with ByteClient(ports[0]) as client:
            tickets = json.loads(ask(client, "POST", f"/tickets/{count}"))
        workers = Workers(ports)
        began = time.monotonic()
        for start in range(0, count, at_once):
            pairs = [workers.pair() for _ in tickets[start : start + at_once]]
            for number, (ticket, pair) in enumerate(zip(tickets[start:], pairs, strict=False)):
                # Each worker gets half of the tickets first.
                for client in pair[:: 1 if number % 2 else -1]:
                    client.send(upgrade(f"/ticket?ticket={ticket}"))
            for pair in pairs:
                answers = [client.read_head()[0] for client in pair]
                assert sorted(answers) == [101, 401]
                winners[answers.index(101)] += 1
                for client in pair:
                    client.reset()
        figure(f"{count} tickets, one each, {dict(winners)} by worker, {time.monotonic() - began:.1f} s")
        workers.close()
        assert len(winners) == 2
        for process in processes:
            process.stop()


# The end of a session


@pytest.mark.parametrize("hub", ["local", "redis"])
def test_log_out_closes_all_connections_of_a_user_in_all_workers(hub, tmp_path, figure):
    count, others = 1000, 100
    with ExitStack() as servers, ExitStack() as stack:
        flags = ["--hub", servers.enter_context(redis_server(tmp_path)).url] if hub == "redis" else []
        process = servers.enter_context(serve("--workers", "4", *flags))
        users = ["anna"] * count + ["ben"] * others
        clients = [stack.enter_context(ByteClient(process.port)) for _ in users]
        for client, user in zip(clients, users, strict=True):
            client.open(f"/of/{user}")
        workers = {client.read_message().payload for client in clients[:count]}
        assert len(workers) == 4
        asking = stack.enter_context(ByteClient(process.port))
        assert ask(asking, "GET", "/of/anna") == str(count)
        began = time.monotonic()
        answer = ask(asking, "POST", "/log-out/anna")
        answered = time.monotonic() - began
        assert {client.read_close() for client in clients[:count]} == {(4403, "logged out")}
        seconds = time.monotonic() - began
        figure(f"{count} connections of 4 workers: answer after {answered:.3f} s, all closed after {seconds:.3f} s")
        assert answer == str(count)
        assert seconds <= PATIENCE
        assert (ask(asking, "GET", "/of/anna"), ask(asking, "GET", "/of/ben")) == ("0", str(others))
        stack.close()
        process.stop()


@pytest.mark.parametrize("loop", LOOPS)
def test_connections_end_within_a_second_of_their_time(loop, figure):
    count = share(10_000)
    late = []
    with serve(loop=loop) as process, ExitStack() as stack, selectors.DefaultSelector() as selector:
        clients = [stack.enter_context(ByteClient(process.port)) for _ in range(count)]
        for client in clients:
            client.open("/until")
        # Half of them at the same time, and the others spread over two seconds.
        first = time.time() + 2 * PATIENCE
        for number, client in enumerate(clients):
            at = first + (1 if number % 2 else 2 * number / count)
            client.send(frame(repr(at)))
            selector.register(client.sock, selectors.EVENT_READ, (client, at))
        assert time.time() < first
        while len(late) < count:
            ready = selector.select(LIMIT)
            assert ready, f"{count - len(late)} connections are open after their time"
            now = time.time()
            for key, _ in ready:
                client, at = key.data
                selector.unregister(client.sock)
                late.append(now - at)
                assert client.read_close() == (4401, "expired")
        figure(f"{count} connections: {min(late):.3f} to {max(late):.3f} s after their time")
        assert min(late) > -0.01
        assert max(late) <= PATIENCE
        stack.close()
        process.stop()
