"""Eight clients that post pictures at once, as a share of what the session does alone.

    python benchmarks/clients.py [PICTURE.jpg] [--seconds 15]

Starts `polypstream serve`, then measures by turns, three times: the session alone, fed with the same picture at the
network's size from one thread, and the server with eight clients, each a thread with a connection of its own, in
another process.
"""

from __future__ import annotations

import argparse
import http.client
import multiprocessing
import statistics
import tempfile
import threading
import time
from io import BytesIO
from pathlib import Path

from polypstream.core.config import Settings
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.image import load_image, prepare_image
from polypstream.jobs.setup import make_segmenter
from polypstream.web.serve import serve

CLIENTS, ROUNDS = 8, 3
SAMPLE = Path(__file__).parents[1] / "stream" / "web" / "static" / "samples" / "2.jpg"
BOUNDARY = "boundary"


def session_alone(segmenter: Segmenter, picture: bytes, seconds: float) -> float:
    """Pictures a second."""
    decoded = load_image(BytesIO(picture))
    _, shown = prepare_image(decoded, segmenter.size)
    batch = [shown] * segmenter.batch_size
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        count += len(segmenter.segment(batch))
    return count / (time.perf_counter() - started)


def clients(port: int, picture: bytes, accept: str, seconds: float, answered: multiprocessing.Queue[float]) -> None:
    """Post from eight threads; answers a second into a queue."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'.encode()
    body = head + picture + f"\r\n--{BOUNDARY}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}", "Accept": accept}
    counts = [0] * CLIENTS
    started = time.perf_counter()

    def post(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while time.perf_counter() - started < seconds:
            connection.request("POST", "/api/segment", body, headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise SystemExit(f"status {answer.status}")
            counts[number] += 1

    threads = [threading.Thread(target=post, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answered.put(sum(counts) / (time.perf_counter() - started))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", nargs="?", type=Path, default=SAMPLE)
    parser.add_argument("--seconds", type=float, default=10.0)
    wanted = parser.parse_args()
    picture, settings = wanted.picture.read_bytes(), Settings()
    segmenter = make_segmenter(settings)
    context = multiprocessing.get_context("spawn")
    kinds = ("application/json", "image/png")
    rates: dict[str, list[float]] = {"session": [], **{kind: [] for kind in kinds}}
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(Path(folder), [], segmenter, settings, "127.0.0.1", 0, None) as address,
    ):
        port = int(address.rstrip("/").rsplit(":", 1)[1])
        for _ in range(ROUNDS):
            rates["session"].append(session_alone(segmenter, picture, wanted.seconds))
            for kind in kinds:
                answered = context.Queue()
                process = context.Process(target=clients, args=(port, picture, kind, wanted.seconds, answered))
                process.start()
                rates[kind].append(answered.get())
                process.join()
    alone = statistics.median(rates["session"])
    for name, each in rates.items():
        print(f"{name:20} {statistics.median(each):7.1f} per second  {statistics.median(each) / alone:5.2f}")


if __name__ == "__main__":
    main()
