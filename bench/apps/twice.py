"""Listens on the port that is the first argument, and runs the command in the others twice, with that socket."""

import signal
import socket
import subprocess
import sys


def main():
    port, *command = sys.argv[1:]
    with socket.create_server(("127.0.0.1", int(port)), backlog=4096) as sock:
        option = ["--bind", f"fd://{sock.fileno()}"]
        servers = [subprocess.Popen([*command, *option], pass_fds=[sock.fileno()]) for _ in range(2)]
    signal.signal(signal.SIGTERM, lambda *_: [server.terminate() for server in servers])
    sys.exit(max(server.wait() for server in servers))


if __name__ == "__main__":
    main()
