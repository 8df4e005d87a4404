"""``python -m mlflow_phi3_onnx.cli``."""

import sys

from mlflow_phi3_onnx.cli.main import main

sys.exit(main())
