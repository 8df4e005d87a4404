"""From a model folder to answers, in one minute and offline.

Run it with ``python examples/quickstart.py``. It keeps everything in a new temporary folder: your
own MLflow settings, runs and models stay as they are.
"""

import logging
import tempfile
from pathlib import Path

import mlflow

import mlflow_phi3_onnx

QUESTION = [{"role": "user", "content": "What is the capital of Spain?"}]
JOKE = [{"role": "user", "content": "Tell me a joke about atoms."}]

# A tracking store of our own: a SQLite database, and a folder for the files.
logging.getLogger("mlflow").setLevel(logging.WARNING)
folder = Path(tempfile.mkdtemp(prefix="phi3-quickstart-"))
store = f"sqlite:///{(folder / 'mlflow.db').as_posix()}"
mlflow.set_tracking_uri(store)
mlflow.set_registry_uri(store)
experiment = mlflow.create_experiment("quickstart", (folder / "artifacts").as_uri())
mlflow.set_experiment(experiment_id=experiment)

print("1. Log the demo model, register it, and call this version the champion")
with mlflow.start_run(run_name="quickstart"):
    info = mlflow_phi3_onnx.log_model(
        mlflow_phi3_onnx.demo_model_path(),  # or the folder of a real model, such as Phi-3-mini
        name="phi3",
        model_config={"temperature": 0, "max_tokens": 100},
        registered_model_name="phi3",
    )
client = mlflow.MlflowClient()
client.set_registered_model_alias("phi3", "champion", str(info.registered_model_version))

print("\n2. Load it by its alias, and chat")
with mlflow_phi3_onnx.load_model("models:/phi3@champion") as model:
    answer = model.chat(QUESTION)
    print("   Question:", QUESTION[0]["content"])
    print("   Answer:  ", answer["choices"][0]["message"]["content"])
    print("   Usage:   ", answer["usage"])

    print("\n3. Stream an answer: it appears as it is made\n   ", end="")
    for chunk in model.stream_chat(JOKE):
        for choice in chunk["choices"]:
            print(choice["delta"].get("content", ""), end="", flush=True)
    print()

print("\n4. The same model, as any MLflow tool sees it: mlflow.pyfunc")
pyfunc = mlflow.pyfunc.load_model("models:/phi3@champion")
for response in pyfunc.predict({"messages": QUESTION}):
    print("   Answer:  ", response["choices"][0]["message"]["content"])

print(f"\nEverything is in {folder}. To look at it in MLflow, run:")
print(f"   mlflow ui --backend-store-uri {store}")
print("and open one of these pages: the registered version, the logged model, the run")
page = "http://127.0.0.1:5000/#"
print(f"   {page}/models/phi3/versions/{info.registered_model_version}")
print(f"   {page}/experiments/{experiment}/models/{info.model_id}")
print(f"   {page}/experiments/{experiment}/runs/{info.run_id}")
