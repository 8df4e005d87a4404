"""Log a model, register it, and give the new version an alias."""

import argparse

import mlflow

import mlflow_phi3_onnx


def main() -> None:
    """Log the model of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo", help="a model folder, or 'demo'")
    parser.add_argument("--name", default="phi3", help="the registered model's name")
    parser.add_argument("--alias", default="champion", help="the alias of the new version")
    options = parser.parse_args()

    folder = mlflow_phi3_onnx.demo_model_path() if options.model == "demo" else options.model
    # The run that "mlflow run" has made, by a name that says what it is about.
    with mlflow.start_run(run_name=f"{options.name}@{options.alias}"):
        info = mlflow_phi3_onnx.log_model(
            folder,
            name=options.name,
            model_config={"temperature": 0, "max_tokens": 100},
            registered_model_name=options.name,
        )
    version = str(info.registered_model_version)
    mlflow.MlflowClient().set_registered_model_alias(options.name, options.alias, version)
    print(f"Version {version} of {options.name} is now models:/{options.name}@{options.alias}")


if __name__ == "__main__":
    main()
