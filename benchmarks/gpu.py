"""What works on a machine with an NVIDIA GPU, whether the masks are those of the CPU, and what each way costs.

    python benchmarks/gpu.py --prepare .gpu
    python benchmarks/gpu.py [--provider cuda] [--prepared .gpu] [--seconds 230] [--json FILE]

The first line needs the extra `train`. It makes what takes long: two recordings and a network that computes in half
floats. Without them the second line leaves out what needs them. The program need not be installed: the folders of the
checkout are enough. Each step stands alone, says what it found or the error, and is left out when little time remains.
`--provider cpu` tries the script itself on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

CHECKOUT = Path(__file__).resolve().parents[1]


def make_importable() -> None:
    """Let `import polypstream` find the folders of the checkout, also in child processes, where it is not installed."""
    with contextlib.suppress(ModuleNotFoundError):
        if importlib.util.find_spec("polypstream.core"):
            return
    tree = Path(tempfile.mkdtemp())
    (tree / "polypstream").mkdir()
    for entry in (*(CHECKOUT / "stream").iterdir(), CHECKOUT / "export", CHECKOUT / "models"):
        (tree / "polypstream" / entry.name).symlink_to(entry)
    (tree / "polypstream-0.1.0.dist-info").mkdir()
    (tree / "polypstream-0.1.0.dist-info" / "METADATA").write_text("Name: polypstream\nVersion: 0.1.0\n")
    sys.path.insert(0, str(tree))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(tree), os.environ.get("PYTHONPATH", "")])


make_importable()

import av  # noqa: E402
import onnxruntime as ort  # noqa: E402
import psutil  # noqa: E402

from polypstream.core.config import Settings, load_settings  # noqa: E402
from polypstream.core.geometry import FieldOfView  # noqa: E402
from polypstream.inference.bound import BoundModel  # noqa: E402
from polypstream.inference.machine import describe_machine  # noqa: E402
from polypstream.inference.model_card import shipped_weights  # noqa: E402
from polypstream.inference.nv12 import Nv12Graph  # noqa: E402
from polypstream.inference.providers import FULL_NAMES, SessionSettings, open_session, probe  # noqa: E402
from polypstream.inference.segmenter import Segmenter  # noqa: E402
from polypstream.jobs.bench import LiveRun, Shown, measure_live, most_rooms  # noqa: E402
from polypstream.jobs.setup import make_segmenter  # noqa: E402
from polypstream.media.nvdec import Nvdec  # noqa: E402
from polypstream.sources.demo_colon import DemoColon, DemoSettings  # noqa: E402
from polypstream.sources.recording import Recording  # noqa: E402
from polypstream.stages.field_of_view import ViewCropper  # noqa: E402
from polypstream.stages.gpu_field_of_view import GpuViewCropper  # noqa: E402

BATCHES = (1, 2, 4, 8, 16, 32)
# Options of ONNX Runtime's CUDA provider, each measured alone.
OPTIONS = {
    "as they are": {},
    "prefer_nhwc": {"prefer_nhwc": "1"},
    "use_tf32 off": {"use_tf32": "0"},
    "cudnn_conv_algo_search HEURISTIC": {"cudnn_conv_algo_search": "HEURISTIC"},
    "prefer_nhwc, HEURISTIC": {"prefer_nhwc": "1", "cudnn_conv_algo_search": "HEURISTIC"},
}
QUIET, MARKED, HALF = "quiet.mp4", "marked.mp4", "half.onnx"
# The prepared recordings are repeated until they have this many frames.
LONG = 3000
# Pictures of NVDEC that are compared with those of the CPU.
COMPARED = 80
# Frames of a group of pictures, and where in the demo there is none and one polyp in view for so long.
GROUP, HEALTHY, POLYP = 48, 79, 22
NOTHING_MARKED = "findings.smallest=0.99"
MOST_ROOMS = 64


class Bench:
    """Runs steps until the time is used up, and collects what they return.

    Args:
        wanted: the arguments of the command line.
    """

    def __init__(self, wanted: argparse.Namespace) -> None:
        self.provider, self.prepared = wanted.provider, wanted.prepared
        self.on_gpu = self.provider in ("cuda", "tensorrt")
        self.found: dict[str, Any] = {}
        self._only = wanted.only or [""]
        self._end = time.perf_counter() + wanted.seconds

    @property
    def left(self) -> float:
        """Seconds that remain."""
        return self._end - time.perf_counter()

    def step(self, name: str, needs: float, run: Callable[[], Any]) -> None:
        """Run one step if `needs` seconds remain. An error ends this step only."""
        if not any(part in name for part in self._only):
            return
        if self.left < needs:
            print(f"-- {name}: left out, no time", flush=True)
            return
        print(f"-- {name}", flush=True)
        began = time.perf_counter()
        try:
            self.found[name] = run()
            print(f"   {json.dumps(self.found[name], default=str)}", flush=True)
        except Exception as error:
            self.found[name] = {"error": repr(error)}
            traceback.print_exc()
        print(f"   {time.perf_counter() - began:.1f} s", flush=True)

    def settings(self, *more: str) -> Settings:
        """Settings of this run."""
        return load_settings(None, [f"inference.provider={self.provider}", "inference.model=shipped-float", *more])

    def file(self, name: str) -> Path:
        """A prepared file."""
        path: Path = self.prepared / name
        if not path.is_file():
            raise FileNotFoundError(f"{path}: make it with --prepare")
        return path


def milliseconds(run: Callable[[], Any], count: int = 40, before: int = 5) -> dict[str, float]:
    """Median and 99th percentile of the time of one call."""
    for _ in range(before):
        run()
    times = []
    for _ in range(count):
        began = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - began))
    return {"median": round(float(np.median(times)), 3), "p99": round(float(np.percentile(times, 99)), 3)}


def noise(count: int, size: int = 256) -> np.ndarray:
    """Pictures of noise, uint8 [count, size, size, 3]."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def machine() -> dict[str, Any]:
    """The machine, and the libraries of the driver that are there."""
    ask = "nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader; ldconfig -p | grep -oE "
    ask += "'lib(nvcuvid|nvidia-encode|cudnn|nvinfer)\\.so\\.[0-9]+' | sort -u"
    said = subprocess.run(ask, shell=True, capture_output=True, text=True).stdout.split("\n")
    return describe_machine() | {"driver says": [line for line in said if line]}


def program_session(bench: Bench) -> dict[str, Any]:
    """The program's own probe and session."""
    began = time.perf_counter()
    segmenter = make_segmenter(bench.settings())
    opened = round(time.perf_counter() - began, 2)
    return {"probe": str(probe(bench.provider)), "notes": segmenter.notes, "seconds to open": opened}


def parity(bench: Bench, model: Path) -> dict[str, Any]:
    """Masks of the provider against those of the plain CPU provider, with the shipped weights."""
    colon = DemoColon(DemoSettings(width=256, height=256))
    pictures = [*(colon.render(index)[0] for index in range(0, len(colon), 20)), *noise(4)]
    tried, plain = Segmenter(model, bench.provider), Segmenter(shipped_weights(), "cpu")
    found, expected = (np.array(each.segment(pictures)).astype(int) for each in (tried, plain))
    alone = np.array([tried.segment_one(picture) for picture in pictures]).astype(int)
    difference = np.abs(found - expected)
    return {
        "largest difference": int(difference.max()),
        "share above 2 levels": float((difference > 2).mean()),
        "batches against one by one": int(np.abs(alone - found).max()),
        "pixels of polyps": int((expected >= 128).sum()),
    }


def session_with(bench: Bench, options: dict[str, str], model: Path | None = None) -> ort.InferenceSession:
    """A session with options that the program does not set."""
    name = FULL_NAMES[bench.provider]
    return ort.InferenceSession(str(model or shipped_weights()), providers=[(name, options if bench.on_gpu else {})])


def options_and_batches(bench: Bench) -> dict[str, Any]:
    """Milliseconds of a batch with each option, pictures and maps in the memory of the CPU, and of the first runs."""
    found: dict[str, Any] = {}
    for title, options in OPTIONS.items() if bench.on_gpu else [("as they are", {})]:
        session = session_with(bench, options)
        found[title] = {}
        for count in (1, 8) if bench.on_gpu else (1,):
            feed = {"frames": noise(count)}
            began = time.perf_counter()
            session.run(None, feed)
            first = {"first": round(1000 * (time.perf_counter() - began))}
            found[title][count] = first | milliseconds(lambda session=session, feed=feed: session.run(None, feed), 30)
        print(f"   {title}: {found[title]}", flush=True)
    return found


def buffers(bench: Bench, model: Path, cuda_graph: bool) -> dict[str, Any]:
    """Milliseconds of a batch through BoundModel, and pictures per second: both copies included."""
    found = {}
    for count in BATCHES if bench.on_gpu else (1,):
        pictures, bound = noise(count), BoundModel("cuda" if bench.on_gpu else "cpu", 0)
        session = open_session(model, bench.provider, SessionSettings(batch_size=count, cuda_graph=cuda_graph))
        bound.add(count, pictures.shape[1], session)
        timed = milliseconds(lambda pictures=pictures, bound=bound: bound.run(pictures), 60 if count < 16 else 20)
        found[count] = timed | {"per second": round(1000 * count / timed["median"])}
    return found


def other_sizes(bench: Bench) -> dict[str, Any]:
    """Milliseconds of a run after a run with another batch size, in the same session, and with a session for each."""
    found: dict[str, Any] = {}
    one = session_with(bench, {})
    for title, sessions in {"one session": [one, one], "two sessions": [one, session_with(bench, {})]}.items():
        found[title] = []
        for count, session in zip((1, 8) * 3, sessions * 3, strict=True):
            began = time.perf_counter()
            session.run(None, {"frames": noise(count)})
            found[title].append(round(1000 * (time.perf_counter() - began), 1))
    return found


def decoding(bench: Bench) -> dict[str, Any]:
    """Pictures per second of the decoder alone, on the CPU and by NVDEC; the format says where they are."""
    found: dict[str, Any] = {}
    for name, opened in {"cpu": lambda path: av.open(str(path)), "nvdec": Nvdec(0).open}.items():
        if name == "nvdec" and not bench.on_gpu:
            continue
        with opened(bench.file(QUIET)) as container:
            container.streams.video[0].thread_type = "AUTO"
            began, count, formats = time.perf_counter(), 0, set()
            for picture in container.decode(video=0):
                count += 1
                formats.add(picture.format.name)
            found[name] = {"per second": round(count / (time.perf_counter() - began)), "formats": sorted(formats)}
    return found


def front_parity(bench: Bench) -> dict[str, Any]:
    """Model inputs and masks of pictures that NVDEC decoded against those of the CPU, and what one picture costs."""
    recording = Recording(bench.file(MARKED))
    view = FieldOfView(0, 0, recording.format.width, recording.format.height)
    with closing(recording) as by_cpu, closing(Recording(bench.file(MARKED))) as by_gpu:
        why = by_gpu.decode_on(Nvdec(0))
        if why:
            return {"not used": why}
        segmenter = Segmenter(shipped_weights(), bench.provider)
        stage = GpuViewCropper(view, 256, Nv12Graph(view, 256, bench.provider, 0), "cuda")
        plain, worst, above, pixels, seconds = ViewCropper(view, 256), 0, 0, 0, 0.0
        for count, (ours, theirs) in enumerate(zip(by_gpu.frames(), by_cpu.frames(), strict=True), 1):
            began = time.perf_counter()
            stage([ours])
            seconds += time.perf_counter() - began
            plain([theirs])
            worst = max(worst, int(np.abs(ours.model_input.astype(int) - theirs.model_input).max()))
            maps = [segmenter.segment_one(each.model_input).astype(int) for each in (ours, theirs)]
            above, pixels = above + int((np.abs(maps[0] - maps[1]) > 2).sum()), pixels + maps[0].size
            if count == 1:
                same = [np.asarray(each.in_memory().to_ndarray()) for each in (ours, theirs)]
            if count >= COMPARED or bench.left < 20:
                break
    return {
        "frames": count,
        "on the gpu": stage.on_gpu,
        "largest difference of inputs": worst,
        "share of map pixels above 2 levels": above / pixels,
        "first picture bit-identical": bool(np.array_equal(*same)),
        "ms a picture": round(1000 * seconds / count, 3),
    }


def repeated(recording: Path, frames: int) -> Path:
    """A recording repeated without encoding until it has a number of frames."""
    path = Path(tempfile.gettempdir()) / f"{recording.stem}-{frames}.mp4"
    if path.exists():
        return path
    with av.open(str(recording)) as source:
        packets = [packet for packet in source.demux(video=0) if packet.size]
        step = round(1 / (source.streams.video[0].average_rate * source.streams.video[0].time_base))
        with av.open(str(path), "w") as file:
            track = file.add_stream_from_template(source.streams.video[0])
            content = [(bytes(packet), packet.pts, packet.dts, packet.is_keyframe) for packet in packets]
            for turn in range(-(-frames // len(content))):
                for data, pts, dts, is_key in content:
                    packet = av.Packet(data)
                    shift = turn * len(content) * step
                    packet.pts, packet.dts, packet.is_keyframe = pts + shift, dts + shift, is_key
                    packet.stream, packet.time_base, packet.duration = track, packets[0].time_base, step
                    file.mux(packet)
    return path


def process(bench: Bench, recording: Path, *overrides: str) -> dict[str, Any]:
    """`polypstream process` as a user runs it: frames per second, and where the time goes."""
    with tempfile.TemporaryDirectory() as folder:
        more = [text for each in overrides for text in ("--set", each)]
        command = [sys.executable, "-m", "polypstream", "process", str(recording), "--output", folder, *more]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(10, bench.left))
        seconds = time.perf_counter() - began
        if done.returncode:
            raise RuntimeError((done.stdout + done.stderr)[-600:])
        summary = json.loads(next(Path(folder).glob("*/summary.json")).read_text())
    kept = ("frames_out", "frames_per_second", "decoded_on_gpu", "unmarked", "seconds_per_stage", "notes")
    with_start = round(summary["frames_out"] / seconds, 1)
    return {name: summary[name] for name in kept} | {"per second with start": with_start}


def recordings(bench: Bench) -> dict[str, Any]:
    """`process` with nothing marked and with a fifth of the groups marked: by the GPU, with and without NVDEC, and by
    the processor alone."""
    found: dict[str, Any] = {}
    # The model's provider, the decoder, and what share of the long recording is enough to measure it.
    ways = [(bench.provider, "auto", 1), (bench.provider, "cpu", 4), ("cpu", "cpu", 10)]
    for name, overrides in ((QUIET, (NOTHING_MARKED,)), (MARKED, ())):
        for provider, decoder, part in ways if bench.on_gpu else ways[-1:]:
            recording = repeated(bench.file(name), LONG // part if bench.on_gpu else 300)
            chosen = (f"inference.provider={provider}", f"inference.decoder={decoder}")
            title = f"{name}, model on {provider}, decoder {decoder}"
            found[title] = process(bench, recording, *chosen, *overrides)
            print(f"   {title}: {found[title]}", flush=True)
    return found


def rooms(bench: Bench) -> dict[str, Any]:
    """The most live sources of 1080p30 that keep up."""
    recording, segmenter = bench.file(QUIET), make_segmenter(bench.settings())
    tried: dict[int, Any] = {}

    def measure(count: int) -> Shown:
        run = LiveRun("in-step", 30, sources=count)
        shown = measure_live(lambda: Recording(recording), segmenter, bench.settings(), run, 4.0, _no_page)
        tried[count] = {
            "shown": shown.shown,
            "of": shown.frames_in,
            "latency_ms": [round(ms) for ms in shown.latency_ms or ()],
        }
        print(f"   {count}: {tried[count]}", flush=True)
        return shown

    return {"most": most_rooms(measure, MOST_ROOMS if bench.on_gpu else 2), "tried": tried}


def _no_page(*_: Any) -> Any:
    raise AssertionError("no viewer was asked for")


def soak(bench: Bench) -> dict[str, Any]:
    """Memory of the process and of the GPU while 10,000 pictures are decoded by NVDEC and made ready."""
    recording = Recording(repeated(bench.file(QUIET), 10_000))
    why = recording.decode_on(Nvdec(0)) if bench.on_gpu else "no GPU"
    if why:
        recording.close()
        return {"not used": why}
    view = FieldOfView(0, 0, recording.format.width, recording.format.height)
    stage = GpuViewCropper(view, 256, Nv12Graph(view, 256, bench.provider, 0), "cuda")
    ask = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    samples = {}
    with closing(recording):
        for frame in recording.frames():
            stage([frame])
            if frame.index % 2000 == 1000:
                used = int(subprocess.run(ask, capture_output=True, text=True).stdout.split()[0])
                samples[frame.index] = {"MB": round(psutil.Process().memory_info().rss / 1e6), "GPU MiB": used}
            if bench.left < 5:
                break
    return {"frames": frame.index + 1, "memory": samples}


def encoders() -> dict[str, str]:
    """Which H.264 encoders work."""
    found = {}
    for name in ("h264_nvenc", "libx264"):
        try:
            with av.open(io.BytesIO(), "w", "mp4") as file:
                track = file.add_stream(name, rate=30)
                track.width, track.height, track.pix_fmt = 640, 480, "yuv420p"
                file.mux(track.encode(av.VideoFrame(640, 480, "yuv420p")))
                file.mux(track.encode(None))
            found[name] = "works"
        except Exception as error:
            found[name] = repr(error)[:120]
    return found


def prepare(folder: Path) -> None:
    """Make the recordings and the network in half floats."""
    import onnx

    from polypstream.export.graph import compute_in_half, widen_weights

    folder.mkdir(parents=True, exist_ok=True)
    model = onnx.load(str(shipped_weights()))
    widen_weights(model)
    compute_in_half(model)
    onnx.save(model, folder / HALF)
    colon = DemoColon(DemoSettings(width=1920, height=1080, rate=Fraction(30), seconds=10, seed=5))
    healthy, polyp = range(HEALTHY, HEALTHY + GROUP), range(POLYP, POLYP + GROUP)
    # Four groups of pictures without a polyp, to and fro, and one with a polyp.
    write_recording(folder / QUIET, colon, range(len(colon)))
    write_recording(folder / MARKED, colon, [*healthy, *reversed(healthy), *healthy, *reversed(healthy), *polyp])


def write_recording(path: Path, colon: DemoColon, indices: Sequence[int]) -> None:
    """Write frames of the demo as H.264, in groups of GROUP pictures."""
    options = {"preset": "veryfast", "crf": "28", "g": str(GROUP), "sc_threshold": "0"}
    with av.open(str(path), "w") as file:
        track = file.add_stream("libx264", rate=30, options=options)
        track.width, track.height, track.pix_fmt = 1920, 1080, "yuv420p"
        for time_of, index in enumerate(indices):
            picture = av.VideoFrame.from_ndarray(colon.render(index)[0], "rgb24")
            picture.pts, picture.time_base = time_of, Fraction(1, 30)
            file.mux(track.encode(picture))
        file.mux(track.encode(None))
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def main() -> None:
    """All steps, the most important ones first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--provider", default="cuda", choices=["cuda", "tensorrt", "cpu"])
    parser.add_argument("--prepare", type=Path, metavar="FOLDER")
    parser.add_argument("--prepared", type=Path, metavar="FOLDER", default=CHECKOUT / ".gpu")
    parser.add_argument("--seconds", type=float, default=230)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--only", nargs="+", metavar="PART", help="steps whose names contain one of these")
    wanted = parser.parse_args()
    if wanted.prepare:
        prepare(wanted.prepare)
        return
    bench = Bench(wanted)
    weights = shipped_weights()
    bench.step("machine", 1, machine)
    bench.step("the program's session", 5, lambda: program_session(bench))
    bench.step("masks against the CPU's", 10, lambda: parity(bench, weights))
    bench.step("decoders, frames per second", 10, lambda: decoding(bench))
    bench.step("pictures and masks of NVDEC against the CPU's", 15, lambda: front_parity(bench))
    bench.step("process", 40, lambda: recordings(bench))
    bench.step("bound buffers", 10, lambda: buffers(bench, weights, False))
    if bench.on_gpu:
        bench.step("CUDA graph", 10, lambda: buffers(bench, weights, True))
    bench.step("live sources", 40, lambda: rooms(bench))
    bench.step("half floats: masks", 10, lambda: parity(bench, bench.file(HALF)))
    bench.step("half floats: bound buffers", 10, lambda: buffers(bench, bench.file(HALF), False))
    bench.step("batches of 1 and 8 in turns", 10, lambda: other_sizes(bench))
    bench.step("options of the session", 20, lambda: options_and_batches(bench))
    bench.step("10,000 pictures", 15, lambda: soak(bench))
    bench.step("encoders", 1, encoders)
    if wanted.json:
        wanted.json.write_text(json.dumps(bench.found, indent=1, default=str))
    failed = [name for name, found in bench.found.items() if isinstance(found, dict) and "error" in found]
    print(f"failed: {', '.join(failed) or 'nothing'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
