"""A simulated team: a year of changes to 300 models in one registry.

    python benchmarks/registry_team.py RESULT [RESULT …] --truth COLLECTION [--names 300] [--months 12] [--changes 100]

RESULT: encoders that `quantize` made of one original, which is still where it was; the good candidates. Bad ones are
made of the first: another pooling, a tokenizer whose words are mixed up, a linear whose outputs are, and what --bad
names. No gate asks for such faults by name. COLLECTION: corpus, queries and qrels, which no gate sees: a candidate is
truly bad if its queries find 2 % less in an index of the original (nDCG@10; documents are cut at 300 characters).

Time is simulated, and a gate that saw the same files before says the same again. All else is real: versions, log,
links. A bad version that was promoted is rolled back two days later. Printed: how many bad ones passed, how many good
ones were refused, whether each rollback and the history were right, and what `verify` says at the end.
"""

import argparse
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import bitwright
from bitwright.record import read_record
from bitwright.registry import gates, log
from bitwright.registry.add import add
from bitwright.registry.change import promote, rollback
from bitwright.registry.history import served_at
from bitwright.registry.spaces import compare, encoded, search_texts
from bitwright.registry.store import CURRENT, Registry, linked, make_registry, model_of, read_models
from bitwright.registry.verify import verify

_LOST = 0.02  # of nDCG@10, from which on a candidate is truly bad
_BAD_SHARE = 0.2
_CUT = 300


@dataclass(slots=True)
class Team:
    """The registry, the simulated clock, and what the team itself knows of what it serves."""

    registry: Registry
    clock: datetime
    served: dict[str, list[int]] = field(default_factory=dict)
    record: list[tuple[str, str, int]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def note(self, name: str) -> None:
        """Keep what is served from now on, and look whether the link says so."""
        version = self.served[name][-1]
        self.record.append((log.now(), name, version))
        self.counts["links wrong"] += linked(self.registry.folder(name) / CURRENT) != version


def main() -> None:
    """Prepare the pool, live through the months, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--bad", type=Path, action="append", default=[])
    parser.add_argument("--truth", required=True)
    parser.add_argument("--names", type=int, default=300)
    parser.add_argument("--months", type=int, default=12)
    parser.add_argument("--changes", type=int, default=100)
    asked = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(dir=asked.results[0].absolute().parent) as folder:
        pool = {path.name: path for path in (*asked.results, *asked.bad)} | _faults(asked.results[0], Path(folder))
        lost = _truth(pool, Path(str(read_record(asked.results[0]).model.source)), asked.truth)
        for name, share in lost.items():
            print(f"{name:24s} loses {share:6.1%}: {'bad' if share > _LOST else 'good'}")
        team = Team(make_registry(Path(folder) / "registry", mlflow=None), datetime(2031, 1, 1, tzinfo=UTC))
        with _simulated(team):
            _live(team, pool, lost, asked.names, asked.months * asked.changes, asked.months)
        print(json.dumps(dict(sorted(team.counts.items())), indent=1))
        print(f"history wrong: {_wrong_history(team)} of {len(team.record)} moments")
        found = verify(team.registry)
        print(f"verify: {found.entries} entries, {found.versions} versions, damage {list(found.damage)}")
    print(f"{(time.monotonic() - begun) / 60:.1f} minutes")


def _live(team: Team, pool: dict[str, Path], lost: dict[str, float], names: int, changes: int, months: int) -> None:
    rng, models = random.Random(0), [f"model-{i:03d}" for i in range(names)]
    good, bad = ([name for name in pool if (lost[name] > _LOST) == wrong] for wrong in (False, True))
    step = timedelta(days=30 * months) / changes
    for _ in range(changes):
        team.clock += step
        model = rng.choice(models)
        kind = rng.choice(bad if bad and rng.random() < _BAD_SHARE else good)
        wrong = kind in bad
        version = add(team.registry, pool[kind], model, link=True, sign=False)
        passed = gates.check(team.registry, model, version.number).passed
        team.counts[f"{'bad' if wrong else 'good'} {'passed' if passed else 'refused'}"] += 1
        team.counts[f"{kind} {'passed' if passed else 'refused'}"] += 1
        if not passed:
            continue
        promote(team.registry, model, version.number)
        team.served.setdefault(model, []).append(version.number)
        team.note(model)
        if wrong or rng.random() < 0.05:
            team.clock += timedelta(days=2)
            _roll_back(team, model)


def _roll_back(team: Team, model: str) -> None:
    if len(team.served[model]) < 2:
        return
    team.served[model].pop()
    rollback(team.registry, model, reason="users complained")
    team.counts["rollbacks"] += 1
    team.counts["rollbacks wrong"] += model_of(team.registry, model).champion != team.served[model][-1]
    team.note(model)


def _wrong_history(team: Team) -> int:
    """Of the moments at which something changed: how often the history says another version than the team noted."""
    models = read_models(team.registry)
    wrong = 0
    for moment, name, version in team.record:
        changes = served_at({name: models[name]}, moment)
        wrong += [change.version for change in changes] != [version]
    return wrong


@contextmanager
def _simulated(team: Team) -> Iterator[None]:
    """The team's clock, a microsecond later each time, and gates that remember what they said of the same files."""
    real, table = log.now, dict(gates.GATES)

    def now() -> str:
        team.clock += timedelta(microseconds=1)
        return log.as_time(team.clock.timestamp())

    log.now = now
    gates.GATES |= {name: _remembering(name, ask) for name, ask in table.items()}
    try:
        yield
    finally:
        log.now = real
        gates.GATES |= table


def _remembering(name: str, ask: gates.Gate) -> gates.Gate:
    known: dict[Any, gates.Said] = {}
    if name not in ("space", "latency"):
        return ask

    def remembered(trial: gates.Trial) -> gates.Said:
        beside = trial.index and trial.index[1] if name == "space" else trial.champion and trial.champion.content
        key = trial.version.content, beside
        if key not in known:
            known[key] = ask(trial)
        return known[key]

    return remembered


def _truth(pool: dict[str, Path], original: Path, collection: str) -> dict[str, float]:
    """The share of nDCG@10 that each candidate's queries lose in an index of the original."""
    texts = search_texts(collection)
    texts = replace(texts, documents=tuple(document[:_CUT] for document in texts.documents))
    reference = encoded(bitwright.load(original, compute="engine"), texts)
    found = {}
    for name, path in pool.items():
        ndcg = compare(texts, encoded(bitwright.load(path), texts), reference).ndcg
        assert ndcg is not None
        found[name] = 1 - ndcg[1] / ndcg[0]
    return found


def _faults(result: Path, folder: Path) -> dict[str, Path]:
    made: dict[str, Callable[[Path], None]] = {"pooling": _pooling, "tokenizer": _tokenizer, "damaged": _damaged}
    for name, change in made.items():
        shutil.copytree(result, folder / name)
        change(folder / name)
    return {name: folder / name for name in made}


def _pooling(path: Path) -> None:
    file = path / "1_Pooling" / "config.json"
    modes = json.loads(file.read_text())
    file.write_text(json.dumps(modes | {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}))


def _tokenizer(path: Path) -> None:
    """A third of the words get one another's numbers."""
    file = path / "tokenizer.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    words = [word for word in data["model"]["vocab"] if word.isalpha()][::3]
    numbers = [data["model"]["vocab"][word] for word in words]
    data["model"]["vocab"] |= dict(zip(words, numbers[1:] + numbers[:1], strict=True))
    file.write_text(json.dumps(data), encoding="utf-8")


def _damaged(path: Path) -> None:
    """The outputs of one linear that attention reads, in another order in each head: a conversion that went wrong."""
    file = next(path.glob("*.safetensors"))
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if name.endswith(".0.attention.self.query.weight"))
    order = torch.randperm(len(tensors[name]), generator=torch.Generator().manual_seed(0))
    for part in ("weight", "weight_scale", "bias"):
        whole = name.removesuffix("weight") + part
        tensors[whole] = tensors[whole][order].contiguous()
    save_file(tensors, file, {"format": "pt"})


if __name__ == "__main__":
    main()
