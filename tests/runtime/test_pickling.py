"""A loaded model pickled, copied, handed to other processes; and pickles whose model is gone or another."""

import copy
import io
import json
import multiprocessing
import os
import pickle
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from torch import nn

import bitwright
from bitwright.errors import ModelError
from bitwright.files.safetensors import read_header
from bitwright.kernels import dispatch
from bitwright.models.load import load_model, open_lazily
from bitwright.recipe import make_recipe
from bitwright.record import RECORD_FILE
from bitwright.runtime import pickling
from bitwright.runtime.changes import Changes
from bitwright.runtime.engine_model import EngineModel
from bitwright.runtime.generic_model import GenericModel, float_model
from bitwright.runtime.model import Model
from bitwright.runtime.streamed import StreamedModel

pytestmark = pytest.mark.skipif(not dispatch.available(), reason="the native kernels are not built")
HOW: dict[str, tuple[str, dict[str, Any]]] = {
    "engine": ("int8", {"threads": 1}),
    "generic": ("int8", {"compute": "float32"}),
    "float": ("float", {"trust_remote_code": True}),
}
TEXTS = ["a class", "a function of two arguments", ""]


@pytest.fixture(scope="module")
def places(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A directory with a record, and a float one."""
    out = tmp_path_factory.mktemp("int8") / "out"
    recipe = make_recipe({"targets": ["bitwright"]})
    bitwright.quantize(tiny_model("bert"), out=out, recipe=recipe, samples=40, judged=False)
    return {"int8": out, "float": tiny_model("bert")}


@pytest.fixture(scope="module")
def models(places: dict[str, Path]) -> dict[str, Model]:
    return {name: bitwright.load(places[place], **options) for name, (place, options) in HOW.items()}


@pytest.fixture(params=HOW)
def model(models: dict[str, Model], request: pytest.FixtureRequest) -> Model:
    return models[request.param]


@pytest.fixture
def lent(places: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(places["int8"], tmp_path / "model"))


def test_a_pickle_is_small_and_loads_again_with_the_same_options(model: Model) -> None:
    pickled = pickle.dumps(model)
    assert len(pickled) < 1000
    again = pickle.loads(pickled)
    assert type(again) is type(model)
    assert (again.backend, again.path) == (model.backend, model.path)
    assert again.loaded_from.options == model.loaded_from.options  # type: ignore[attr-defined]
    np.testing.assert_array_equal(again.encode(TEXTS), model.encode(TEXTS))
    assert pickle.dumps(again) == pickled


def test_a_pickle_names_nothing_but_ours(model: Model) -> None:
    named: list[str] = []

    class Watching(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            named.append(f"{module}.{name}")
            return super().find_class(module, name)

    Watching(io.BytesIO(pickle.dumps(model))).load()
    assert named == ["bitwright.runtime.pickling.reopen"]


def test_copies_give_the_same_from_several_threads(model: Model) -> None:
    want, wrong = model.encode(TEXTS), []
    twins = [copy.copy(model), copy.deepcopy(model), model]

    def work(twin: Model) -> None:
        wrong.extend(twin for _ in range(10) if not np.array_equal(twin.encode(TEXTS), want))

    workers = [threading.Thread(target=work, args=(twin,)) for twin in twins * 2]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    assert len({id(twin) for twin in twins}) == 3
    assert all(pickle.dumps(twin) == pickle.dumps(model) for twin in twins)


def test_several_threads_load_at_once(places: dict[str, Path], models: dict[str, Model]) -> None:
    """How modules are made without values is a setting of the process."""
    register, want = nn.Module.register_parameter, models["generic"].encode(TEXTS)
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(partial(bitwright.load, compute="float32"), [places["int8"]] * 8))
    assert nn.Module.register_parameter is register
    assert all(np.array_equal(one.encode(TEXTS), want) for one in loaded)


def test_what_a_deep_copy_shares(models: dict[str, Model]) -> None:
    engine, generic = models["engine"], models["generic"]
    assert isinstance(engine, EngineModel)
    first = engine.generic
    twin = copy.deepcopy(engine)
    assert twin.executor is engine.executor
    assert twin.generic is not first
    assert copy.copy(engine).generic is first
    of, to = (dict(one.hf.named_buffers()) for one in (generic, copy.deepcopy(generic)))
    codes = [name for name in of if name.endswith(("query.weight", "word_embeddings.weight"))]
    assert codes
    assert all(to[name] is of[name] for name in codes)
    mine, theirs = generic.hf.embeddings.LayerNorm.weight, copy.deepcopy(generic).hf.embeddings.LayerNorm.weight
    assert mine.data_ptr() != theirs.data_ptr()


@pytest.mark.full
def test_other_processes(model: Model) -> None:
    want, spawn = model.encode(TEXTS), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as pool:
        np.testing.assert_array_equal(pool.submit(model.encode, TEXTS).result(), want)
    for backend in ("loky", "threading"):
        found = joblib.Parallel(n_jobs=2, backend=backend)(joblib.delayed(model.encode)(TEXTS) for _ in range(2))
        assert all(np.array_equal(one, want) for one in found)


def test_a_spawned_process(models: dict[str, Model]) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (found,) = pool.map(models["engine"].encode, [TEXTS])
    np.testing.assert_array_equal(found, models["engine"].encode(TEXTS))


def test_the_path_is_absolute(lent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = lent.parent / "link"
    link.symlink_to(lent)
    monkeypatch.chdir(lent.parent)
    for name in ("model", "./link"):
        monkeypatch.chdir(lent.parent)
        model = bitwright.load(name)
        monkeypatch.chdir("/")
        assert model.path == lent.parent / Path(name).name
        again = pickle.loads(pickle.dumps(model))
        np.testing.assert_array_equal(again.encode(TEXTS), model.encode(TEXTS))
        assert model.hf is not None  # what is loaded later
        assert model.tokenizer is not None


def rewritten(file: Path) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"changed": 1}))


def with_other_bytes(tensor: str, place: float) -> Callable[[Path], None]:
    """Changes two bytes at a place of a tensor, from 0 to 1, as if it had been trained on: size and header stay."""

    def change(path: Path) -> None:
        file = path / "model.safetensors"
        with file.open("r+b") as stream:
            entries, buffer = read_header(stream, file)
            (entry,) = (entry for name, entry in entries.items() if name.endswith(tensor))
            at = buffer + min(int(entry.begin + place * (entry.end - entry.begin)), entry.end - 2)
            stream.seek(at)
            old = stream.read(2)
            stream.seek(at)
            stream.write(bytes(byte ^ 1 for byte in old))

    return change


CHANGES: dict[str, Callable[[Path], Any]] = {
    "the record": lambda path: rewritten(path / RECORD_FILE),
    "no record": lambda path: (path / RECORD_FILE).unlink(),
    "the configuration": lambda path: rewritten(path / "config.json"),
    "the weights": lambda path: (path / "model.safetensors").write_bytes(b"other"),
    "the codes": with_other_bytes("layer.0.attention.self.query.weight", 0),
    "scales": with_other_bytes("layer.0.attention.self.query.weight_scale", 1),
    "a norm": with_other_bytes("layer.0.attention.output.LayerNorm.bias", 0.5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_model_in_its_place_is_refused(lent: Path, change: str) -> None:
    model = bitwright.load(lent)
    pickled = pickle.dumps(model)
    CHANGES[change](lent)
    with pytest.raises(ModelError, match=f"{lent}: the files are not those of the pickled model"):
        pickle.loads(pickled)
    with pytest.raises(ModelError, match=f"{lent}: the files have changed since the model was loaded; load it again"):
        pickle.dumps(model)


def test_a_file_of_another_format_is_looked_into(tmp_path: Path) -> None:
    """GGUF and .bin: at places of equal distance."""
    file, weights = tmp_path / "model.gguf", np.random.default_rng(0).bytes(1 << 20)
    found = set()
    for content in (weights, weights[::-1], bytes(1 << 20), b"", weights[:100]):
        file.write_bytes(content)
        found.add(pickling.digest_of(file))
    assert len(found) == 5
    file.write_bytes(weights)
    assert pickling.digest_of(file) in found


def test_what_does_not_change_the_model_may_change(lent: Path) -> None:
    pickled = pickle.dumps(bitwright.load(lent))
    (lent / "README.md").write_text("another card")
    os.utime(lent / RECORD_FILE, (0, 0))
    assert pickle.loads(pickled).encode(TEXTS).shape == (3, 32)


def test_a_model_that_is_gone_is_named(lent: Path) -> None:
    model = bitwright.load(lent)
    pickled = pickle.dumps(model)
    shutil.rmtree(lent)
    with pytest.raises(ModelError, match=f"{lent}: the pickled model was there"):
        pickle.loads(pickled)
    with pytest.raises(ModelError, match="have changed since the model was loaded"):
        pickle.dumps(model)


def test_models_in_memory_are_not_pickled(
    models: dict[str, Model], tiny_decoder: Callable[..., Path], places: dict[str, Path]
) -> None:
    found = models["float"]
    assert isinstance(found, GenericModel)
    name = next(name for name, _ in found.hf.named_parameters())
    changed = found.changed(Changes(changed={name: partial(found.hf.get_parameter, name)}))
    streamed = StreamedModel(open_lazily(tiny_decoder("llama"), runnable=False), 64)
    for model in (changed, streamed, float_model(load_model(places["float"])), models["engine"].generic):
        with pytest.raises(ModelError, match=r"does not come from load\(\)"):
            pickle.dumps(model)
    np.testing.assert_array_equal(copy.deepcopy(changed).encode(TEXTS), changed.encode(TEXTS))
    assert copy.deepcopy(streamed) is streamed


def test_the_name_of_the_record() -> None:
    assert pickling._RECORD_FILE == RECORD_FILE
