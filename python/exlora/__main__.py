"""The command `exlora`, also as `python -m exlora`."""

from __future__ import annotations

import signal
import sys

import exlora._exlora as _exlora


def main() -> int:
    """Runs the command line of this process."""
    # The work is done in Rust; Ctrl-C ends the process as it would without Python.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _exlora.main(["exlora", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
