"""
Notifies a user of examples/notify.py from another program, such as a cron job.

    python examples/notify_send.py ada "lunch is ready"

The hub of the server is that of MICROWS_HUB, or local:/tmp/notify. In a shell, without Python:

    microws publish user:ada '{"from": "cron", "text": "lunch is ready"}' --json --hub local:/tmp/notify
"""

import argparse
import sys
from os import environ

from microws import HubUnavailable, connect_hub


def main():
    parser = argparse.ArgumentParser(description="Notify a user.")
    parser.add_argument("user")
    parser.add_argument("text")
    arguments = parser.parse_args()
    try:
        with connect_hub(environ.get("MICROWS_HUB") or "local:/tmp/notify") as hub:
            hub.publish(f"user:{arguments.user}", {"from": "a script", "text": arguments.text})
    except HubUnavailable as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
