"""Makes the demo model from nothing: `python scripts/demo_model OUTPUT_FOLDER`."""

import argparse
import os
import re
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # two threads that spin starve all else on two cores

import train
from check import check
from corpus import examples
from export import FILES, export
from rendering import text_of
from tokenizer import train_tokenizer, write_tokenizer
from tokenizers import Tokenizer

VOCABULARY = 2560
TEXTS = 10_000
TOKENIZER_SEED = 1


def make_tokenizer(texts: int) -> dict[str, Any]:
    """Learn the tokenizer from so many examples, special tokens cut out."""
    whole = (text_of(example) for example in islice(examples(TOKENIZER_SEED), texts))
    pieces = (piece for text in whole for piece in re.split(r"<\|[^|]*\|>\n?", text) if piece)
    return train_tokenizer(pieces, VOCABULARY)


def build(output: Path, plan: train.Plan) -> None:
    """Tokenizer, training and export.

    Args:
        output: The folder to write; its files are replaced at the end, one by one.
        plan: How long and how fast to train.
    """
    description = make_tokenizer(TEXTS)
    with tempfile.TemporaryDirectory() as name:
        write_tokenizer(description, Path(name))
        tokenizer = Tokenizer.from_file(str(Path(name) / "tokenizer.json"))
    started = time.monotonic()
    model = train.train(tokenizer, plan)
    numbers = sum(weight.numel() for weight in model.parameters())
    print(f"{numbers} parameters, trained in {time.monotonic() - started:.0f} s")
    export(model, description, output)
    print(f"wrote {', '.join(FILES)}")


def main() -> int:
    """Run the command line.

    Returns:
        0, or 1 if the model did not pass its checks.
    """
    parser = argparse.ArgumentParser(prog="demo_model", description=__doc__)
    parser.add_argument("output", type=Path, help="folder to write the model to")
    parser.add_argument("--steps", type=int, default=train.Plan.steps, help="batches to learn")
    parser.add_argument("--quick", action="store_true", help="20 small batches; answers unchecked")
    parser.add_argument("--check-only", action="store_true", help="check what is there already")
    options = parser.parse_args()
    if options.quick:
        build(options.output, train.Plan(copies=10, steps=10, tokens=512, warmup=5))
    elif not options.check_only:
        build(options.output, train.Plan(steps=options.steps))
    return 0 if check(options.output, learned=not options.quick) else 1


if __name__ == "__main__":
    sys.exit(main())
