"""Ask a registered model one question."""

import argparse

import mlflow_phi3_onnx


def main() -> None:
    """Ask the model of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="phi3", help="the registered model's name")
    parser.add_argument("--alias", default="champion", help="the version's alias")
    parser.add_argument("--question", default="What is the capital of Spain?")
    options = parser.parse_args()

    with mlflow_phi3_onnx.load_model(f"models:/{options.name}@{options.alias}") as model:
        answer = model.chat([{"role": "user", "content": options.question}])
    print("Question:", options.question)
    print("Answer:  ", answer["choices"][0]["message"]["content"])
    print("Usage:   ", answer["usage"])


if __name__ == "__main__":
    main()
