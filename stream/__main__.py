"""The command's entry point. It imports the rest only under its care, so that Ctrl-C is quiet from the start."""

import os
import signal
import sys
import threading

INTERRUPTED = 130


def main() -> None:
    """Run the command line."""
    # Python would raise inside an import, where extension modules turn it into errors of theirs; nothing is begun yet.
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    # Before av: both wheels bring an XCB library of their own, and with av's loaded first OpenCV's windows never open.
    import cv2  # noqa: F401

    from polypstream.cli.app import run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
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
