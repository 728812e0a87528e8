"""Laws of the benchmark: what its table holds, that runtimes take turns, and that nothing outlives it."""

import json
import math
import os
import shutil
import signal
import sys
import tempfile
from importlib.util import find_spec
from itertools import pairwise
from statistics import median

import numpy as np
import psutil
import pytest

from bitwright.errors import InputError, ModelError, TargetError
from bitwright.files.directory import ModelDirectory
from bitwright.progress import Quiet
from bitwright.runtime import bench
from bitwright.runtime.bench import Schedule, run_bench
from bitwright.runtime.bench_inputs import model_shape, random_tokens
from bitwright.runtime.bench_process import Worker, worker_command
from bitwright.runtime.bench_runtimes import RUNTIMES, Runtime
from bitwright.runtime.bench_summary import Block, summarize

OURS = ("torch fp32", "torch bf16", "bitwright")
SHAPES = [(1, 4), (2, 8)]
ROUNDS = 2
FULL = pytest.mark.full

# A worker whose runtimes are a function of numpy, started in 0.2 s; {action} is what opening the model does first.
FAKE_WORKER = """
import os, sys, threading
from bitwright.runtime import bench_worker
from bitwright.runtime.bench_runtimes import RUNTIMES, Runtime
def open_fake(directory, threads):
    {action}
    return lambda ids, mask: ids * 0.5
RUNTIMES["fake"] = RUNTIMES["other fake"] = RUNTIMES["rival"] = Runtime(open_fake)
sys.exit(bench_worker.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def float_model(tiny_model):
    """Directory of a random BERT of two blocks with 66 positions."""
    return tiny_model("bert")


def short_bench(model, *, source="model", shapes=SHAPES, threads=1, rounds=ROUNDS, block_s=0.01, **options):
    source = model if source == "model" else source
    opened = None if source is None else ModelDirectory(source)
    return run_bench(model, Schedule(shapes, threads, rounds, block_s), source=opened, **options)


class Watched(Quiet):
    """Progress that hands `act` each remark, and the number of each block that begins."""

    def __init__(self, act):
        self.act = act

    def track(self, items, what):
        for number, item in enumerate(items):
            self.act(f"{what} {number}")
            yield item

    def say(self, text):
        self.act(text)


@pytest.fixture(scope="module")
def result(float_model):
    """A benchmark in real workers, without rivals; the checkpoint is the float model itself."""
    return short_bench(float_model, shapes=[*SHAPES, (1, 67)], rivals=False)


@pytest.fixture
def fake_runtimes(monkeypatch, tmp_path):
    """Two runtimes of ours with fake workers; returns the table, to add to. Scratch directories go to tmp_path."""
    ours = Runtime(RUNTIMES["bitwright"].open, reads_checkpoint=True)
    table = {"fake": ours, "other fake": ours}
    monkeypatch.setattr(bench, "runtimes", lambda task: table)
    monkeypatch.setattr(bench, "worker_command", fake_command)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return table


def fake_command(runtime, directory, *, config_from, threads, task=None, prepare=None, action="pass"):
    real = worker_command(runtime, directory, config_from=config_from, threads=threads, prepare=prepare)
    return [sys.executable, "-c", FAKE_WORKER.format(action=action), *real[real.index(runtime) :]]


def start_worker(command, log):
    return Worker("some runtime", command, os.environ, log)


def workers_alive():
    """The workers among this process's children. What another test killed may lie there yet, without a command line."""
    children = [each for each in psutil.Process().children() if each.status() != psutil.STATUS_ZOMBIE]
    return [each for each in children if any("bench_worker" in word for word in each.cmdline())]


def test_every_runtime_has_a_row_for_every_shape_that_fits(result):
    rows = [(row["runtime"], row["batch"], row["tokens"]) for row in result["rows"]]
    assert sorted(rows) == sorted((name, *shape) for name in OURS for shape in SHAPES)


def test_a_shape_longer_than_the_model_is_skipped_with_the_numbers(result):
    (entry,) = result["skipped"]
    assert entry["runtime"] == "all"
    assert "67" in entry["reason"]
    assert "66" in entry["reason"]


def test_rows_agree_with_the_blocks_they_summarize(result):
    def block_medians(runtime, row):
        shape = (row["batch"], row["tokens"])
        blocks = result["blocks"]
        return [b["median_ms"] for b in blocks if b["runtime"] == runtime and (b["batch"], b["tokens"]) == shape]

    for row in result["rows"]:
        own = block_medians(row["runtime"], row)
        assert len(own) == ROUNDS
        assert 0 < row["min_ms"] <= row["median_ms"] <= max(own)
        assert row["per_second"] == pytest.approx(1e3 * row["batch"] / row["median_ms"])
        for key, other in (("ratio_to_fp32", "torch fp32"), ("ratio_to_bf16", "torch bf16")):
            paired = [theirs / mine for theirs, mine in zip(block_medians(other, row), own, strict=True)]
            assert row[key] == pytest.approx(median(paired))


def test_runtimes_take_turns_and_never_overlap(result):
    blocks = result["blocks"]
    turns = [((b["batch"], b["tokens"]), b["round"], b["runtime"]) for b in blocks]
    assert turns == [(shape, r, name) for shape in SHAPES for r in range(ROUNDS) for name in OURS]
    assert all(block["start_s"] < block["end_s"] for block in blocks)
    assert all(before["end_s"] <= after["start_s"] for before, after in pairwise(blocks))


def test_memory_load_time_agreement_and_size_are_reported(result, float_model):
    for key in ("peak_rss_mib", "load_s", "cosine_to_fp32"):
        assert tuple(result[key]) == OURS
        assert all(0 < value < math.inf for value in result[key].values())
    # bf16 has rounded something: it is not fp32 under another name.
    assert 0.99 < result["cosine_to_fp32"]["torch bf16"] < 1 - 1e-9 < result["cosine_to_fp32"]["torch fp32"]
    n_bytes = (float_model / "model.safetensors").stat().st_size
    assert result["size"] == {"source_bytes": n_bytes, "checkpoint_bytes": n_bytes}
    json.dumps(result, allow_nan=False)


def test_ratios_pair_the_blocks_of_one_round():
    # In round 1 the machine is ten times slower. fp32 takes twice as long in every round; pooled medians say otherwise.
    def block(runtime, round_, median_ms):
        return Block(runtime, 1, 4, round_, 0.0, 1.0, median_ms, 0.0, 0.0)

    blocks = [block("torch fp32", 0, 2.0), block("x", 0, 1.0), block("torch fp32", 1, 20.0), block("x", 1, 10.0)]
    samples = [[2.0, 2.0], [1.0], [20.0], [10.0, 10.0]]
    fp32, x = summarize(list(zip(blocks, samples, strict=True)), {"torch fp32": None, "x": "as it is"})
    assert (fp32["ratio_to_fp32"], x["ratio_to_fp32"]) == (1.0, 2.0)
    assert (fp32["median_ms"], x["median_ms"]) == (2.0, 10.0)
    assert (x["ratio_to_bf16"], x["note"]) == (None, "as it is")


def test_rivals_that_cannot_be_measured_are_skipped_with_a_reason(float_model, fake_runtimes):
    prepare = RUNTIMES["onnxruntime int8"].prepare
    fake_runtimes["absent"] = Runtime(RUNTIMES["torch fp32"].open, prepare, needs=("json", "no_such_package"))
    fake_runtimes["rival"] = Runtime(RUNTIMES["torch fp32"].open, prepare)  # the fake worker has no way to prepare it
    fake_runtimes["unknown"] = Runtime(RUNTIMES["torch fp32"].open, prepare)  # the fake worker ends at once
    measured = short_bench(float_model)
    assert {row["runtime"] for row in measured["rows"]} == {"fake", "other fake"}
    reasons = {entry["runtime"]: entry["reason"] for entry in measured["skipped"]}
    assert reasons["absent"] == "no_such_package not installed; run: pip install 'bitwright[rivals]'"
    assert "ValueError: the runtime rival needs no preparation" in reasons["rival"]
    assert "ended unexpectedly with exit code 2" in reasons["unknown"]
    assert all("\n" not in reason for reason in reasons.values())


def test_slow_rivals_are_measured_on_request_only(float_model, fake_runtimes):
    fake_runtimes["compiled"] = Runtime(RUNTIMES["torch fp32"].open, None, needs=("no_such_package",), slow=True)
    assert short_bench(float_model)["skipped"] == []
    assert [entry["runtime"] for entry in short_bench(float_model, slow=True)["skipped"]] == ["compiled"]


def test_rivals_are_left_out_on_request(float_model, fake_runtimes):
    fake_runtimes["rival"] = Runtime(RUNTIMES["torch fp32"].open, RUNTIMES["onnxruntime int8"].prepare)
    assert short_bench(float_model, rivals=False)["skipped"] == []


def test_without_a_source_only_the_checkpoint_is_measured(float_model, fake_runtimes):
    fake_runtimes["torch fp32"] = RUNTIMES["torch fp32"]
    measured = short_bench(float_model, source=None)
    assert {row["runtime"] for row in measured["rows"]} == {"fake", "other fake"}
    assert all(row["ratio_to_fp32"] is None for row in measured["rows"])
    (entry,) = measured["skipped"]
    assert entry["runtime"] == "torch fp32"
    assert "no source directory" in entry["reason"]
    assert measured["size"]["source_bytes"] is None


def test_other_checkpoints_of_the_model_are_rows_of_their_own(float_model, fake_runtimes, tmp_path):
    del fake_runtimes["other fake"]
    other = tmp_path / "other"
    shutil.copytree(float_model, other)
    loaded = []
    measured = short_bench(float_model, others={"fake 1": other}, progress=Watched(loaded.append))
    assert [row["runtime"] for row in measured["rows"]] == ["fake", "fake 1"] * len(SHAPES)
    assert loaded[:2] == ["fake: loading", "fake 1: loading"]


def test_nothing_outlives_a_benchmark(float_model, fake_runtimes, tmp_path):
    seen = []
    look = Watched(lambda text: seen.append((len(workers_alive()), len(list(tmp_path.glob("bitwright-bench-*"))))))
    short_bench(float_model, progress=look)
    assert (2, 1) in seen
    assert (workers_alive(), list(tmp_path.glob("bitwright-bench-*"))) == ([], [])


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_the_workers_and_removes_the_files(float_model, fake_runtimes, tmp_path):
    def interrupt(text):
        if text == "timing 1":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        short_bench(float_model, progress=Watched(interrupt))
    assert (workers_alive(), list(tmp_path.glob("bitwright-bench-*"))) == ([], [])


def test_a_worker_that_dies_while_it_is_measured_is_named(float_model, fake_runtimes, tmp_path):
    def kill_one(text):
        if text == "timing 1":
            [each.kill() for each in workers_alive() if "other fake" in each.cmdline()]

    with pytest.raises(TargetError, match=r"'other fake' ended unexpectedly with exit code -9"):
        short_bench(float_model, progress=Watched(kill_one))
    assert (workers_alive(), list(tmp_path.glob("bitwright-bench-*"))) == ([], [])


def test_a_runtime_of_ours_that_cannot_load_is_an_error_with_its_last_messages(float_model, fake_runtimes, monkeypatch):
    def broken(*arguments, **options):
        return fake_command(*arguments, **options, action="print('reading', flush=True); raise OSError('no weights')")

    monkeypatch.setattr(bench, "worker_command", broken)
    with pytest.raises(TargetError, match=r"(?s)'fake' failed: OSError: no weights\n.*reading.*Traceback"):
        short_bench(float_model)
    assert workers_alive() == []


def test_a_worker_that_hangs_is_named_and_killed(tmp_path):
    command = [sys.executable, "-c", "import sys, time; print('busy', file=sys.stderr, flush=True); time.sleep(60)"]
    with start_worker(command, tmp_path / "log") as worker:
        child = worker.process
        with pytest.raises(TargetError, match=r"(?s)'some runtime' gave no answer in 2 s.*busy"):
            worker.ask({"do": "memory"}, timeout_s=2)
    assert not child.is_running()


def test_an_answer_that_is_not_json_is_an_error(tmp_path):
    with (
        start_worker([sys.executable, "-c", "print('hello')"], tmp_path / "log") as worker,
        pytest.raises(TargetError, match="'hello', which is not a JSON object"),
    ):
        worker.answer(timeout_s=20)


def test_what_libraries_print_or_read_does_not_reach_the_protocol(float_model, tmp_path):
    action = "print('noise'); os.system('echo noise'); assert sys.stdin.read() == ''"
    command = fake_command("fake", float_model, config_from=float_model, threads=1, action=action)
    with start_worker(command, tmp_path / "log") as worker:
        assert worker.answer(timeout_s=20)["load_s"] > 0
        assert worker.ask({"do": "memory"}, timeout_s=20)["peak_rss_mib"] > 0
        assert (tmp_path / "log").read_text().count("noise") >= 1


@pytest.mark.alone
@pytest.mark.parametrize("allocated_mib", [0, 200])
def test_peak_memory_is_the_workers_own_and_includes_what_it_has_freed(float_model, tmp_path, allocated_mib):
    ballast = np.ones(400 << 17)  # 400 MiB of this process: a child that counted its parent's peak would report more
    command = fake_command(
        "fake", float_model, config_from=float_model, threads=1, action=f"b'x' * ({allocated_mib} << 20)"
    )
    with start_worker(command, tmp_path / "log") as worker:
        worker.answer(timeout_s=20)
        peak_mib = worker.ask({"do": "memory"}, timeout_s=20)["peak_rss_mib"]
    assert allocated_mib + 5 < peak_mib < allocated_mib + 195 < ballast.nbytes / (1 << 20)


@pytest.mark.alone
def test_threads_that_go_on_spinning_are_reported(float_model, tmp_path):
    action = "threading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()"
    command = fake_command("fake", float_model, config_from=float_model, threads=1, action=action)
    block = {"do": "block", "shape": [1, 4, "forward"], "seed": 0, "block_s": 0.01}
    with start_worker(command, tmp_path / "log") as worker:
        worker.answer(timeout_s=20)
        assert worker.ask(block, timeout_s=20)["idle_cores"] > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads = 0"),
        ({"rounds": 0}, "rounds = 0"),
        ({"block_s": math.nan}, "block_s = nan"),
        ({"shapes": []}, "at least one pair"),
        ({"shapes": [(0, 8)]}, "at least 1"),
        ({"shapes": [(1, 67)]}, "at most 66 tokens"),
    ],
)
def test_options_out_of_range_are_refused(float_model, options, message):
    with pytest.raises(InputError, match=message):
        short_bench(float_model, **options)


def test_random_tokens_are_ordinary_repeatable_and_within_the_vocabulary(tmp_path):
    for vocabulary in (8, 300, 30522):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": vocabulary}))
        shape = model_shape(ModelDirectory(tmp_path))
        ids_BT, mask_BT = random_tokens(shape, batch=4, tokens=500, seed=1)
        assert ids_BT.dtype == mask_BT.dtype == np.int64
        assert min(1000, vocabulary // 2) <= ids_BT.min() <= ids_BT.max() < vocabulary
        assert mask_BT.all()
        assert np.array_equal(ids_BT, random_tokens(shape, batch=4, tokens=500, seed=1)[0])
        assert not np.array_equal(ids_BT, random_tokens(shape, batch=4, tokens=500, seed=2)[0])


def test_positions_that_start_after_padding_do_not_count(tmp_path):
    config = {"vocab_size": 9, "max_position_embeddings": 514, "pad_token_id": 1}
    for model_type, longest in (("bert", 514), ("roberta", 512)):
        (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": model_type}))
        assert model_shape(ModelDirectory(tmp_path)).max_tokens == longest


def test_the_shape_is_read_by_the_keys_of_the_family(tmp_path):
    for config, wanted in (
        ({"model_type": "distilbert", "n_heads": 12, "dim": 768}, (512, 12, 768)),  # positions: transformers' default
        ({"model_type": "gpt2", "n_head": 4, "n_embd": 64, "n_positions": 99}, (99, 4, 64)),
        ({"model_type": "llama"}, (None, 0, 0)),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 9}))
        shape = model_shape(ModelDirectory(tmp_path))
        assert (shape.max_tokens, shape.n_heads, shape.hidden_size) == wanted


def test_a_family_without_a_row_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "longformer", "vocab_size": 9}))
    with pytest.raises(ModelError, match="does not know model_type 'longformer'"):
        model_shape(ModelDirectory(tmp_path))


@pytest.mark.parametrize("content", [None, "{", "[]", '{"model_type": "bert"}'])
def test_a_directory_without_a_usable_config_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        model_shape(ModelDirectory(tmp_path))


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize(
    "task",
    [
        "sequence-classification",
        *(pytest.param(task, marks=FULL) for task in ("token-classification", "question-answering")),
    ],
)
def test_a_model_with_a_head_is_measured_too(tiny_model, monkeypatch, task):
    ours = {name: RUNTIMES[name] for name in ("torch fp32", "bitwright")}
    monkeypatch.setattr(bench, "runtimes", lambda task: ours)
    measured = short_bench(tiny_model("bert", task), shapes=[(2, 8)])
    assert 1 - 1e-3 < measured["cosine_to_fp32"]["bitwright"] < 1 + 1e-9


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "onnxruntime int8" else FULL)
        for name, runtime in RUNTIMES.items()
        if runtime.prepare is not None
    ],
)
def test_a_rival_computes_what_fp32_computes(float_model, monkeypatch, name):
    # Not importorskip: importing OpenVINO starts its usage statistics, which the workers turn off.
    if missing := [package for package in RUNTIMES[name].needs if find_spec(package) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    some = {each: RUNTIMES[each] for each in ("torch fp32", name)}
    monkeypatch.setattr(bench, "runtimes", lambda task: some)
    measured = short_bench(float_model, slow=True)
    assert measured["skipped"] == []
    assert {row["runtime"] for row in measured["rows"]} == {"torch fp32", name}
    assert 0.95 < measured["cosine_to_fp32"][name] < 1 - 1e-9  # int8: close, and not the same
