"""Models of PyTorch as sources: converted, with all that belongs to them. Needs the extra."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import psutil
import pytest
from mlflow.models import Model

from mlflow_phi3_onnx import (
    FLAVOR_NAME,
    ConversionError,
    GenAIModel,
    InvalidModelError,
    InvalidRequestError,
    log_model,
    save_model,
)
from mlflow_phi3_onnx.core.request import ChatPrompt
from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer
from tests.support.fake_hub import FakeHub

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.export,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("torch", "transformers", "onnx_ir")),
        reason="converting a model needs the export extra",
    ),
]

END, OTHER_END = 2551, 2544
PROMPTS = [f"{'The capital of Spain is Madrid. ' * (i % 7)}And {i} " for i in range(20)]


def make_model() -> Any:
    """Make a tiny Phi-3 of random weights, with defaults for generation as real ones have."""
    import torch
    import transformers

    parts: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "sliding_window": 2047,
        "vocab_size": 2560,
        "bos_token_id": 1,
        "eos_token_id": END,
        "pad_token_id": OTHER_END,
    }
    config = transformers.Phi3Config(**parts)
    torch.manual_seed(0)
    model = transformers.Phi3ForCausalLM(config)
    model.generation_config = transformers.GenerationConfig(
        do_sample=True,
        temperature=0.3,
        top_k=7,
        top_p=0.8,
        repetition_penalty=1.2,
        no_repeat_ngram_size=3,
        max_new_tokens=17,
        eos_token_id=[2, END, OTHER_END],
        pad_token_id=OTHER_END,
    )
    return model


def load_tokenizer(demo: Path) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(demo)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary folders are made; whatever a test does, nothing may stay there."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def checkpoint(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as it is published: with the tokenizer of the demo model, byte for byte."""
    folder = tmp_path_factory.mktemp("source") / "checkpoint"
    make_model().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((demo / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def converted(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint, saved in full precision, from a folder that would mislead the builder."""
    work = tmp_path_factory.mktemp("work")
    for name in ("quantization", "builders", "torch", "onnx_ir"):
        (work / f"{name}.py").write_text(
            "raise RuntimeError('a module of the user was imported')\n"
        )
    (work / "checkpoint").symlink_to(checkpoint)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        patch.setenv("PYTHONPATH", str(work))
        save_model("checkpoint", "saved", precision="fp32")
    return work / "saved"


def source_of(path: Path) -> dict[str, Any]:
    return Model.load(str(path)).flavors[FLAVOR_NAME]["source"]


def test_the_origin_tells_how_it_was_converted(converted: Path, tmp_path: Path) -> None:
    import torch
    import transformers

    source = source_of(converted)
    conversion = source["conversion"]
    assert conversion.pop("peak_memory_bytes") > 50_000_000
    assert re.fullmatch(r"onnxruntime-genai \d+\.\d+\.\d+", conversion.pop("builder"))
    assert source == {
        "kind": "checkpoint",
        "conversion": {
            "precision": "fp32",
            "execution_provider": "cpu",
            "architecture": "Phi3ForCausalLM",
            "parameters": sum(p.numel() for p in make_model().parameters()),
            "torch_version": torch.__version__,
            "transformers_version": transformers.__version__,
        },
    }
    for file in (converted / "model").iterdir():
        assert str(tmp_path.parent).encode() not in file.read_bytes()


def test_a_converted_model_writes_what_pytorch_writes(checkpoint: Path, converted: Path) -> None:
    """Greedy, but with the model's own penalties: 20 prompts, 64 tokens, token for token."""
    import torch
    import transformers

    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    tokenizer = PromptTokenizer(converted / "model")
    expected: list[str] = []
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt).tolist()])
        with torch.no_grad():
            whole = theirs.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=64,
                temperature=None,
                top_k=None,
                top_p=None,
            )
        written = whole[0, ids.shape[1] :].tolist()
        detokenizer = tokenizer.detokenizer()
        text = "".join(detokenizer.add(i) for i in written if i not in (2, END, OTHER_END))
        expected.append(text + detokenizer.flush())
    with GenAIModel(converted / "model") as model:
        rows = [{"prompt": p, "max_tokens": 64, "temperature": 0} for p in PROMPTS]
        answers = model.run("llm/v1/completions", rows)
    assert [answer["choices"][0]["text"] for answer in answers] == expected


def test_the_model_s_defaults_are_carried_over(converted: Path) -> None:
    config = json.loads((converted / "model" / "genai_config.json").read_text())
    defaults = {
        "do_sample": True,
        "temperature": 0.3,
        "top_k": 7,
        "top_p": 0.8,
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 3,
    }
    assert defaults.items() <= config["search"].items()
    assert config["model"]["eos_token_id"] == [2, END, OTHER_END]


def test_tokenizer_and_template_are_those_of_the_checkpoint(
    checkpoint: Path, converted: Path
) -> None:
    name = "tokenizer.json"
    assert (converted / "model" / name).read_bytes() == (checkpoint / name).read_bytes()
    chat = ChatPrompt(({"role": "user", "content": "Where is Madrid?"},))
    ours, theirs = (PromptTokenizer(folder) for folder in (converted / "model", checkpoint))
    assert ours.encode_chat(chat).tolist() == theirs.encode_chat(chat).tolist()


def test_a_long_prompt_does_not_meet_the_window_that_the_graph_has_not(converted: Path) -> None:
    config = json.loads((converted / "model" / "genai_config.json").read_text())
    assert "sliding_window" not in config["model"]["decoder"]
    with GenAIModel(converted / "model") as model:
        response = model.complete("a " * 2100, max_tokens=4, min_tokens=4)
    assert response["usage"]["prompt_tokens"] > 2063
    assert response["usage"]["completion_tokens"] == 4


@pytest.mark.usefixtures("tracking")
def test_a_pipeline_is_logged(demo: Path, caplog: pytest.LogCaptureFixture) -> None:
    import transformers

    pipeline = transformers.pipeline(
        "text-generation", model=make_model(), tokenizer=load_tokenizer(demo), top_p=0.5
    )
    with caplog.at_level(logging.WARNING, logger="mlflow_phi3_onnx"):
        info = log_model(pipeline, name="converted", task="text-generation")
    source = info.flavors[FLAVOR_NAME]["source"]
    assert source["kind"] == "transformers_pipeline"
    chosen = {"precision": "int4", "block_size": 128, "algorithm": "default"}
    assert chosen.items() <= source["conversion"].items()
    texts = mlflow.pyfunc.load_model(info.model_uri).predict({"prompt": PROMPTS[1]})
    assert len(texts) == 1
    assert "The pipeline was made with top_p" in caplog.text
    assert "generation_config.json sets max_new_tokens" in caplog.text


@pytest.mark.usefixtures("tracking")
def test_a_registered_model_of_transformers_becomes_one_of_onnx(
    checkpoint: Path, tmp_path: Path
) -> None:
    import transformers

    pipeline: Any = transformers.pipeline(
        "text-generation", model=str(checkpoint), tokenizer=str(checkpoint)
    )
    theirs = mlflow.transformers.log_model(  # pyright: ignore[reportPrivateImportUsage] - loaded lazily
        pipeline,
        name="torch",
        task="llm/v1/chat",
        registered_model_name="phi3",
        pip_requirements=["transformers"],
    )
    client = mlflow.MlflowClient()
    client.set_registered_model_alias("phi3", "champion", "1")
    ours = log_model(
        "models:/phi3@champion", name="onnx", precision="fp32", registered_model_name="phi3-onnx"
    )

    source = ours.flavors[FLAVOR_NAME]["source"]
    builder = source.pop("conversion")["builder"]
    assert source == {
        "kind": "mlflow_model",
        "uri": "models:/phi3/1",
        "model_id": theirs.model_id,
        "flavor": "transformers",
    }
    forward = {
        "mlflow_phi3_onnx.source_uri": "models:/phi3/1",
        "mlflow_phi3_onnx.precision": "fp32",
        "mlflow_phi3_onnx.builder": builder,
    }
    back = {"mlflow_phi3_onnx.fp32": "models:/phi3-onnx/1"}
    assert forward.items() <= mlflow.get_logged_model(str(ours.model_id)).tags.items()
    assert forward.items() <= client.get_model_version("phi3-onnx", "1").tags.items()
    assert back.items() <= mlflow.get_logged_model(str(theirs.model_id)).tags.items()
    assert back.items() <= client.get_model_version("phi3", "1").tags.items()

    messages = [{"role": "user", "content": "What is the capital of Spain?"}]
    request = {"messages": messages, "max_tokens": 8, "temperature": 0}
    answers = mlflow.pyfunc.load_model("models:/phi3-onnx/1").predict(request)
    assert answers[0]["usage"]["prompt_tokens"] > 0
    folder = next(Path(tmp_path / "artifacts").glob(f"**/{ours.model_id}/**/tokenizer.json"))
    theirs_ids = pipeline.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    ids = PromptTokenizer(folder.parent).encode_chat(ChatPrompt(tuple(messages)))
    assert ids.tolist() == theirs_ids


@pytest.mark.parametrize("components", [False, True])
def test_a_model_is_saved_with_its_tokenizer(demo: Path, tmp_path: Path, components: bool) -> None:
    model = make_model()
    model.config._name_or_path = str(tmp_path)  # as one that was loaded from a local folder
    options = {"algorithm": "k_quant", "block_size": 64}
    given = {"model": model, "tokenizer": load_tokenizer(demo)} if components else model
    tokenizer = None if components else load_tokenizer(demo)
    save_model(
        given, tmp_path / "saved", tokenizer=tokenizer, precision="int8", export_options=options
    )
    source = source_of(tmp_path / "saved")
    assert source["kind"] == "transformers_model"
    assert {"precision": "int8", **options}.items() <= source["conversion"].items()
    assert str(tmp_path) not in str(source)
    with GenAIModel(tmp_path / "saved" / "model", model_config={"loop": "slots"}) as loaded:
        assert loaded.complete(PROMPTS[2], max_tokens=4, min_tokens=4)["choices"][0]["text"]


def test_objects_that_write_no_text_are_refused(demo: Path, tmp_path: Path) -> None:
    import transformers

    tokenizer = load_tokenizer(demo)
    bert = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=2560,
    )
    encoder = transformers.BertModel(bert)
    features = transformers.pipeline("feature-extraction", model=encoder, tokenizer=tokenizer)
    writer = transformers.pipeline("text-generation", model=make_model(), tokenizer=tokenizer)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (make_model(), {}, "A model needs tokenizer=.*; got none"),
        (make_model(), {"tokenizer": "org/name"}, "got a str"),
        (encoder, {"tokenizer": tokenizer}, "generates text, such as .*; got a BertModel"),
        (features, {}, "text-generation pipeline; this one's task is feature-extraction"),
        (writer, {"tokenizer": tokenizer}, "tokenizer is for a model alone"),
        ({"model": writer, "tokenizer": tokenizer}, {}, "tokenizer is for a model alone"),
        ({"model": make_model()}, {}, "A model needs tokenizer=.*; got none"),
        (writer, {"subfolder": "x"}, "subfolder is for folders and repositories"),
        (writer, {"revision": "main"}, "revision is for repositories on the hub"),
    ]
    for model, arguments, says in cases:
        with pytest.raises(InvalidRequestError, match=says):
            save_model(model, tmp_path / "saved", **arguments)
    assert not (tmp_path / "saved").exists()


def test_an_architecture_that_the_builder_does_not_know(demo: Path, tmp_path: Path) -> None:
    import transformers

    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=2560)
    model = transformers.GPT2LMHeadModel(config)
    with pytest.raises(InvalidModelError, match="does not support GPT2LMHeadModel"):
        save_model(model, tmp_path / "saved", tokenizer=load_tokenizer(demo))
    assert not (tmp_path / "saved").exists()


def test_a_repository_of_pytorch_weights_is_converted(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {file.name: file for file in checkpoint.iterdir()}
    for name in ("pytorch_model.bin", "consolidated.safetensors", "modeling_phi3.py", "a.png"):
        files[name] = tmp_path / name
        files[name].write_text("not needed")
    with FakeHub() as hub, hub.in_use(tmp_path, monkeypatch):
        commit = hub.add("org/phi3", files).branches["main"]
        save_model("org/phi3", tmp_path / "saved", export_options={"algorithm": "rtn"})
        assert set(hub.downloaded()) == {file.name for file in checkpoint.iterdir()}
    source = source_of(tmp_path / "saved")
    facts = {"precision": "int4", "algorithm": "rtn", "block_size": 128}
    assert facts.items() <= source.pop("conversion").items()
    assert source == {"kind": "hub", "repo_id": "org/phi3", "revision": commit}
    with GenAIModel(tmp_path / "saved" / "model") as model:
        assert model.complete(PROMPTS[2], max_tokens=4, min_tokens=4)["choices"][0]["text"]


@pytest.mark.usefixtures("tracking")
def test_a_conversion_that_fails_leaves_nothing_and_shows_no_path(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"algorithm": "k_quant", "block_size": 128}  # the model is 64 wide
    with pytest.raises(ConversionError, match="The model builder failed: ValueError: ") as caught:
        log_model(checkpoint, name="bad", export_options=options)
    told = caught.value.message + caplog.text
    assert 'File "builder.py"' in told
    assert str(checkpoint) not in told
    assert str(tmp_path) not in told
    assert "site-packages" not in told
    assert mlflow.search_logged_models(experiment_ids=["0"], output_format="list") == []


def test_a_builder_that_is_killed_says_how_much_memory_it_had(
    checkpoint: Path, tmp_path: Path
) -> None:
    def kill() -> None:
        while not done.wait(0.01):
            for child in psutil.Process().children():
                if "onnxruntime_genai.models.builder" in child.cmdline():
                    child.kill()
                    return

    done = threading.Event()
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(ConversionError, match=r"stopped by signal 9, when it had taken .* GB"):
            save_model(checkpoint, tmp_path / "saved")
    finally:
        done.set()
        killer.join()
    assert not (tmp_path / "saved").exists()
