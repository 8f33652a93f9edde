"""The command's entry point. It imports the rest only under its care, so that Ctrl-C is quiet from the start."""

import os
import sys
import threading

INTERRUPTED = 130


def main() -> None:
    """Run the command line."""
    try:
        from stream.cli import run

        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except SystemExit as ending:
        if ending.code == INTERRUPTED and any(each.name.startswith("polypstream-") for each in threading.enumerate()):
            # A second Ctrl-C while files were being finished: threads inside FFmpeg cannot be unwound.
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        raise


if __name__ == "__main__":
    main()
