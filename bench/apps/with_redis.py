"""Starts a Redis server, names it in the environment, and then runs the command in the arguments."""

import os
import socket
import subprocess
import sys
import time


def main():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    # Without persistence, and with the log level of the servers.
    subprocess.Popen(["redis-server", "--port", str(port), "--save", "", "--loglevel", "warning"])
    end = time.monotonic() + 5
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
    url = f"redis://127.0.0.1:{port}"
    sys.exit(subprocess.call(sys.argv[1:], env={**os.environ, "REDIS_URL": url, "MICROWS_HUB": url}))


if __name__ == "__main__":
    main()
