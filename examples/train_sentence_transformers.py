"""Train an embedding model on its quantization grid, with itself in float as teacher:
python examples/train_sentence_transformers.py MODEL --out DIR

No labels are needed: what is trained on are texts, and the embeddings that the model gave them before. Any
SentenceTransformerTrainer will do; what is Bitwright's are prepare, delayed, convert and write_trained.
"""

import argparse
import tempfile
from typing import Any

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MSELoss

from bitwright.calibration.data import builtin_texts
from bitwright.training import convert, delayed, prepare, write_trained


def main() -> None:
    """Train, and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("model")
    parser.add_argument("--out", required=True)
    parser.add_argument("--scheme", default="w4a8_channel")
    parser.add_argument("--steps", type=int, default=500)
    asked = parser.parse_args()
    model: Any = SentenceTransformer(asked.model, device="cpu")
    texts = builtin_texts(1000, seed=0)
    rows = Dataset.from_dict({"sentence": texts, "label": model.encode(texts).tolist()})

    plan = prepare(model, asked.scheme)
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            folder, max_steps=asked.steps, per_device_train_batch_size=32, learning_rate=1e-4, weight_decay=0.0,
            report_to=[], save_strategy="no", logging_steps=50,
        )  # fmt: skip
        SentenceTransformerTrainer(
            model, arguments, train_dataset=rows, loss=MSELoss(model), callbacks=[delayed(model, after=0.1)]
        ).train()
        linears = convert(model)
        model.save_pretrained(folder)
        print(write_trained(linears, plan, folder, asked.out))


if __name__ == "__main__":
    main()
