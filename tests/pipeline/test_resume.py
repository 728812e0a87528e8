"""A run that is stopped, at whatever moment, goes on to the same bytes; what belongs to another run is left alone."""

import json
import random
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bitwright import report
from bitwright.calibration import observers
from bitwright.checkpoints import write
from bitwright.errors import CheckpointError, InputError, NumericsError
from bitwright.pipeline import quantize
from bitwright.pipeline.workspace import claim, work_directory
from bitwright.progress import Quiet
from bitwright.quantizing import layers, observing
from bitwright.recipe import make_recipe
from tests.forks import in_fork

RECIPE = {
    "scheme": "w4a16_g32", "method": "awq_gptq", "targets": ["bitwright"], "budget": {"max_loss": 0.9},
    "calibration": {"samples": 32, "max_tokens": 16, "batch_size": 8},
}  # fmt: skip
TIMED = {"report.html", "README.md", "record.json"}
# Of the record: when it was made, how long it took, and that an earlier run was interrupted.
PASSING = ("created", "timings_s", "warnings", "command")


@pytest.fixture(autouse=True)
def save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes: these blocks take no time."""
    monkeypatch.setattr(layers, "_SAVING", float("inf"))


@pytest.fixture(scope="module")
def source(tiny_decoder: Callable[..., Path]) -> Path:
    return tiny_decoder("llama", num_hidden_layers=4)


@pytest.fixture
def start(source: Path, prose: str, tmp_path: Path) -> Callable[..., Any]:
    """`start(**options)`: quantize to tmp_path / "out"."""

    def call(model: Path = source, recipe: dict[str, Any] = RECIPE, **options: Any) -> Any:
        defaults: dict[str, Any] = {"data": prose, "samples": 16, "judged": False, "out": tmp_path / "out"}
        return quantize(model, recipe=make_recipe(recipe), **(defaults | options))

    return call


def content(out: Path) -> dict[str, Any]:
    """Everything in a result that does not tell the time."""
    found: dict[str, Any] = {p.name: p.read_bytes() for p in out.iterdir() if p.name not in TIMED}
    record = json.loads((out / "record.json").read_text())
    for row in record.get("verify") or ():
        row["checks"].pop("seconds", None)
    return found | {key: value for key, value in record.items() if key not in PASSING}


@pytest.fixture(scope="module")
def undisturbed(source: Path, prose: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    quantize(source, recipe=make_recipe(RECIPE), data=prose, samples=16, judged=False, out=out)
    return content(out)


class Stopping(Quiet):
    """Stops the run at the remark that begins so; keeps all remarks."""

    def __init__(self, at: str = "never") -> None:
        self.at = at
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)
        if text.startswith(self.at):
            raise KeyboardInterrupt


def work(tmp_path: Path) -> Path:
    return tmp_path / ".out.bitwright"


def test_stopped_before_every_block(start: Callable[..., Any], undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """In one go: each time the block under way is all that was lost."""
    for block in range(4):
        progress = Stopping(f"quantizing block {block}")
        with pytest.raises(KeyboardInterrupt):
            start(progress=progress)
        assert len(list(work(tmp_path).glob("shard-*"))) == block
        begun = [text for text in progress.said if text.startswith("quantizing block")]
        assert begun == [f"quantizing block {i}" for i in range(max(0, block - 1), block + 1)]
        assert any("run the same command again to continue" in text for text in progress.said) == (block > 0)
    progress = Stopping()
    start(progress=progress)
    assert "continuing with block 3, because an earlier run finished the blocks before it" in progress.said
    assert content(tmp_path / "out") == undisturbed
    assert not work(tmp_path).exists()


@pytest.mark.parametrize(("module", "where"), [(write, "write_checkpoint"), (report, "write_report")])
def test_stopped_while_writing(
    start: Callable[..., Any],
    undisturbed: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    where: str,
) -> None:
    def stop(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, where, stop)
        with pytest.raises(KeyboardInterrupt):
            start()
    assert not (tmp_path / "out").exists()
    assert len(list(work(tmp_path).glob("shard-*"))) == 4
    start()
    assert content(tmp_path / "out") == undisturbed


def test_nan_in_a_batch_loses_nothing(
    start: Callable[..., Any], undisturbed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def poisoned(stats: Any, x_MK: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return observers.observe(stats, x_MK * float("nan") if calls == 4 * 4 * 2 + 1 else x_MK, **options)

    with monkeypatch.context() as patch:
        patch.setattr(observing, "observe", poisoned)
        with pytest.raises(NumericsError, match=r"block 2: .*NaN"):
            start()
    assert len(list(work(tmp_path).glob("shard-*"))) == 2
    progress = Stopping()
    start(progress=progress)
    assert any(text.startswith("continuing with block 2") for text in progress.said)
    assert content(tmp_path / "out") == undisturbed


def test_another_run_s_work_is_refused(
    start: Callable[..., Any], undisturbed: dict[str, Any], tiny_decoder: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        start(progress=Stopping("quantizing block 2"))
    before = {path.name: path.read_bytes() for path in work(tmp_path).iterdir()}
    other_model = tiny_decoder("llama", num_hidden_layers=4, rms_norm_eps=1e-4)
    other_recipe = RECIPE | {"options": {"damping": 0.02}}
    for options, what in (
        ({"recipe": other_recipe}, "recipe"),
        ({"model": other_model}, "model"),
        ({"data": "builtin"}, "texts"),
        ({"model": other_model, "recipe": other_recipe}, "model and its recipe"),
    ):
        progress = Stopping()
        with pytest.raises(InputError, match=rf"differs from this one in its {what}. Run its command again"):
            start(progress=progress, **options)
        assert not any("the same command" in text for text in progress.said)
        assert {path.name: path.read_bytes() for path in work(tmp_path).iterdir()} == before
    start(recipe=RECIPE | {"budget": {"max_loss": 0.5}}, out=tmp_path / "elsewhere")  # undisturbed by the other
    start()
    assert content(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("name", ["shard-00000", "inputs-00002"])
def test_damaged_work_is_refused(start: Callable[..., Any], tmp_path: Path, name: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        start(progress=Stopping("quantizing block 2"))
    damaged = work(tmp_path) / f"{name}.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=rf"{name}.*damaged.*delete .*\.out\.bitwright to start over"):
        start()
    assert not (tmp_path / "out").exists()


def test_what_a_killed_run_was_writing_goes(tmp_path: Path) -> None:
    out, folder = tmp_path / "out", work(tmp_path)
    (folder / ".checkpoint.abcdefgh.partial").mkdir(parents=True)
    (folder / ".checkpoint.abcdefgh.partial" / "model.safetensors").write_bytes(b"half")
    (folder / ".shard-00001.safetensors.part").write_bytes(b"half")
    (folder / ".context.json.abc").write_text("{")
    with work_directory(out, 0, Quiet()) as opened:
        assert [path.name for path in opened.iterdir()] == ["lock"]
    assert not folder.exists()


def test_what_is_left_of_a_finished_run_is_not_used(tmp_path: Path) -> None:
    """A kill while the directory of a finished run is removed may leave shards, but not what they depend on."""
    (tmp_path / "shard-00000.safetensors").write_bytes(b"of whatever")
    (tmp_path / "inputs-00001.safetensors").write_bytes(b"of whatever")
    claim(tmp_path, {"model": "a"})
    assert [path.name for path in tmp_path.iterdir()] == ["context.json"]
    (tmp_path / "shard-00000.safetensors").write_bytes(b"of this run")
    claim(tmp_path, {"model": "a"})
    assert (tmp_path / "shard-00000.safetensors").exists()
    (tmp_path / "context.json").write_text("{")
    with pytest.raises(InputError, match=r"context\.json: cannot be read .*; delete .* to start over"):
        claim(tmp_path, {"model": "a"})


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("judged", [False, pytest.param(True, marks=pytest.mark.full)])
def test_killed_at_ten_random_moments(
    source: Path, prose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judged: bool
) -> None:
    """By SIGKILL, which nothing can prepare for. A killed run is started again until it finishes."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = {
        "recipe": make_recipe(RECIPE), "data": prose, "samples": 16, "judged": judged, "speed": False,
        "out": tmp_path / "out",
    }  # fmt: skip

    def shards() -> int:
        return len(list(work(tmp_path).glob("shard-*")))

    def run(blocks: int = 0, seconds: float | None = None) -> float | None:
        """How long the run took, or None if it was killed so many seconds after these blocks were done."""
        begun = time.monotonic()
        process = in_fork(tmp_path / "log", partial(quantize, source, **options))
        while process.is_alive() and shards() < blocks:
            time.sleep(0.005)
        process.join(seconds)
        took, killed = time.monotonic() - begun, process.is_alive()
        process.kill()
        process.join()
        assert killed or process.exitcode == 0
        return None if killed else took

    def finished() -> dict[str, Any]:
        found = content(tmp_path / "out")
        shutil.rmtree(tmp_path / "out")
        return found

    run()  # which also starts the server
    wanted = finished()
    whole = run()
    assert whole is not None
    assert finished() == wanted
    rng, kills, reached = random.Random(4), 0, set()
    while kills < 10 or (kills < 30 and not judged and len(reached) <= 2):
        blocks = min(shards() + rng.randrange(2), 4)  # moments counted from the start might all be early, or late
        took = run(blocks, whole * rng.random() * (1 if blocks == 4 else 0.1))
        kills += took is None
        reached.add(shards())
        if (tmp_path / "out").exists():  # it was faster, or was killed while it tidied up
            assert finished() == wanted
    run()
    assert finished() == wanted
    assert judged or len(reached) > 2, "the kills fell on too few different blocks to show much"


def test_saving_takes_a_small_share_of_the_time(
    start: Callable[..., Any], undisturbed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it takes long it is done seldom, and a stopped run goes on from further back, to the same bytes."""
    monkeypatch.setattr(layers, "_SAVING", 1e-9)  # after the first, which might be free, never again
    monkeypatch.setattr(layers, "_QUICK_SAVE", 0.0)
    with pytest.raises(KeyboardInterrupt):
        start(progress=Stopping("quantizing block 3"))
    assert [path.stem for path in work(tmp_path).glob("inputs-*")] == ["inputs-00001"]
    progress = Stopping()
    start(progress=progress)
    assert "continuing with block 1, because an earlier run finished the blocks before it" in progress.said
    assert content(tmp_path / "out") == undisturbed
