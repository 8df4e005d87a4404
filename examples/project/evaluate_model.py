"""Score a registered model on a table of questions, and log what came out."""

import argparse

import mlflow
import pandas as pd


def main() -> None:
    """Evaluate the model of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="phi3", help="the registered model's name")
    parser.add_argument("--alias", default="champion", help="the version's alias")
    parser.add_argument(
        "--questions",
        default="project/capitals.csv",
        help="a CSV file with the columns question, expected and keyword",
    )
    options = parser.parse_args()

    table = pd.read_csv(options.questions)
    requests = [[{"role": "user", "content": question}] for question in table["question"]]

    # The run that "mlflow run" has made, by a name that says what it is about.
    with mlflow.start_run(run_name=f"{options.name}@{options.alias}"):
        model = mlflow.pyfunc.load_model(f"models:/{options.name}@{options.alias}")
        responses = model.predict(pd.DataFrame({"messages": requests}))  # all rows together

        table["answer"] = [response["choices"][0]["message"]["content"] for response in responses]
        table["exact"] = table["answer"] == table["expected"]
        table["contains"] = [
            keyword in answer
            for keyword, answer in zip(table["keyword"], table["answer"], strict=True)
        ]
        usage = pd.DataFrame([response["usage"] for response in responses])
        metrics = {
            "exact_match": table["exact"].mean(),
            "contains_keyword": table["contains"].mean(),
            "prompt_tokens": usage["prompt_tokens"].sum(),
            "completion_tokens": usage["completion_tokens"].sum(),
        }
        # With the model's id, they stand on the model's page too.
        mlflow.log_metrics(
            {name: float(value) for name, value in metrics.items()}, model_id=model.model_id
        )
        mlflow.log_table(table, "answers.json")

    print(table[["question", "answer", "contains"]].to_string(index=False))
    for name, value in metrics.items():
        print(f"{name}: {value:g}")


if __name__ == "__main__":
    main()
