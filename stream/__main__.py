"""The entry point of the command line.

It sets the signal handler before it imports the rest, so that Ctrl-C prints no traceback during the imports.
"""

import os
import signal
import sys
import threading

from polypstream.errors import INTERRUPTED


def main() -> None:
    """Run the command line.

    Raises:
        SystemExit: the command has ended; the code is the exit status, INTERRUPTED (130) after Ctrl-C.
    """
    # During an import, extension modules replace KeyboardInterrupt by their own errors. No work has started yet, so
    # the process can exit directly. The command line restores the handler when the command's modules are imported.
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    from polypstream.cli.app import run

    try:
        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except SystemExit as error:
        if error.code == INTERRUPTED and any(each.name.startswith("polypstream-") for each in threading.enumerate()):
            # This is a second Ctrl-C, while files were being finished. Threads inside FFmpeg cannot be unwound.
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        raise


if __name__ == "__main__":
    main()
