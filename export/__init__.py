"""ONNX files with metadata, from a trained SA-UNet or from any segmentation network, verified against the original."""
