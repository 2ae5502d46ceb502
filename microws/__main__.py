"""``python -m microws``: the command ``microws``."""

import sys

from microws.cli import main

if __name__ == "__main__":
    sys.exit(main())
