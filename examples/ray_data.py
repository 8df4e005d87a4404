"""Answer a data set with Ray Data: each actor loads the model once and answers a batch at a time.

    python examples/ray_data.py [MODEL_URI]

Without a URI, the demo model is saved and used. Needs Ray: pip install "ray[data]".
"""

import json
import sys
import tempfile
from pathlib import Path

import mlflow
import pandas as pd
import ray

import mlflow_phi3_onnx

COUNTRIES = ["Spain", "France", "Italy", "Japan"]
ACTORS = 2


class Answers:
    """An actor with the model. Ray gives it a processor, and the model takes no more than that."""

    def __init__(self, uri: str) -> None:
        self.model = mlflow.pyfunc.load_model(uri)

    def __call__(self, batch: pd.DataFrame) -> pd.DataFrame:
        """Answer a batch. A row that cannot be answered gets an error object, no other does."""
        answers = self.model.predict(batch, params={"output": "json", "on_error": "row"})
        return pd.DataFrame({"answer": answers})


def main() -> None:
    """Ask for capitals, with one row that is none of a chat."""
    if len(sys.argv) > 1:
        uri = sys.argv[1]
    else:
        uri = str(Path(tempfile.mkdtemp(prefix="phi3-ray-")) / "model")
        mlflow_phi3_onnx.save_model(mlflow_phi3_onnx.demo_model_path(), uri)
    questions = [f"What is the capital of {country}?" for country in COUNTRIES]
    rows = [{"messages": [{"role": "user", "content": question}]} for question in questions]
    rows.append({"messages": [{"role": "king", "content": "Hello"}]})

    # The actors hold their processors until the end: what reads the data needs one beside them.
    ray.init(num_cpus=ACTORS + 1, include_dashboard=False)
    answered = ray.data.from_items(rows).map_batches(
        Answers,
        fn_constructor_args=(uri,),
        batch_format="pandas",
        batch_size=64,
        compute=ray.data.ActorPoolStrategy(size=ACTORS),
    )
    for row in answered.take_all():
        answer = json.loads(row["answer"])
        if "error" in answer:
            print("Refused:", answer["error"]["message"])
        else:
            print(answer["choices"][0]["message"]["content"])


if __name__ == "__main__":
    main()
