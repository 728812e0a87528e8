"""What ternary weights cost: python benchmarks/bitnet_twin.py TEXT... --minutes 60

Language models of bytes, trained here on the same tokens: a float Llama at its best of three learning rates, and the
BitNet of its shape, whose linears are ternary with inputs in 8 bits (SubLN before their last ones), at equal and at
double width; from scratch, and in 16 bits first. Printed are bits per byte of the last tenth of each text, which no
training sees. The tokens are what the double width does in --minutes. What is finished is kept in --json and is not
trained again; a run that was cut goes on in --folder.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BitNetConfig, BitNetForCausalLM, LlamaConfig, LlamaForCausalLM

from bitwright.progress import Quiet
from bitwright.training import prepare
from bitwright.training.prepare import fake_linears
from bitwright.training.trainer import Data, Settings, Trained, steps_in, train

SIXTEEN_BITS = 0.2  # of the steps of 16 -> 1.58, before the grids
APART = 10  # one part of so many is kept apart
MOST_APART = 1024  # windows of all that is kept apart are tried, evenly spread


class Run(NamedTuple):
    """One training. times: the width, of the float model's. sixteen: the share of the steps in 16 bits."""

    ternary: bool
    rate: float
    times: int = 1
    sixteen: float = 0.0

    @property
    def name(self) -> str:
        """For people, and in the file of results."""
        first = f", {self.sixteen:.0%} in 16 bits" * (self.sixteen > 0)
        return f"{'ternary' if self.ternary else 'float'}, width × {self.times}, rate {self.rate:g}{first}"


def windows(texts: Sequence[Path], context: int) -> tuple[Tensor, int]:
    """Rows of context + 1 bytes, those that are trained on first; and how many those are."""
    parts: list[list[Tensor]] = [[], []]
    for text in texts:
        rows = torch.frombuffer(bytearray(text.read_bytes()), dtype=torch.uint8).long().unfold(0, context + 1, context)
        count = max(1, len(rows) // APART)
        parts[0].append(rows[:-count])
        parts[1].append(rows[-count:])
    trained, apart = torch.cat(parts[0]), torch.cat(parts[1])
    return torch.cat([trained, apart[:: -(-len(apart) // MOST_APART)]]), len(trained)


def model_of(run: Run, asked: argparse.Namespace) -> nn.Module:
    """A model of this run, random: the same for the same run."""
    width = asked.width * run.times
    config = {
        "vocab_size": 256, "hidden_size": width, "intermediate_size": width * 11 // 4, "bos_token_id": None,
        "num_hidden_layers": asked.layers, "num_attention_heads": max(1, width // 64), "eos_token_id": None,
        "num_key_value_heads": max(1, width // 64), "max_position_embeddings": asked.context, "use_cache": False,
    }  # fmt: skip
    torch.manual_seed(0)
    if not run.ternary:
        twin: nn.Module = LlamaForCausalLM(LlamaConfig(**config)).train()
        return twin
    model: nn.Module = BitNetForCausalLM(BitNetConfig(**config)).train()
    prepare(model, "ternary_a8_tensor", scale_rule="weights")
    return model


def data_of(model: nn.Module, rows: Tensor, count: int, batch: int) -> Data:
    """The windows as what `train` takes."""

    def loss(numbers: Sequence[int]) -> Tensor:
        chosen = rows[list(numbers)]
        logits = model(chosen[:, :-1]).logits
        return functional.cross_entropy(logits.flatten(0, 1).float(), chosen[:, 1:].flatten())

    apart = list(range(count, len(rows)))
    batches = [apart[i : i + batch] for i in range(0, len(apart), batch)]
    return Data([rows.shape[1]] * len(rows), loss, list(range(count)), batches)


def settings_of(run: Run, model: nn.Module, asked: argparse.Namespace, steps: int) -> Settings:
    """How it is trained: all with one rate, which that of a weight on a grid is on the average over the linears."""
    scales = [float(fake.stored_scale().mean()) for _, fake in fake_linears(model)]
    return Settings(
        steps=steps, batch=asked.batch, rate=run.rate * len(scales) / sum(scales) if scales else run.rate,
        other_rate=run.rate, after=run.sixteen, bf16=asked.bf16, looks=min(10, steps),
    )  # fmt: skip


def trained(run: Run, asked: argparse.Namespace, rows: Tensor, count: int, kept: dict[str, Any]) -> float:
    """Bits per byte of what is kept apart, of this run; it is looked up if it was finished before."""
    runs = kept.setdefault("runs", {})
    if run.name not in runs:
        model = model_of(run, asked)
        folder = asked.folder / run.name.replace(" ", "").replace(",", "_")
        folder.mkdir(parents=True, exist_ok=True)
        data, settings = data_of(model, rows, count, asked.batch), settings_of(run, model, asked, kept["steps"])
        done: Trained = train(model, data, settings, folder, Quiet())
        size = sum(parameter.numel() for parameter in model.parameters())
        curve = [[look.step, look.loss / math.log(2)] for look in done.curve]
        runs[run.name] = {"bits": done.best_loss / math.log(2), "parameters": size, "curve": curve}
        asked.json.write_text(json.dumps(kept, indent=1))
    found = runs[run.name]
    print(f"{run.name:56} {found['parameters'] / 1e6:6.1f} M   {found['bits']:.4f} bits per byte", flush=True)
    return float(found["bits"])


def asked_for(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--minutes", type=float, default=60.0, help="training of the double width")
    parser.add_argument("--steps", type=int, help="in place of --minutes")
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16")
    parser.add_argument("--json", type=Path, default=Path("bitnet_twin.json"))
    parser.add_argument("--folder", type=Path, default=Path("bitnet_twin"), help="of trainings under way")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and print a line for each run."""
    asked = asked_for(arguments)
    rows, count = windows(asked.texts, asked.context)
    decided = vars(asked).keys() - {"json", "folder", "minutes"}
    same = {name: str(getattr(asked, name)) for name in sorted(decided)}
    kept: dict[str, Any] = json.loads(asked.json.read_text()) if asked.json.exists() else {"asked": same}
    if kept["asked"] != same:
        raise SystemExit(f"{asked.json} is of other settings: {kept['asked']}; name another file with --json")
    if "steps" not in kept:
        longest = Run(ternary=True, rate=asked.rates[0], times=2)
        model = model_of(longest, asked)
        data, settings = data_of(model, rows, count, asked.batch), settings_of(longest, model, asked, 1 << 20)
        kept["steps"] = asked.steps or steps_in(model, data, settings, asked.minutes)
        asked.json.write_text(json.dumps(kept, indent=1))
    there, seen = count * asked.context / 1e6, kept["steps"] * asked.batch * asked.context / 1e6
    print(f"{kept['steps']} steps, {seen:.2f} M bytes of {there:.2f} M to train on", flush=True)

    def best(runs: Sequence[Run]) -> tuple[float, Run]:
        return min((trained(run, asked, rows, count, kept), run) for run in runs)

    of_float, _ = best([Run(ternary=False, rate=rate) for rate in asked.rates])
    equal, chosen = best([Run(ternary=True, rate=rate) for rate in asked.rates])
    switched = chosen._replace(sixteen=SIXTEEN_BITS)
    delayed, _ = best([switched])
    wide, _ = best([(switched if delayed < equal else chosen)._replace(times=2)])
    for name, bits in (("equal width", equal), ("16 bits first", delayed), ("double width", wide)):
        print(f"ternary, {name:16} {bits / of_float - 1:+.2%} bits per byte against float")


if __name__ == "__main__":
    main()
