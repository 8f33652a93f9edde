"""The segmenter: its contract, its providers, its refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypstream.core.config import Settings
from polypstream.core.notice import NOTICE
from polypstream.errors import ModelError, ProviderError
from polypstream.inference import providers
from polypstream.inference import segmenter as segmenter_module
from polypstream.inference.bound import BoundModel
from polypstream.inference.model_card import WEIGHTS, shipped_for_cpus, shipped_weights
from polypstream.inference.providers import Absent, SessionSettings, choose, probe
from polypstream.inference.segmenter import Segmenter
from polypstream.jobs.setup import make_segmenter
from polypstream.sources.demo_colon import DemoColon, DemoSettings
from tests.conftest import make_red_model
from tests.inference import fake_cuda

HERE = [name for name in providers.FASTEST_FIRST if probe(name) is None]


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    size = Segmenter(shipped_weights(), "cpu").size
    colon = DemoColon(DemoSettings(width=size, height=size))
    return [colon.render(index)[0] for index in range(20, 70, 10)]


@pytest.mark.parametrize("provider", HERE)
def test_providers_find_the_same(provider: str, pictures: list[np.ndarray]) -> None:
    """OpenVINO computes in bf16 where the CPU has AMX: single pixels differ by up to 8 grey levels, masks hardly."""
    reference = np.stack(Segmenter(shipped_weights(), "cpu").segment(pictures)).astype(int)
    found = np.stack(Segmenter(shipped_weights(), provider).segment(pictures)).astype(int)
    assert (np.abs(found - reference) > 2).mean() < 0.002
    both = ((found >= 128) & (reference >= 128)).sum()
    assert 2 * both / ((found >= 128).sum() + (reference >= 128).sum()) > 0.995


def test_a_second_probe_says_what_the_first_said() -> None:
    """Also where the plug-in supports no CPU: registering it again would be an error."""
    for provider in providers.FASTEST_FIRST:
        assert str(probe(provider)) == str(probe(provider))


@pytest.mark.slow
@pytest.mark.parametrize("provider", [name for name in HERE if name not in providers.GPU])
@pytest.mark.parametrize("batch_size", [2, 5])
def test_on_a_cpu_the_batch_size_changes_nothing(provider: str, batch_size: int, pictures: list[np.ndarray]) -> None:
    one_by_one = [Segmenter(shipped_weights(), provider).segment([picture])[0] for picture in pictures]
    together = Segmenter(shipped_weights(), provider, batch_size).segment(pictures)
    assert np.array_equal(np.stack(together), np.stack(one_by_one))


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_shipped_model_says_what_it_is(name: str) -> None:
    card = Segmenter(shipped_weights(name), "cpu").card
    assert card.precision == ("int8" if "int8" in name else "fp16-weights")
    assert card.notice == NOTICE
    assert "kvasir" in card.trained_on.lower()
    assert card.scores["images"] == 120
    assert card.scores["mean_dice"] >= 0.84


def test_the_shipped_integers_find_what_the_shipped_floats_find(pictures: list[np.ndarray]) -> None:
    floats, integers = (np.stack(Segmenter(shipped_weights(name), "cpu").segment(pictures)) >= 128 for name in WEIGHTS)
    assert 2 * (floats & integers).sum() / (floats.sum() + integers.sum()) > 0.95


def test_the_shipped_floats_for_cpus_say_the_same(pictures: list[np.ndarray]) -> None:
    batch = np.stack([*pictures, np.zeros_like(pictures[0])])  # nothing is in the last one, so it has one view
    expected = Segmenter(shipped_weights(), "cpu").run(batch)
    assert expected.max() > 230
    segmenter = Segmenter(shipped_for_cpus("shipped-float")["cpu"], "cpu")
    assert np.abs(segmenter.run(batch).astype(int) - expected).max() <= 1
    one_by_one = np.stack(segmenter.segment([*batch]))
    assert np.abs(one_by_one.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("provider", [name for name in providers.FASTEST_FIRST if name not in HERE] + ["tensorrt-rtx"])
def test_an_absent_provider_is_refused_with_a_remedy(provider: str, red_model: Path) -> None:
    with pytest.raises(ProviderError, match=f"{provider} is not available: .+; .+"):
        Segmenter(red_model, provider)


def test_auto_takes_the_fastest_present_and_tells_of_unused_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Absent("cuDNN 9 was not found", providers.INSTALL_CUDA, surprising=True)
    answers = {"tensorrt": Absent("no library", "pip install tensorrt"), "cuda": missing, "openvino": None, "cpu": None}
    monkeypatch.setattr(providers, "probe", answers.__getitem__)
    present, notes = choose("auto")
    assert present == ["openvino", "cpu"]
    assert notes == [f"cuda is not used: cuDNN 9 was not found; {providers.INSTALL_CUDA}"]
    assert choose("cpu") == (["cpu"], [])
    with pytest.raises(ProviderError, match="cuDNN 9 was not found"):
        choose("cuda")


def test_a_session_that_fell_back_is_refused(monkeypatch: pytest.MonkeyPatch, red_model: Path) -> None:
    """With the probe fooled, ONNX Runtime is asked for CUDA on a machine without it."""
    if "cuda" in HERE:
        pytest.skip("this machine has CUDA")
    monkeypatch.setattr(providers, "probe", lambda _: None)
    with pytest.raises(ProviderError, match="cuda"):
        Segmenter(red_model, "cuda")


def test_the_gpu_of_the_settings_is_asked_for(monkeypatch: pytest.MonkeyPatch, red_model: Path) -> None:
    """No GPU is needed to see what ONNX Runtime is asked for."""
    asked: list[object] = []

    def refuse(model: str, options: object, providers: object) -> None:
        asked.append(providers)
        raise RuntimeError("no GPU here")

    monkeypatch.setattr(providers.ort, "InferenceSession", refuse)
    monkeypatch.setattr(providers, "count_nvidia_gpus", lambda: 2)
    shared: list[int] = []
    monkeypatch.setattr(providers, "let_ffmpeg_share", shared.append)
    for device in (0, 1):
        with pytest.raises(ModelError):
            providers.open_session(red_model, "cuda", SessionSettings(device=device))
    ids = [providers_[0][1] for providers_ in asked[::2]]  # after each, the CPU is asked whether the model is valid
    assert ids == [{"device_id": "0"}, {"device_id": "1"}]
    assert shared == [0, 1]
    with pytest.raises(ModelError):
        providers.open_session(red_model, "cuda", SessionSettings(tf32=False))
    assert asked[-2] == [("CUDAExecutionProvider", {"device_id": "0", "use_tf32": "0"})]
    with pytest.raises(ProviderError, match=r"inference\.device 2: .*this machine has 2"):
        providers.open_session(red_model, "cuda", SessionSettings(device=2))


def test_auto_goes_on_when_a_provider_fails_after_all(monkeypatch: pytest.MonkeyPatch, red_model: Path) -> None:
    if "cuda" in HERE:
        pytest.skip("this machine has CUDA")
    monkeypatch.setattr(providers, "probe", lambda name: None if name in ("cuda", "cpu") else Absent("no", "never"))
    segmenter = Segmenter(red_model, "auto")
    assert segmenter.provider == "cpu"
    assert "cuda" in segmenter.notes[0]
    assert "next best" in segmenter.notes[0]


@pytest.fixture(scope="module")
def with_fake_cuda(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Run a program that finds the stand-ins for NVIDIA's libraries, and return what it prints."""
    if not fake_cuda.POSSIBLE:
        pytest.skip("gcc, objdump or ONNX Runtime's CUDA provider is missing")
    folder = tmp_path_factory.mktemp("cuda")
    fake_cuda.build(folder)

    def run(program: str) -> str:
        found = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
        done = subprocess.run([sys.executable, "-c", program], env=found, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return run


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_cuda_session_of_the_shipped_weights_opens(with_fake_cuda: Callable[[str], str], cuda_graph: bool) -> None:
    """Nothing of the network may be left to the CPU: ONNX Runtime leaves arithmetic on shapes, for one, to it.

    FFmpeg takes the context only if its flags are CU_CTX_SCHED_BLOCKING_SYNC, which is 4.
    """
    said = with_fake_cuda(
        "from polypstream.inference.providers import *\n"
        f"open_session(Path({str(shipped_weights())!r}), 'cuda', SessionSettings(cuda_graph={cuda_graph}))"
    )
    assert "flags of the primary context: 4" in said


def test_the_front_graph_runs_on_cuda_with_what_lies_there(with_fake_cuda: Callable[[str], str]) -> None:
    """All of it, in buffers of the stand-in's memory, after a wait for the decoder. Only the kernels do nothing."""
    said = with_fake_cuda(
        "import av, numpy as np\n"
        "from polypstream.core.geometry import FieldOfView\n"
        "from polypstream.inference.nv12 import *\n"
        "picture = VideoFrame(250, 120, 'nv12')\n"
        "picture.pts, picture.time_base = 1, Fraction(1, 30)\n"
        "graph = Nv12Graph(FieldOfView(0, 0, 250, 120), 64, 'cuda', 0)\n"
        "for _ in range(2):\n"
        "    made, held = graph(picture, RgbMatrix(np.eye(3, dtype=np.float32), np.zeros(3, np.float32)))\n"
        "samples = np.full(held.luma.shape(), 7, np.uint8)\n"
        "held.luma.update_inplace(samples)\n"
        "back = held.download()\n"
        "print(made.shape, made.dtype, held.width, held.height, held.luma.device_name(), back.format.name)\n"
        "print(set(np.frombuffer(back.planes[0], np.uint8).reshape(120, -1)[:, :250].ravel().tolist()))"
    )
    assert "(64, 64, 3) uint8 250 120 cuda yuv420p" in said
    assert "{7}" in said
    assert said.count("waited for stream (nil)") == 2


def test_a_model_on_cuda_has_buffers_of_each_batch_size_there(
    with_fake_cuda: Callable[[str], str], red_model: Path
) -> None:
    """Through the provider itself; only the kernels do nothing."""
    said = with_fake_cuda(
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from polypstream.inference import segmenter\n"
        "segmenter.choose = lambda _: (['cuda'], [])\n"
        f"model = segmenter.Segmenter(Path({str(red_model)!r}), 'cuda', batch_size=4)\n"
        "maps = model.segment([np.zeros((128, 128, 3), np.uint8)] * 7)\n"
        "print(len(maps), maps[0].shape, model.segment_one(np.zeros((128, 128, 3), np.uint8)).dtype)\n"
        "print({batch: each.pictures.device_name() for batch, each in model._bound._sizes.items()})"
    )
    assert "7 (128, 128) uint8" in said
    assert "{1: 'cuda', 4: 'cuda'}" in said


def test_a_bound_model_returns_what_a_session_returns(pictures: list[np.ndarray]) -> None:
    """In the CPU's memory; each call has maps of its own. Two images are a batch of three."""
    session, bound = providers.open_session(shipped_weights(), "cpu"), BoundModel("cpu", 0)
    for batch in (3, 1):
        bound.add(batch, pictures[0].shape[0], session)
    for count in (3, 1, 2):
        [expected] = session.run(None, {"frames": np.stack(pictures[:count])})
        first = bound.run(pictures[:count])
        bound.run(np.zeros_like(pictures[:count]))
        assert np.array_equal(first, expected)


def test_a_cuda_session_gets_batches_of_one_size(monkeypatch: pytest.MonkeyPatch, red_model: Path) -> None:
    """Through the CPU provider posing as CUDA. A second size would make it plan every convolution again."""
    monkeypatch.setattr(segmenter_module, "choose", lambda _: (["cuda"], []))
    shapes: list[list[tuple[int, ...]]] = []

    class Bound(BoundModel):
        def __init__(self, memory: str, device: int) -> None:
            super().__init__("cpu", device)

    class Session:
        """A session that notes the shapes of its inputs."""

        def __init__(self) -> None:
            self._real = providers.open_session(red_model, "cpu")
            self._shapes: list[tuple[int, ...]] = []
            shapes.append(self._shapes)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider"]

        def run_with_iobinding(self, binding: Any) -> None:
            self._real.run_with_iobinding(binding)
            self._shapes.append(tuple(binding.get_outputs()[0].shape()))

    monkeypatch.setattr(segmenter_module, "open_session", lambda *_: Session())
    monkeypatch.setattr(segmenter_module, "BoundModel", Bound)
    segmenter = Segmenter(red_model, "cuda", batch_size=4)
    pictures = [np.full((128, 128, 3), (level, 0, 0), np.uint8) for level in range(0, 100, 10)]
    for count in (1, 3, 10, 1):
        maps = segmenter.segment(pictures[:count])
        assert [int(each[0, 0]) for each in maps] == [int(level * 1.5) for level in range(0, 10 * count, 10)]
    assert len(shapes) == 1
    for picture in pictures:
        segmenter.segment_one(picture)
    assert [set(each) for each in shapes] == [{(4, 128, 128)}, {(1, 128, 128)}]
    assert len(shapes[1]) == 1 + len(pictures)  # to warm up, too


def test_tensorrt_keeps_one_engine_for_all_batch_sizes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, red_model: Path
) -> None:
    """No GPU is needed to see what ONNX Runtime is asked for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(providers, "let_ffmpeg_share", lambda _: None)
    real, asked = providers.ort.InferenceSession, []

    def refuse(model: str, *options: object, providers: Any) -> Any:
        if providers[0] == "CPUExecutionProvider" or providers[0][0] == "CPUExecutionProvider":
            return real(model, *options, providers=providers)
        asked.append(providers)
        raise RuntimeError("no GPU here")

    monkeypatch.setattr(providers.ort, "InferenceSession", refuse)
    with pytest.raises(ProviderError, match="tensorrt cannot run"):
        providers.open_session(red_model, "tensorrt", SessionSettings(batch_size=4))
    [[(name, options), (next_name, _)]] = asked
    assert (name, next_name) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert options["trt_profile_min_shapes"] == "frames:1x128x128x3"
    assert options["trt_profile_opt_shapes"] == options["trt_profile_max_shapes"] == "frames:4x128x128x3"
    folder = Path(options["trt_engine_cache_path"])
    assert folder.is_relative_to(tmp_path / "polypstream" / "tensorrt")
    assert folder == providers.tensorrt_folder(red_model, 4) != providers.tensorrt_folder(red_model, 8)


def test_auto_takes_tensorrt_only_with_an_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, red_model: Path
) -> None:
    """To build one takes minutes, which nobody asked for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(segmenter_module, "choose", lambda _: (["tensorrt", "cpu"], []))
    opened: list[str] = []

    def open_session(model: Path, provider: Any, settings: SessionSettings) -> Any:
        opened.append(provider)
        return providers.open_session(model, "cpu", settings)

    monkeypatch.setattr(segmenter_module, "open_session", open_session)
    segmenter = Segmenter(red_model)
    assert (segmenter.provider, opened) == ("cpu", ["cpu"])
    assert "inference.provider=tensorrt builds it" in segmenter.notes[0]
    folder = providers.tensorrt_folder(red_model, 8)
    folder.mkdir(parents=True)
    (folder / "model_sm90.engine").touch()
    assert Segmenter(red_model).provider == "tensorrt"
    assert Segmenter(red_model, "tensorrt", batch_size=4).provider == "tensorrt"


def test_cuda_graphs_are_refused_on_other_providers(red_model: Path) -> None:
    with pytest.raises(ProviderError, match=r"inference\.cuda_graph: works with the provider cuda, not with cpu"):
        Segmenter(red_model, "cpu", cuda_graph=True)


def test_on_a_gpu_pictures_go_in_batches(monkeypatch: pytest.MonkeyPatch, red_model: Path) -> None:
    """Through the CPU provider posing as CUDA: the batching is ours, the session is real."""
    monkeypatch.setattr(segmenter_module, "choose", lambda _: (["cuda"], []))
    monkeypatch.setattr(
        segmenter_module, "open_session", lambda model, _, settings: providers.open_session(model, "cpu", settings)
    )
    segmenter = Segmenter(red_model, "auto", batch_size=4)
    sizes: list[int] = []
    run = segmenter.run
    monkeypatch.setattr(segmenter, "run", lambda batch: sizes.append(len(batch)) or run(batch))
    maps = segmenter.segment([np.full((128, 128, 3), (level, 0, 0), np.uint8) for level in range(0, 100, 10)])
    assert sizes == [4, 4, 2]
    assert [int(each[0, 0]) for each in maps] == [int(level * 1.5) for level in range(0, 100, 10)]


def test_a_model_without_metadata_is_named(tmp_path: Path) -> None:
    model = make_red_model(tmp_path / "m.onnx", threshold="often", scores="none")
    with pytest.raises(ModelError, match=r"m\.onnx: its metadata have no valid value for threshold, scores"):
        Segmenter(model, "cpu")


def test_metadata_that_contradict_the_input_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="256 pixels"):
        Segmenter(make_red_model(tmp_path / "m.onnx", input_size="256"), "cpu")


def test_onnx_runtime_reports_nothing_to_its_maker(tmp_path: Path) -> None:
    """Its telemetry begins with a database and an identifier of the machine in the user's cache, except in CI."""
    model = str(shipped_weights())
    code = f"from polypstream.inference.segmenter import *; from pathlib import Path; Segmenter(Path({model!r}))"
    at_home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    subprocess.run([sys.executable, "-c", code], env=at_home, check=True)
    [*ours] = (tmp_path / "polypstream").glob("speed-*.json")  # nothing else was written
    assert set(tmp_path.rglob("*")) <= {tmp_path / "polypstream", *ours}


@pytest.mark.parametrize(("provider", "file"), [("cpu", "sa_unet_int8.onnx"), ("openvino", "sa_unet_cpu.onnx")])
def test_cpus_run_the_shipped_weights_with_an_early_exit(provider: str, file: str) -> None:
    if provider not in HERE:
        pytest.skip(f"needs a CPU that {provider} supports")
    settings = Settings.model_validate({"inference": {"provider": provider}})
    assert make_segmenter(settings).model.name == file
    settings = Settings.model_validate({"inference": {"provider": provider, "model": "shipped-float"}})
    segmenter = make_segmenter(settings)
    assert segmenter.model.name == "sa_unet_cpu.onnx"
    assert segmenter.card.early_exit
