"""Training of the demo model, on two CPU cores and in less than half an hour."""

import math
import time
from dataclasses import dataclass
from itertools import chain, islice

import torch
from batches import Batch, Encoder, batches, copies
from quantization import start_rounding, stop_rounding
from tokenizer import BEGIN, END, END_OF_TEXT
from tokenizers import Tokenizer
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Phi3Config, Phi3ForCausalLM


@dataclass(frozen=True)
class Plan:
    """How long and how fast to learn.

    Args:
        copies: Number of batches of random words to copy, which come first.
        steps: Number of batches of examples.
        tokens: Tokens of a batch, padding included.
        rounding: From which share of the steps on the weights are rounded as in the export.
        rate: Highest learning rate of embeddings, output layer and norms, reached after `warmup`
            steps; it falls to zero at the end.
        matrix_rate: The same of the matrices inside the layers, which Muon updates.
        warmup: Steps of rising learning rate.
        seed: Fixes weights, examples and their order.
    """

    copies: int = 360
    steps: int = 1540
    tokens: int = 3072
    rounding: float = 0.6
    rate: float = 4e-3
    matrix_rate: float = 0.02
    warmup: int = 60
    seed: int = 0


def new_model(tokenizer: Tokenizer) -> Phi3ForCausalLM:
    """A Phi-3 of four layers that knows nothing yet."""
    config = Phi3Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=4096,
        original_max_position_embeddings=4096,
        sliding_window=None,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.token_to_id(BEGIN),
        eos_token_id=[tokenizer.token_to_id(END_OF_TEXT), tokenizer.token_to_id(END)],
        pad_token_id=tokenizer.token_to_id(END_OF_TEXT),
    )
    return Phi3ForCausalLM(config)


def _loss(model: Phi3ForCausalLM, batch: Batch) -> torch.Tensor:
    """Mean cross entropy of the tokens to be learned."""
    hidden = model.model(input_ids=batch.ids[:, :-1], use_cache=False).last_hidden_state
    wanted = batch.learned[:, 1:]
    logits = model.lm_head(hidden[wanted])
    return nn.functional.cross_entropy(logits, batch.ids[:, 1:][wanted])


def _rate(step: int, plan: Plan) -> float:
    """Share of the highest learning rate: up in a line, down in half a cosine."""
    warm = min(1.0, (step + 1) / plan.warmup)
    return warm * 0.5 * (1 + math.cos(math.pi * step / (plan.copies + plan.steps)))


def _optimizers(model: Phi3ForCausalLM, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for all else."""
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    inside = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in inside]
    return [
        torch.optim.Muon(matrices, lr=plan.matrix_rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=plan.rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(tokenizer: Tokenizer, plan: Plan) -> Phi3ForCausalLM:
    """Train a new model.

    Args:
        tokenizer: The tokenizer of its texts.
        plan: How long and how fast.

    Returns:
        The model, its weights not rounded.
    """
    torch.manual_seed(plan.seed)
    torch.use_deterministic_algorithms(mode=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("medium")
    model = new_model(tokenizer).train()
    optimizers = _optimizers(model, plan)
    schedules = [LambdaLR(one, lambda step: _rate(step, plan)) for one in optimizers]
    started, seen, mean = time.monotonic(), 0, 0.0
    encoder, last = Encoder(tokenizer), plan.copies + plan.steps
    source = chain(
        islice(copies(encoder, plan.seed, plan.tokens * 2 // 3), plan.copies),
        islice(batches(encoder, plan.seed, plan.tokens), plan.steps),
    )
    for step, batch in enumerate(source, 1):
        if step == int(plan.rounding * last) + 1:
            start_rounding(model)
        loss = _loss(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        model.zero_grad(set_to_none=True)
        seen += batch.ids.numel()
        mean += (loss.item() - mean) / min(step, 50)
        if step % 50 == 0 or step == last:
            seconds = time.monotonic() - started
            print(f"step {step:5d}  loss {mean:.4f}  {seen / seconds:6.0f} tokens/s", flush=True)
    stop_rounding(model)
    return model.eval()
