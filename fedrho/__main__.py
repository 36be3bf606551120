"""`fedrho` and `python -m fedrho`: the console command, stoppable while it is still loading."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    try:
        from fedrho import cli

        cli.main()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stderr.write("fedrho: stopped\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
