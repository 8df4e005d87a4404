"""From a checkpoint to a model folder in ONNX form."""
