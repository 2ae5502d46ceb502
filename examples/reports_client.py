"""
Requests reports from examples/reports.py.

    python examples/reports_client.py report1 report2
    python examples/reports_client.py                       (prompts for names until Ctrl-D)

The token is "let-me-in", or the value of REPORTS_TOKEN.
"""

import argparse
import json
import sys
from os import environ

from websockets.exceptions import WebSocketException
from websockets.sync.client import connect


def typed_names():
    while True:
        try:
            yield input("report: ")
        except (EOFError, KeyboardInterrupt):
            return


def main():
    parser = argparse.ArgumentParser(description="Request reports from a server.")
    parser.add_argument("names", nargs="*", help="for example report1; default: prompt for names")
    parser.add_argument("--url", default="ws://127.0.0.1:8000/reports")
    arguments = parser.parse_args()
    try:
        with connect(arguments.url) as ws:
            ws.send(environ.get("REPORTS_TOKEN") or "let-me-in")
            for name in arguments.names or typed_names():
                ws.send(name)
                answer = json.loads(ws.recv(timeout=10))
                print(answer.get("report") or answer["error"])
    except (OSError, WebSocketException) as error:
        sys.exit(f"{arguments.url}: {error}")


if __name__ == "__main__":
    main()
