"""`python -m exlora.compat`: runs an unmodified script that says `import exllamav2`."""

from __future__ import annotations

import os
import runpy
import sys

from exlora.compat import install

USAGE = """\
usage: python -m exlora.compat script.py [arguments]
       python -m exlora.compat -m module [arguments]

Runs a script or a module whose `import exllamav2` means exlora.
"""


def main() -> None:
    """Runs what the command line names, as Python itself would."""
    arguments = sys.argv[1:]
    is_module = arguments[:1] == ["-m"]
    name = arguments[int(is_module) : int(is_module) + 1]
    if not name or arguments[0] in ("-h", "--help"):
        (sys.stdout if name else sys.stderr).write(USAGE)
        sys.exit(0 if name else 2)
    install()
    if is_module:
        sys.argv = arguments[1:]
        runpy.run_module(name[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path[0] = os.path.dirname(os.path.abspath(name[0]))
        runpy.run_path(name[0], run_name="__main__")


if __name__ == "__main__":
    main()
