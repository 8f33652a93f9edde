"""An archive on a real Ray cluster of two nodes, one of which is killed, and then the driver."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from polypstream.archive.cluster import Share, share_out
from polypstream.archive.ledger import LEDGER, Ledger, State
from polypstream.archive.run import read_ledger
from polypstream.archive.storage import HIDDEN, LOCK
from polypstream.core.config import Settings
from polypstream.errors import OutputError
from polypstream.inference.providers import probe
from polypstream.jobs.process import Job, process
from polypstream.jobs.setup import make_segmenter, with_model
from polypstream.sources.deidentified import hashed_name
from polypstream.sources.demo import open_demo
from tests.conftest import Clip as Wanted
from tests.conftest import audio_packets_of, call, command, frames_of, make_clip, pts_of

Make = Callable[..., Path]
GOOD, BROKEN = 44, 6
# Seconds in which each of the things that are waited for happens, on a slow machine.
PATIENCE_S = 240


@pytest.mark.parametrize(
    ("nodes", "wanted", "provider", "share"),
    [
        ([{"CPU": 2.0}], None, "auto", Share(1, 2, 0)),
        ([{"CPU": 16.0}], None, "auto", Share(4, 4, 0)),
        ([{"CPU": 10.0}, {"CPU": 3.0}], None, "auto", Share(3, 3, 0)),
        ([{"CPU": 2.0}], 2, "auto", Share(2, 1, 0)),
        ([{"CPU": 2.0}], 3, "auto", Share(3, 0.66, 0)),
        ([{"CPU": 32.0, "GPU": 2.0}, {"CPU": 16.0}], None, "auto", Share(2, 16, 1)),
        ([{"CPU": 32.0, "GPU": 2.0}], 4, "cuda", Share(4, 8, 0.5)),
        ([{"CPU": 32.0, "GPU": 2.0}], None, "cpu", Share(8, 4, 0)),
        ([{"CPU": 32.0, "GPU": 2.0}], 3, "cuda", Share(3, 10, 0.5)),
        ([{"CPU": 8.0}, {}], None, "cpu", Share(2, 4, 0)),
        ([{}], None, "cpu", Share(0, 0, 0)),
    ],
)
def test_one_worker_for_each_gpu_or_share_of_cpus(
    nodes: list[dict[str, float]], wanted: int | None, provider: str, share: Share
) -> None:
    assert share_out(nodes, wanted, provider) == share


@pytest.mark.cluster
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "auto", "nowhere"])
def test_a_cluster_that_is_not_there_is_an_error(make: Make, tmp_path: Path, address: str) -> None:
    """This test comes before the cluster is started, which "auto" would find."""
    done = call("archive", make(frames=5), "--output", tmp_path / "out", "--address", address, check=False)
    assert done.returncode == 1
    assert f"--address: no running Ray cluster found at {address}" in done.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def masters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Recordings of which an archive is made of copies: made ones, a demo, and the real clip where there is one."""
    folder = tmp_path_factory.mktemp("masters")
    wanted: list[dict[str, Any]] = [
        {"name": "a.mp4", "frames": 40, "audio": ["aac"]},
        {"name": "b.mp4", "frames": 70},
        {"name": "c.mkv", "frames": 25, "audio": ["flac"]},
        {"name": "d.ts", "frames": 50, "codec": "mpeg2video"},
        {"name": "e.avi", "frames": 30, "codec": "mjpeg", "pixel_format": "yuvj420p"},
    ]
    made = [
        make_clip(folder, Wanted(**{"width": 160, "height": 120, "options": {"g": "10"}} | each)) for each in wanted
    ]
    demo = open_demo("demo:?seconds=3&seed=3&size=480x360")
    demo.close()
    made.append(shutil.copyfile(demo.path, folder / "demo.mp4"))
    data = os.environ.get("POLYPSTREAM_DATA")
    if data:
        (clip,) = Path(data, "clips").glob("*.mp4")
        made.append(copy_beginning(clip, folder / "real.mp4"))
    return made


def copy_beginning(recording: Path, path: Path) -> Path:
    """Copy the packets of the first four seconds of a video."""
    with av.open(str(recording)) as source, av.open(str(path), "w") as file:
        video = source.streams.video[0]
        copy = file.add_stream_from_template(video)
        for packet in source.demux(video):
            if packet.dts is not None and packet.dts * packet.time_base < 4:
                packet.stream = copy
                file.mux(packet)
    return path


def fill(folder: Path, masters: list[Path]) -> dict[Path, Path]:
    """An archive of good recordings and broken ones; for each good one what it is a copy of."""
    copies: dict[Path, Path] = {}
    folder.mkdir()
    for number in range(GOOD):
        once = number < len(masters)  # the demo and the real clip take long
        master = masters[number if once else number % 5]
        copies[folder / f"ward{number % 3}" / f"{number:02}{master.suffix}"] = master
    for copy, master in copies.items():
        copy.parent.mkdir(exist_ok=True)
        copy.symlink_to(master)
    good = masters[0].read_bytes()
    for number in range(BROKEN):
        content = (b"", b"text " * 500, good[: len(good) // 2], good[:40] + os.urandom(3000))[number % 4]
        (folder / f"broken{number}.mp4").write_bytes(content)
    return copies


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of one node with one CPU; `client` is its address for drivers from outside."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "disabled")
        from ray.cluster_utils import Cluster

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        head = {"num_cpus": 1, "include_dashboard": False, "ray_client_server_port": port}
        made = Cluster(initialize_head=True, head_node_args=head)
        made.client = f"ray://{made.address.split(':')[0]}:{port}"
        try:
            yield made
        finally:
            made.shutdown()


def wait_until(happened: Callable[[], bool], driver: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.3)


def finished(output: Path) -> int:
    """How many recordings are."""
    try:
        return sum(row.state in (State.DONE, State.BROKEN) for row in read_ledger(str(output)))
    except OutputError:
        return 0  # not begun yet


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_fifty_recordings_survive_a_node_and_a_driver(
    masters: list[Path], red_model: Path, cluster: Any, tmp_path: Path
) -> None:
    copies = fill(tmp_path / "in", masters)
    output = tmp_path / "out"
    second_node = cluster.add_node(num_cpus=1)
    options = ["--output", str(output), "--model", str(red_model), "--masks", "--segment-seconds", "1"]
    arguments = ["archive", str(tmp_path / "in"), *options]
    driver_inside = [*command(), *arguments, "--address", cluster.address]
    driver = subprocess.Popen(driver_inside, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: finished(output) >= 12, driver)
        cluster.remove_node(second_node, allow_graceful=False)
        wait_until(lambda: finished(output) >= 28, driver)
    finally:
        driver.send_signal(signal.SIGKILL)
        said = driver.communicate()[1]
    assert "a worker on" in said
    assert "another worker repeats its task" in said
    before = finished(output)
    assert 28 <= before < GOOD + BROKEN
    again = call(*arguments, "--address", cluster.client, check=False)
    assert again.returncode == 1  # some are broken
    assert "recordings" in again.stdout, again.stderr  # the table at the end
    assert f"{GOOD + BROKEN - before} of {GOOD + BROKEN} recordings to process" in again.stderr
    rows = {row.item.address: row for row in read_ledger(str(output))}
    assert len(rows) == GOOD + BROKEN
    assert {Path(address) for address, row in rows.items() if row.state is State.DONE} == set(copies)
    for number in range(BROKEN):
        row = rows[str(tmp_path / "in" / f"broken{number}.mp4")]
        assert row.state is State.BROKEN
        assert again.stderr.count(f"{row.item.address}: broken: ") == 1
    settings = with_model(Settings(), red_model)
    _compare(copies, tmp_path / "in", output, tmp_path / "process", settings)
    kept = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.suffix in (".mp4", ".json", ".mkv")}
    third = call(*arguments, check=False)
    assert "to process" not in third.stderr
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert {path.name for path in output.iterdir()} == {"ward0", "ward1", "ward2", LEDGER, HIDDEN}
    assert {path.name for path in (output / HIDDEN).rglob("*") if path.is_file()} == {LOCK}


def _compare(copies: dict[Path, Path], inputs: Path, output: Path, folder: Path, settings: Settings) -> None:
    """Tables, findings, masks, times and sound are those of `process`, bit for bit."""
    segmenter = make_segmenter(settings)
    wholes = {
        master: process(Job(str(master), folder, masks=True), segmenter, settings).folder
        for master in dict.fromkeys(copies.values())
    }
    masks = {whole: frames_of(whole / "masks.mkv", "gray") for whole in wholes.values()}
    for copy, master in copies.items():
        results, whole = output / copy.relative_to(inputs).with_suffix(""), wholes[master]
        assert (results / "frames.csv").read_bytes() == (whole / "frames.csv").read_bytes()
        found = (results / "findings.json").read_text().replace(json.dumps(str(copy)), json.dumps(str(master)))
        assert found == (whole / "findings.json").read_text()
        for one, other in zip(frames_of(results / "masks.mkv", "gray"), masks[whole], strict=True):
            np.testing.assert_array_equal(one, other)
        assert pts_of(results / "annotated.mp4") == pts_of(whole / "annotated.mp4")
        assert audio_packets_of(results / "annotated.mp4") == audio_packets_of(whole / "annotated.mp4")


@pytest.mark.cluster
def test_without_a_cluster_ray_is_started_here(
    make: Make, red_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths are the caller's, wherever the workers are, and results may lie beside the recording."""
    recording = make(frames=60, width=160, height=120, options={"g": "10"})
    monkeypatch.chdir(tmp_path)
    done = call("archive", "clip.mp4", "--output", ".", "--model", red_model, "--segment-seconds", 1, "--workers", 2)
    assert f"{recording}: 60 frames in 2 parts" in done.stdout
    assert "1 of 1 recording to process" in done.stderr
    assert (tmp_path / "clip" / "annotated.mp4").is_file()
    assert "done" in call("archive", "status", tmp_path).stdout
    if probe("openvino") is None:
        assert_a_later_run_takes_the_provider_of_earlier_results(make(name="b.mp4", frames=5), red_model, tmp_path)


def assert_a_later_run_takes_the_provider_of_earlier_results(recording: Path, model: Path, results: Path) -> None:
    """Also if another one is faster here: results of two providers can differ."""
    with closing(Ledger(results / LEDGER)) as ledger:
        facts: Any = ledger.made_with()
        slower = "cpu" if facts["engine"]["provider"] == "openvino" else "openvino"
        ledger.set_made_with(facts | {"engine": facts["engine"] | {"provider": slower}})
    call("archive", recording, "--output", results, "--model", model, "--segment-seconds", 1, "--workers", 1)
    assert json.loads((results / "b" / "summary.json").read_text())["provider"] == slower


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")
def test_a_broken_recording_is_told_once_by_each_run(cluster: Any, make: Make, red_model: Path, tmp_path: Path) -> None:
    """Also if names are hashed: the terminal shows which recording got which hash, as with `process`."""
    good, broken, salt = make(frames=5), tmp_path / "broken.mp4", tmp_path / "salt"
    broken.write_bytes(b"nothing")
    salt.write_text("0123456789abcdef" * 2)
    options = ("--output", tmp_path / "out", "--model", red_model, "--address", cluster.address, "--hash-names", salt)
    done = call("archive", good, broken, *options, check=False)
    assert done.returncode == 1
    said = (done.stdout + done.stderr).splitlines()
    (line,) = (line for line in said if "broken:" in line)
    assert line.startswith(f"polypstream: {broken}: broken: not a recording")
    assert f"{good}: 5 frames, 1 polyp, " in done.stdout
    assert f" -> {hashed_name(good.name, salt.read_bytes())}" in done.stdout
    again = call("archive", good, broken, *options, check=False)
    assert again.stderr.splitlines() == [line]
    name = hashed_name(broken.name, salt.read_bytes())
    status = call("archive", "status", tmp_path / "out").stdout
    assert str(broken) not in status
    assert sum(name in line for line in status.splitlines()) == 1


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")
def test_a_model_that_cannot_be_had_is_said_once(cluster: Any, make: Make, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    options = ("--output", tmp_path / "out", "--model", tmp_path / "model.onnx", "--address", cluster.address)
    done = call("archive", make(frames=5), *options, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 2
    assert f"{tmp_path / 'model.onnx'}: " in done.stderr
