"""The command ``mlflow-phi3-onnx``."""
