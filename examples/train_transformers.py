"""Fine-tune a classifier on its quantization grid: python examples/train_transformers.py MODEL labels.csv --out DIR

labels.csv has the columns text and label (a class number). Any Trainer of transformers will do; what is Bitwright's are
prepare, delayed, convert and write_trained.
"""

import argparse
import tempfile
from typing import Any

from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from bitwright.training import convert, delayed, prepare, write_trained


def main() -> None:
    """Train, and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("labels")
    parser.add_argument("--out", required=True)
    parser.add_argument("--scheme", default="w4a8_channel")
    parser.add_argument("--steps", type=int, default=500)
    asked = parser.parse_args()
    model: Any = AutoModelForSequenceClassification.from_pretrained(asked.model)
    tokenizer: Any = AutoTokenizer.from_pretrained(asked.model)
    rows = load_dataset("csv", data_files=asked.labels, split="train")
    longest = min(128, model.config.max_position_embeddings - 2)
    rows = rows.map(lambda row: tokenizer(row["text"], truncation=True, max_length=longest), remove_columns=["text"])

    plan = prepare(model, asked.scheme)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=asked.steps, per_device_train_batch_size=32, learning_rate=5e-5, weight_decay=0.0,
            report_to=[], save_strategy="no", logging_steps=50,
        )  # fmt: skip
        Trainer(
            model, arguments, train_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[delayed(model, after=0.1)],
        ).train()  # fmt: skip
        linears = convert(model)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        print(write_trained(linears, plan, folder, asked.out))


if __name__ == "__main__":
    main()
