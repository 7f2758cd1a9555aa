"""``python -m iotsplit`` is the command ``iotsplit``."""

import sys

from iotsplit.cli import main

if __name__ == "__main__":
    sys.exit(main())
