"""From a trained SA-UNet to a self-describing ONNX model, proven equal."""
