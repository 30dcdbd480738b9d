"""`python -m hyperfarm.deploy.reach`, on a host: whether its worker will reach the farm's database."""

from __future__ import annotations

import sys

from hyperfarm import settings
from hyperfarm.errors import HyperfarmError
from hyperfarm.mongo import connect

WITHIN_S = 8.0


def main() -> int:
    """Print nothing and return 0, or print why not and return 2."""
    try:
        connect(settings.mongo_url() or "", app="hyperfarm hosts", timeout_s=WITHIN_S).client.close()
    except HyperfarmError as error:
        print(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
