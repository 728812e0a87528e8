"""Running programs: the same bits however the work is cut, on every instruction set, from several threads at once."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bitwright.engine.executor import Executor
from bitwright.engine.ops import Embed, Rotate
from bitwright.errors import InputError
from bitwright.kernels import dispatch
from bitwright.models.load import load_model
from tests.engine.conftest import Open

TinyModel = Callable[..., Path]
ISAS = [row.name for row in dispatch.isa_table() if row.supported]


@pytest.fixture(scope="module")
def bert(tiny_model: TinyModel, opened: Open) -> Executor:
    return opened(tiny_model("bert"))


def test_threads_groups_and_company_change_no_bit(
    tiny_model: TinyModel, opened: Open, sequences: list[list[int]]
) -> None:
    many = sequences * 30  # enough for threads to take whole groups
    want = opened(tiny_model("bert"), group_tokens=1 << 20).run(many, 1)
    for group_tokens in (1, 48, 4096):
        executor = opened(tiny_model("bert"), group_tokens=group_tokens)
        for threads in (1, 2, 3, 5):
            assert np.array_equal(executor.run(many, threads), want), (group_tokens, threads)
    alone = [executor.run([ids], 2)[0] for ids in sequences]
    assert np.array_equal(np.stack(alone), want[: len(sequences)])


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(tiny_model: TinyModel, opened: Open, sequences: list[list[int]], isa: str) -> None:
    got = opened(tiny_model("bert"), isa).run(sequences, 2)
    want = opened(tiny_model("bert"), "scalar").run(sequences, 1)
    assert np.linalg.norm(got - want) < 0.01 * np.linalg.norm(want)


@pytest.mark.parametrize(
    ("batch", "threads", "message"),
    [
        ([[5, 6], []], 1, "sequence 1 has 0 tokens; this model takes 1 to 66"),
        ([[5] * 67], 1, "sequence 0 has 67 tokens; this model takes 1 to 66"),
        ([[5], [5, 200]], 1, "sequence 1: token id 200, but this model has only 0 to 199"),
        ([[-1]], 1, "token id -1, but this model has only 0 to 199"),
        ([[5]], 0, "threads = 0: give at least 1"),
        ([[5]], 1.0, "threads = 1.0: give a whole number"),
        ([[5]], "2", "threads = '2': give a whole number"),
        ([[1.7]], 1, r"a sequence holds something other than a token id \(required argument is not an integer\)"),
        ([[np.float64(1)]], 1, "other than a token id"),
        ([[2**70]], 1, "other than a token id"),
        ([[2**63 - 1]], 1, f"token id {2**63 - 1}, but this model has only 0 to 199"),
        (["ab"], 1, "other than a token id"),
        ([5], 1, "other than a token id"),
        ([None], 1, "other than a token id"),
    ],
)
def test_bad_batches_say_so_and_the_executor_stays_usable(
    bert: Executor, batch: list[list[int]], threads: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        bert.run(batch, threads)
    assert np.isfinite(bert.run([[5, 6, 7]], 1)).all()


@pytest.mark.parametrize("family", ["bert", "deberta-v2"])
def test_types_are_those_of_the_model(
    tiny_model: TinyModel, opened: Open, sequences: list[list[int]], family: str
) -> None:
    directory = tiny_model(family, type_vocab_size=3)
    types = [np.random.default_rng(i).integers(0, 3, len(ids)).tolist() for i, ids in enumerate(sequences)]
    executor, model = opened(directory, pooling=None), load_model(directory).model
    want = []
    with torch.inference_mode():
        for ids, kinds in zip(sequences, types, strict=True):
            out = model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([kinds]))
            want.append(out.last_hidden_state[0].numpy())
    got = executor.run(sequences, 1, types=types)
    assert np.linalg.norm(got - np.concatenate(want)) < 0.015 * np.linalg.norm(got)
    untyped = executor.run(sequences, 1)
    assert np.linalg.norm(got - untyped) > 0.1 * np.linalg.norm(got)
    assert np.array_equal(executor.run(sequences, 3, types=types), got)
    assert np.array_equal(executor.run(sequences, 1, types=[[0] * len(ids) for ids in sequences]), untyped)


@pytest.mark.parametrize(
    ("types", "message"),
    [
        ([[0, 0, 2]], "token type 2, but this model has only 0 to 1"),
        ([[0, -1, 0]], "token type -1, but this model has only 0 to 1"),
        ([[0, 0]], "sequence 0 has 3 tokens and 2 token types"),
        ([[0], [0, 0]], "token types of 2 sequences for 1"),
        ([None], "a sequence holds something other than a token type"),
        ([[0, 0.5, 0]], "other than a token type"),
    ],
)
def test_types_that_do_not_fit(bert: Executor, types: list[list[int]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bert.run([[5, 6, 7]], 1, types=types)
    with pytest.raises(InputError, match=r"\(2,\) token types for \(3,\) token ids"):
        bert.run_packed(np.array([5, 6, 7]), np.array([3]), 1, types=np.array([0, 1]))
    assert np.isfinite(bert.run([[5, 6, 7]], 1, types=[[0, 1, 1]])).all()


def test_ids_and_lengths_that_do_not_fit(bert: Executor) -> None:
    with pytest.raises(InputError, match=r"\(3,\) token ids for sequences of 4 tokens in all"):
        bert.run_packed(np.array([5, 6, 7]), np.array([2, 2]), 1)
    one, whole = np.array([3]), np.array([5, 6, 7])
    for ids, lengths, message in (
        (np.array([5, np.nan, 7]), one, r"token ids are float64 \(3,\), but must be integers in one dimension"),
        (np.array([True, False, True]), one, "token ids are bool"),
        (
            np.array([5, 2**64 - 1, 7], np.uint64),
            one,
            "token id 18446744073709551615, but this model has only 0 to 199",
        ),
        (whole, np.array([3.0]), "lengths are float64"),
        (whole, np.array([[3]]), r"lengths are int64 \(1, 1\)"),
        (whole, np.array([4, -1]), "sequence 1 has -1 tokens"),
        (whole, np.array([2**62, 2**62, 2**62, 2**62, 3]), f"sequence 0 has {2**62} tokens"),
    ):
        with pytest.raises(InputError, match=message):
            bert.run_packed(ids, lengths, 1)
    for seconds in (np.zeros(2), np.zeros(len(bert.program.ops), np.float32), np.zeros(2 * len(bert.program.ops))[::2]):
        with pytest.raises(InputError, match="seconds is float"):
            bert.run_packed(whole, one, 1, seconds)
    want = bert.run([[5, 6, 7]], 1)
    for dtype in (np.uint8, np.int16, np.uint64):
        assert np.array_equal(bert.run_packed(whole.astype(dtype), one.astype(dtype), 2**40), want)
    assert np.array_equal(bert.run(np.array([[5, 6, 7]]), np.int64(2)), want)


def test_no_sequences(bert: Executor) -> None:
    assert bert.run([], 2).shape == (0, 32)


def test_buffers_are_kept_and_do_not_grow(bert: Executor, sequences: list[list[int]]) -> None:
    bert.run(sequences, 2)
    before = bert.memory
    for _ in range(20):
        bert.run(sequences, 2)
    assert bert.memory == before


def test_several_python_threads_at_once(bert: Executor, sequences: list[list[int]]) -> None:
    want = bert.run(sequences, 1)
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(40):
            if not np.array_equal(bert.run(sequences, 1 + number % 3), want):
                wrong.append(number)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_forked_child_has_threads_of_its_own(bert: Executor, sequences: list[list[int]]) -> None:
    want = bert.run(sequences, 2)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(bert.run(sequences, 2), want) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(bert.run(sequences, 2), want)


def test_seconds_are_those_of_the_operators(bert: Executor, sequences: list[list[int]]) -> None:
    seconds = np.zeros(len(bert.program.ops))
    bert.run(sequences, 1, seconds)
    assert (seconds > 0).all()
    assert seconds.sum() < 10


def test_the_engines_door_needs_no_torch(tiny_model: TinyModel) -> None:
    code = (
        "import sys, pathlib\n"
        "from bitwright.files.directory import ModelDirectory\n"
        "from bitwright.runtime.engine_model import EngineModel\n"
        f"model = EngineModel(ModelDirectory(pathlib.Path({str(tiny_model('bert'))!r})))\n"
        "assert model.encode(['a text', 'another, longer text']).shape == (2, 32)\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_table_of_words_stays_in_the_file_unless_it_lies_askew_there(
    tiny_model: TinyModel, tmp_path: Path, opened: Open, sequences: list[list[int]], dtype: torch.dtype,
    isa: str,
) -> None:  # fmt: skip
    copy = Path(shutil.copytree(tiny_model("bert"), tmp_path / "copy"))
    file, rows = copy / "model.safetensors", []
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    for shift in range(4):  # spaces that end the header
        file.unlink()
        file.write_bytes((end - 8 + shift).to_bytes(8, "little") + content[8:end] + b" " * shift + content[end:])
        executor = opened(copy, isa)
        embed = executor.program.ops[0]
        assert isinstance(embed, Embed)
        words = embed.words_VH
        (held,) = executor.binder.held(words)
        assert held.flags.aligned
        assert (held is words) == (shift % dtype.itemsize == 0)
        rows.append(executor.run(sequences, 1))
    assert all(np.array_equal(row, rows[0]) for row in rows)


def test_constants_of_several_operators_are_held_once(tiny_model: TinyModel, opened: Open) -> None:
    executor = opened(tiny_model("modernbert", num_hidden_layers=5))
    tables = [table for op in executor.program.ops if isinstance(op, Rotate) for table in (op.cos_TF, op.sin_TF)]
    assert len(tables) == 10
    each = {id(table): table for table in tables}
    assert len(each) == 4  # of two kinds of attention
    assert all(len(executor.binder.held(table)) == 1 for table in each.values())
