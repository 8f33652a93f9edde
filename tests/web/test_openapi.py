"""The API is as its description says: schemathesis calls all of it, with what is allowed and with what is not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from tests.web.serving import served, settings_for

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EXAMPLES = 10
# The dictionaries lead to what is there. No schema can say how many bytes of a recording are still to come, and that
# 413 is a refusal too is what schemathesis does not know.
CONFIGURATION = """
hooks = "tests.web.schemathesis_hooks"

[dictionaries]
finished.values = ["{finished}"]
first.values = [0]

[[operations]]
include-path-regex = "^/api/recordings/.id./(files|annotations|frames|review)"
parameters = {{ "path.id" = {{ dictionary = "finished", probability = 0.9 }} }}

[[operations]]
include-path-regex = "^/live/"
parameters = {{ "path.number" = {{ dictionary = "first", probability = 0.9 }} }}

[[operations]]
include-name = "PATCH /api/uploads/{{id}}"
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 409, 413]

# Nor can it say that a set of images needs their endings, and may not be too large altogether.
[[operations]]
include-name = "POST /api/image-sets"
checks.positive_data_acceptance.expected-statuses = ["2xx", 413, 415]

# Nor can it say that a recording must not be a picture.
[[operations]]
include-name = "POST /api/recordings"
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 409, 415]

# Nor can it say that a polygon must have an area, and a reader's name a letter.
[[operations]]
include-path-regex = "/review/tracks"
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 409, 413, 422]

[checks.negative_data_rejection]
expected-statuses = [400, 404, 405, 406, 409, 413, 415, 422]
"""


def test_the_api_is_as_it_is_described(tmp_path: Path, make: Callable[..., Path], red_model: Path) -> None:
    pytest.importorskip("schemathesis")
    room = make(name="room.mp4", width=160, height=120, frames=100, rate=Fraction(5))
    settings = settings_for(red_model, serve={"recording_gigabytes": 0.01}, live={"max_staleness": 60.0})
    with served(tmp_path / "served", settings, f"room=loop:{room}") as app:
        finished = app.send(make(frames=5))
        app.wait_for(finished, "finished")
        configuration = tmp_path / "schemathesis.toml"
        configuration.write_text(CONFIGURATION.format(finished=finished))
        schemathesis = [str(Path(sys.executable).with_name("schemathesis")), f"--config-file={configuration}"]
        options = [f"--max-examples={EXAMPLES}", "--seed=1", "--continue-on-failure", "--no-color"]
        done = subprocess.run(
            [*schemathesis, "run", f"{app.address}/openapi.json", *options],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
