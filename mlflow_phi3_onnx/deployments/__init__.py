"""MLflow's deployment target ``onnx-genai``: models served by a local process that lives on.

MLflow finds this module through the entry point group ``mlflow.deployments`` and expects in it
exactly one client class, ``run_local`` and ``target_help``.
"""

from mlflow_phi3_onnx.deployments.client import OnnxGenAIDeploymentClient, run_local
from mlflow_phi3_onnx.deployments.descriptions import target_help

__all__ = ["OnnxGenAIDeploymentClient", "run_local", "target_help"]
