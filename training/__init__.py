"""Self-supervised pretraining: pictures without labels in, `encoder.onnx` out."""
