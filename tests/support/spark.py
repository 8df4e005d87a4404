"""Spark in this process, and what the tests of it share."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

import mlflow
import pytest

from mlflow_phi3_onnx import save_model

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from mlflow_phi3_onnx.core.tasks import Task

__all__ = ["LONG", "MARKS", "MESSAGES", "PROMPTS", "QUESTIONS", "save", "session", "udf", "values"]

MARKS = [
    pytest.mark.spark,
    pytest.mark.skipif(importlib.util.find_spec("pyspark") is None, reason="needs pyspark"),
    pytest.mark.skipif(
        not (shutil.which("java") or os.environ.get("JAVA_HOME")), reason="needs Java"
    ),
    # Said by every pyspark so far; what is used here works with pandas 3.
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas"),
    # Of Spark 3.5's own code.
    pytest.mark.filterwarnings("ignore:distutils Version classes are deprecated"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket"),
]

PROMPTS = ["The capital of Spain is", "Madrid is", "Hello", "The capital of France is", "A"]
QUESTIONS = ["What is the capital of Spain?", "Hello", "What is the capital of France?"]
LONG = "The capital of Spain is " * 1000
"""A text of more tokens than the demo model's context has."""
MESSAGES = "array<struct<role:string,content:string>>"


@contextlib.contextmanager
def session(folder: Path, master: str, **conf: str) -> Generator[Any]:
    """Start a session whose files are in a folder, with batches of two rows.

    Args:
        folder: An empty folder.
        master: Spark's master.
        **conf: Its configuration, with ``_`` for ``.``.
    """
    sql = importlib.import_module("pyspark.sql")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        patch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        builder = sql.SparkSession.builder.master(master)
        builder = builder.config("spark.ui.enabled", "false")
        builder = builder.config("spark.ui.showConsoleProgress", "false")
        builder = builder.config("spark.sql.shuffle.partitions", "1")
        builder = builder.config("spark.sql.execution.arrow.maxRecordsPerBatch", "2")
        for name, value in conf.items():
            builder = builder.config(f"spark.{name.replace('_', '.')}", value)
        spark = builder.getOrCreate()
        try:
            yield spark
        finally:
            spark.stop()


def save(demo: Path, folder: Path, task: Task, **more: Any) -> str:
    """Save the demo model with greedy completions of at most five tokens; return its path."""
    config = {"temperature": 0, "max_tokens": 5, **more.pop("model_config", {})}
    save_model(demo, folder, task=task, model_config=config, **more)
    return str(folder)


def udf(spark: Any, uri: str, **arguments: Any) -> Any:
    return mlflow.pyfunc.spark_udf(spark, uri, env_manager="local", **arguments)


def values(frame: Any, column: Any) -> list[Any]:
    return [row[0] for row in frame.select(column).collect()]
