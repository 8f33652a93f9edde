"""Video in, annotated video and findings out. Never imports torch."""

import os

# ONNX Runtime's wheels send names and hashes of models to their maker unless this is set before they are loaded.
# Nothing of this program leaves the machine that it runs on.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
