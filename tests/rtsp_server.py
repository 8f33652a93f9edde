"""An RTSP server, GStreamer's, for the system's Python: it serves a transport stream with H.264 from standard input.

    python3 rtsp_server.py PORT {tcp,udp} [--sound]

The stream is sent at its own pace to whoever asks for rtsp://127.0.0.1:PORT/room. With --sound it also has AAC.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import IO

SYSTEM_PYTHON = "/usr/bin/python3"
NEEDED = "needs GStreamer's RTSP server (Debian's gir1.2-gst-rtsp-server-1.0, python3-gi and gstreamer1.0-plugins-bad)"
PICTURES = "demux. ! queue ! h264parse config-interval=-1 ! rtph264pay name=pay0 pt=96"
SOUND = "demux. ! queue ! aacparse ! rtpmp4gpay name=pay1 pt=97"


@cache
def is_installed() -> bool:
    """Whether the system's Python has the server."""
    script = "import gi; gi.require_version('GstRtspServer', '1.0')"
    return (
        shutil.which("gst-launch-1.0") is not None
        and subprocess.run([SYSTEM_PYTHON, "-c", script], capture_output=True).returncode == 0
    )


def serve(stream: IO[bytes] | int, port: int, transport: str, *options: str) -> subprocess.Popen[bytes]:
    """Start the server as a program."""
    return subprocess.Popen([SYSTEM_PYTHON, str(Path(__file__)), str(port), transport, *options], stdin=stream)


def main(port: str, transport: str, *options: str) -> None:
    """Serve until it is killed."""
    import gi

    for name in ("Gst", "GstRtsp", "GstRtspServer"):
        gi.require_version(name, "1.0")
    from gi.repository import GLib, Gst, GstRtsp, GstRtspServer

    Gst.init(None)
    media = GstRtspServer.RTSPMediaFactory(shared=True)
    media.set_launch(f"( fdsrc fd=0 ! tsdemux name=demux {PICTURES} {SOUND if options else ''} )")
    media.set_protocols(getattr(GstRtsp.RTSPLowerTrans, transport.upper()))
    server = GstRtspServer.RTSPServer(address="127.0.0.1", service=port)
    server.get_mount_points().add_factory("/room", media)
    server.attach()
    GLib.MainLoop().run()


if __name__ == "__main__":
    main(*sys.argv[1:])
