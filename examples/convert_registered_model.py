"""From a registered PyTorch model to a registered ONNX model, in one call.

    python examples/convert_registered_model.py
    python examples/convert_registered_model.py --model models:/phi3/1 --precision int8

MLflow's environment variables, such as ``MLFLOW_TRACKING_URI``, say where models are kept. Without
``--model``, a small pipeline of transformers, made offline, is registered first. Needs the
``export`` extra.
"""

import argparse
import logging

import mlflow
from mlflow.entities.model_registry import ModelVersion

import mlflow_phi3_onnx

PREFIX = "mlflow_phi3_onnx."


def main() -> None:
    """Convert the model of the command line, and show what came of it."""
    parser = argparse.ArgumentParser(description="Convert a registered PyTorch model to ONNX.")
    parser.add_argument("--model", help="the URI of a registered model of mlflow.transformers")
    parser.add_argument("--name", default="phi3-onnx", help="the name of the converted model")
    parser.add_argument("--precision", default="int4", choices=["int4", "int8", "fp32"])
    parser.add_argument("--question", default="What is the capital of Spain?")
    options = parser.parse_args()

    source = options.model or register_pipeline("phi3-pytorch")
    info = mlflow_phi3_onnx.log_model(
        source,
        name="onnx",
        precision=options.precision,
        registered_model_name=options.name,
    )

    # An alias is recorded as the version that it stands for now.
    source = info.flavors[mlflow_phi3_onnx.FLAVOR_NAME]["source"]["uri"]
    converted = f"models:/{options.name}/{info.registered_model_version}"
    for uri in (source, converted):
        print(f"\n{uri}")
        for key, value in sorted(version_of(uri).tags.items()):
            if key.startswith(PREFIX):
                print(f"   {key} = {value}")

    messages = [{"role": "user", "content": options.question}]
    print("\nQuestion:", options.question)
    pipeline = mlflow.transformers.load_model(source)
    (answer,) = pipeline(messages, max_new_tokens=100)
    print("PyTorch: ", answer["generated_text"][-1]["content"])
    with mlflow_phi3_onnx.load_model(converted) as model:
        answer = model.chat(messages, max_tokens=100)
    print("ONNX:    ", answer["choices"][0]["message"]["content"])


def register_pipeline(name: str) -> str:
    """Register a small pipeline, and return the URI of its version."""
    from demo_pipeline import make_pipeline

    info = mlflow.transformers.log_model(
        make_pipeline(),
        name="pytorch",
        task="llm/v1/chat",
        registered_model_name=name,
        pip_requirements=["mlflow", "torch", "transformers"],
    )
    return f"models:/{name}/{info.registered_model_version}"


def version_of(uri: str) -> ModelVersion:
    """Return the registered version at ``models:/<name>/<version>``."""
    _, name, version = uri.split("/")
    return mlflow.MlflowClient().get_model_version(name, version)


if __name__ == "__main__":
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    main()
