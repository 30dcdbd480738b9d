"""The command `hyperopt-mongo-worker`, put in the place of hyperopt's own in this environment."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from hyperfarm.errors import UsageError

NAME = "hyperopt-mongo-worker"
TEXT = """\
#!{python}
# hyperfarm's worker with hyperopt-mongo-worker's options.
# hyperopt's own comes back with: pip install --force-reinstall --no-deps hyperopt
from hyperfarm.mongoexp import main

main()
"""


def install_shim() -> Path:
    """Write the command beside this environment's other commands; return its path. Raises UsageError."""
    path = Path(sysconfig.get_path("scripts")) / NAME
    part = path.with_name(f".{NAME}.part")
    try:
        part.write_text(TEXT.format(python=sys.executable))
        part.chmod(0o755)
        part.replace(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    return path
