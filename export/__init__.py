"""Export of a trained SA-UNet to an ONNX file with metadata, which is verified against torch."""
