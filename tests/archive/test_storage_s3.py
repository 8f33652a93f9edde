"""An archive in an object store, by a real S3 server on this machine: Moto's, as tests/readers.txt has it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polypstream.archive.inputs import find_recordings
from polypstream.archive.ledger import LEDGER, Row, State
from polypstream.archive.run import archive, read_ledger
from polypstream.archive.storage import ObjectStore
from polypstream.archive.worker import ArchiveJob, Engine, Task
from polypstream.core.config import load_settings
from polypstream.errors import OutputError, SourceError
from polypstream.jobs.setup import with_deidentification, with_model
from tests.archive.test_run import LARGE, SALT, SECRET, Here, Killed, assert_nameless, compare, kill_at
from tests.conftest import call

pytestmark = pytest.mark.slow

Make = Callable[..., Path]
SMALL = {"width": 96, "height": 64, "options": {"g": "10"}}
SERVER = Path(sys.prefix, "readers", "bin", "moto_server")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an S3 server."""
    if not SERVER.exists():
        pytest.skip("needs Moto's S3 server: make .venv/.readers")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([str(SERVER), "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The address of a fresh bucket; how to reach it is in the environment, as a user would put it there."""
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    import s3fs

    name = f"bucket-{abs(hash(request.node.name))}"
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}"


def environment(server: str) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": server,
    }


def put(path: Path, address: str) -> None:
    import s3fs

    s3fs.S3FileSystem().put_file(str(path), address)


def run(
    bucket: str,
    model: Path,
    *inputs: str,
    dies: Callable[[Task], str | None] = lambda _: None,
    salt: bytes | None = None,
) -> tuple[dict[str, Row], list[Task]]:
    """Archive from and into a bucket; rows by name, and the workers' tasks."""
    settings = with_model(load_settings(None, []), model)
    job = ArchiveJob(f"{bucket}/out", with_deidentification(settings) if salt else settings, True, 0.8)
    pools: list[Here] = []

    def make_workers(engine: Engine | None) -> Here:
        pools.append(Here(job, 2, dies, engine))
        return pools[-1]

    rows = archive(inputs, job, make_workers, False, lambda _: None, salt=salt)
    return {row.item.name: row for row in rows}, pools[0].done if pools else []


def fetch(bucket: str, name: str, folder: Path) -> Path:
    import s3fs

    s3fs.S3FileSystem(use_listings_cache=False).get(f"{bucket}/out/{name}/", f"{folder / name}/", recursive=True)
    return folder / name


def test_from_a_bucket_into_it(make: Make, bucket: str, red_model: Path, tmp_path: Path) -> None:
    recording = make(frames=60, audio=["aac"], **SMALL)
    put(recording, f"{bucket}/in/sub/clip.mp4")
    (tmp_path / "broken").write_bytes(b"nothing")
    put(tmp_path / "broken", f"{bucket}/in/broken.mp4")
    put(tmp_path / "broken", f"{bucket}/in/notes.txt")
    with pytest.raises(Killed):
        run(bucket, red_model, f"{bucket}/in", dies=kill_at(3))
    rows, tasks = run(bucket, red_model, f"{bucket}/in")
    assert {name: row.state for name, row in rows.items()} == {"sub/clip": State.DONE, "broken": State.BROKEN}
    assert sum(task.kind == "part" for task in tasks) == 1
    assert rows["broken"].reason.startswith(f"{bucket}/in/broken.mp4: not a recording")
    results = fetch(bucket, "sub/clip", tmp_path / "got")
    for name in ("findings.json", "polyps.csv"):
        text = (results / name).read_text()
        assert f"{bucket}/in/sub/clip.mp4" in text
        (results / name).write_text(text.replace(f"{bucket}/in/sub/clip.mp4", str(recording)))
    compare(results, recording, red_model, tmp_path)
    assert run(bucket, red_model, f"{bucket}/in") == (rows, [])
    assert {row.item.name: row for row in read_ledger(f"{bucket}/out")} == rows


def test_a_worker_killed_while_it_writes_leaves_nothing_in_the_way(
    make: Make, bucket: str, red_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(make(frames=10, **SMALL), f"{bucket}/in/clip.mp4")
    put_file = ObjectStore._put

    def killed_at_findings(store: ObjectStore, path: Path, name: str) -> None:
        if path.name == "findings.json":
            raise Killed
        put_file(store, path, name)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(ObjectStore, "_put", killed_at_findings)
        run(bucket, red_model, f"{bucket}/in")
    rows, _ = run(bucket, red_model, f"{bucket}/in")
    assert rows["clip"].state is State.DONE


def test_a_changed_object_is_done_again(make: Make, bucket: str, red_model: Path) -> None:
    put(make(frames=10, **SMALL), f"{bucket}/clip.mp4")
    run(bucket, red_model, f"{bucket}/*.mp4")
    put(make(frames=12, **SMALL), f"{bucket}/clip.mp4")
    rows, tasks = run(bucket, red_model, f"{bucket}/*.mp4")
    assert [task.kind for task in tasks] == ["begin"]
    assert rows["clip"].frames == 12


def test_a_manifest_in_a_bucket(make: Make, bucket: str, tmp_path: Path) -> None:
    put(make(frames=10, **SMALL), f"{bucket}/in/clip.mp4")
    put(make(frames=10, **SMALL), f"{bucket}/in/case[1].mp4")
    assert find_recordings([f"{bucket}/in/case[1].mp4"], "out")[0][0].name == "case[1]"
    (tmp_path / "list.csv").write_text(f"recording,name\nin/clip.mp4,one\n{bucket}/gone.mp4,two\n")
    put(tmp_path / "list.csv", f"{bucket}/list.csv")
    found, *_ = find_recordings([f"{bucket}/list.csv"], "out")
    assert [(item.address, item.name, item.size > 0) for item in found] == [
        (f"{bucket}/in/clip.mp4", "one", True),
        (f"{bucket}/gone.mp4", "two", False),
    ]


@pytest.mark.parametrize("address", ["{bucket}/nothing", "s3://no-such-bucket-here/in", "nosuch://a/b"])
def test_what_is_not_there_is_an_error(bucket: str, address: str) -> None:
    with pytest.raises(SourceError):
        find_recordings([address.format(bucket=bucket)], "out")


def test_a_bucket_that_cannot_be_written_is_an_error(make: Make, bucket: str, red_model: Path) -> None:
    job = ArchiveJob("s3://no-such-bucket-here/out", with_model(load_settings(None, []), red_model), False, 0)
    with pytest.raises(OutputError, match="cannot be reached"):
        archive([str(make(frames=10, **SMALL))], job, lambda _: Here(job), False, lambda _: None)


@pytest.mark.cluster
def test_the_command_with_ray_and_a_bucket(make: Make, bucket: str, server: str, red_model: Path) -> None:
    put(make(frames=60, **SMALL), f"{bucket}/in/clip.mp4")
    out = f"{bucket}/out"
    archived = ("archive", f"{bucket}/in", "--output", out, "--model", red_model, "--segment-seconds", 1)
    done = call(*archived, "--workers", 1, **environment(server))
    assert f"{bucket}/in/clip.mp4: 60 frames in 2 parts" in done.stdout
    assert "done" in call("archive", "status", out, **environment(server)).stdout
    assert LEDGER in call("archive", "status", f"{bucket}/in", check=False, **environment(server)).stderr


def test_hashed_names_are_all_that_a_bucket_gets(make: Make, bucket: str, red_model: Path, tmp_path: Path) -> None:
    put(make(frames=30, **LARGE), f"{bucket}/in-{SECRET}/{SECRET}.mp4")
    (tmp_path / "broken").write_bytes(b"nothing")
    put(tmp_path / "broken", f"{bucket}/in-{SECRET}/{SECRET}-2.mp4")
    (tmp_path / "list.csv").write_text(f"recording\n{bucket}/in-{SECRET}\n{bucket}/in-{SECRET}/{SECRET}-3.mp4\n")
    rows, _ = run(bucket, red_model, str(tmp_path / "list.csv"), salt=SALT)
    assert sorted(row.state for row in rows.values()) == [State.BROKEN, State.DONE, State.FAILED]
    assert_nameless(fetch(bucket, "", tmp_path / "got"))
    assert run(bucket, red_model, f"{bucket}/in-{SECRET}", salt=SALT)[1] == []
