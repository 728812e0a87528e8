"""A watch: it counts windows, alarms when texts change, files a request, and never disturbs serving."""

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitwright
from bitwright.drift.reference import Reference, read_reference, reference_from, write_reference
from bitwright.drift.requests import close_request, file_request, read_requests
from bitwright.drift.watch import Alarm, Watch
from bitwright.errors import CheckpointError, DataError, InputError
from tests.drift.test_sketch import texts_like

WINDOW = 100


@pytest.fixture(scope="module")
def reference() -> Reference:
    return reference_from(*texts_like(np.random.default_rng(0), 600), 3, window=WINDOW)


@pytest.fixture
def watch(reference: Reference, tmp_path: Path) -> Watch:
    return Watch(tmp_path / "model", reference=reference, queue=tmp_path / "queue")


def see(watch: Watch, n: int, *, shift: float = 0.0, seed: int = 1) -> None:
    ids, vectors = texts_like(np.random.default_rng(seed), n, shift=shift)
    for begin in range(0, n, 7):
        watch.see(ids=ids[begin : begin + 7], embeddings=vectors[begin : begin + 7])


def test_unchanged_texts_raise_no_alarm(watch: Watch) -> None:
    see(watch, 40 * WINDOW)
    watch.flush()
    assert (watch.windows, watch.seen, watch.alarms, watch.drifted) == (40, 40 * WINDOW, [], False)
    assert set(watch.statistics) == {"length", "unknown", "tokens", "embeddings"}
    assert watch.seconds > 0
    assert not (watch.reference.window * 40) % watch.seen


def test_changed_texts_raise_one_alarm_and_one_request(watch: Watch, tmp_path: Path) -> None:
    told: list[Alarm] = []
    watch._on_alarm = told.append
    see(watch, WINDOW, shift=1.0)
    watch.flush()
    assert watch.in_excess == ("embeddings",)
    assert watch.alarms == []  # one window may be chance
    see(watch, 4 * WINDOW, shift=1.0, seed=2)
    watch.flush()
    assert [alarm.window for alarm in watch.alarms] == [2]
    assert told == watch.alarms
    assert watch.drifted
    (request,) = read_requests(tmp_path / "queue")
    assert (request.model, request.reason) == ("model", str(watch.alarms[0]))
    assert "embeddings" in request.reason
    see(watch, 3 * WINDOW, seed=3)
    watch.flush()
    assert not watch.drifted
    see(watch, 3 * WINDOW, shift=1.0, seed=4)
    watch.flush()
    assert len(watch.alarms) == 2


def test_windows_do_not_depend_on_batches(reference: Reference, tmp_path: Path) -> None:
    ids, vectors = texts_like(np.random.default_rng(5), 3 * WINDOW + 20)
    found = []
    for size in (1, 64, 1000):
        watch = Watch(tmp_path, reference=reference)
        for begin in range(0, len(ids), size):
            watch.see(ids=ids[begin : begin + size], embeddings=vectors[begin : begin + size])
        watch.flush()
        found.append((watch.windows, watch.statistics))
    assert found[0][0] == 3
    for windows, statistics in found[1:]:
        assert windows == 3
        assert statistics == pytest.approx(found[0][1])


def test_several_threads(watch: Watch) -> None:
    threads = [threading.Thread(target=see, args=(watch, 5 * WINDOW), kwargs={"seed": i}) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    watch.flush()
    assert (watch.seen, watch.windows) == (20 * WINDOW, 20)


def test_without_embeddings_the_rest_is_watched(watch: Watch) -> None:
    ids, vectors = texts_like(np.random.default_rng(6), 2 * WINDOW)
    watch.see(ids=ids[:WINDOW])
    watch.see(ids=ids[WINDOW:], embeddings=vectors[WINDOW:])
    watch.flush()
    assert set(watch.statistics) == {"length", "unknown", "tokens", "embeddings"}
    watch.see(ids=ids[:60])
    watch.see(ids=ids[60:WINDOW], embeddings=vectors[60:WINDOW])
    watch.flush()
    assert set(watch.statistics) == {"length", "unknown", "tokens"}


def test_what_cannot_be_seen(watch: Watch) -> None:
    with pytest.raises(InputError, match="give the ids of the tokens"):
        watch.see(["a text"])
    with pytest.raises(InputError, match=r"the shape \(1, 3\), but 1 texts of this model have \(1, 16\)"):
        watch.see(ids=[[1]], embeddings=np.zeros((1, 3), np.float32))
    with pytest.raises(InputError, match="give it a loaded model"):
        watch.encode(["a text"])
    assert watch.seen == 0


@pytest.mark.filterwarnings("default")
def test_a_request_that_cannot_be_filed_stops_nothing(reference: Reference, tmp_path: Path) -> None:
    (tmp_path / "queue").write_text("a file is in the way")
    watch = Watch(tmp_path, name="m", reference=reference, queue=tmp_path / "queue")
    with pytest.warns(UserWarning, match="no request could be filed"):
        see(watch, 3 * WINDOW, shift=1.0)
    assert len(watch.alarms) == 1


def test_a_reference_is_written_and_read(reference: Reference, tmp_path: Path) -> None:
    file = write_reference(reference, tmp_path)
    assert file.stat().st_size < 1 << 20
    again = read_reference(tmp_path)
    assert (again.n, again.window, again.width, again.thresholds) == (600, WINDOW, 16, reference.thresholds)
    np.testing.assert_allclose(again.sketch.along_P, reference.sketch.along_P, rtol=1e-5)


@pytest.mark.parametrize(
    "change", [{"drift_version": 2}, {"along": [1.0]}, {"counts": [1.0]}, {"window": 0}, {"n": None}]
)
def test_a_damaged_reference(reference: Reference, tmp_path: Path, change: dict[str, Any]) -> None:
    file = write_reference(reference, tmp_path)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=r"drift\.json"):
        read_reference(tmp_path)
    file.unlink()
    with pytest.raises(CheckpointError, match="there is no reference here; make one with"):
        Watch(tmp_path)


def test_requests(tmp_path: Path) -> None:
    assert file_request(tmp_path / "q", "m", "why", {"length": 1.0}, {"length": 0.5}) == tmp_path / "q" / "m.json"
    (request,) = read_requests(tmp_path / "q")
    close_request(request)
    assert read_requests(tmp_path / "q") == []
    with pytest.raises(InputError, match="give the name that the model has"):
        file_request(tmp_path / "q", "../m", "why", {}, {})


def test_metrics(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    client = pytest.importorskip("prometheus_client")
    registry = client.CollectorRegistry()
    watch.metrics(registry)
    see(watch, 3 * WINDOW, shift=1.0)
    watch.flush()
    page = client.generate_latest(registry).decode()
    assert f'bitwright_drift_texts_total{{model="model"}} {3 * WINDOW}.0' in page
    assert 'bitwright_drift_drifted{model="model"} 1.0' in page
    assert 'bitwright_drift_alarms_total{model="model"} 1.0' in page
    assert 'bitwright_drift_threshold{model="model",statistic="embeddings"}' in page
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(InputError, match=r"pip install 'bitwright\[platform\]'"):
        watch.metrics()


def test_a_watch_encodes_as_the_model_does(
    tiny_model: Callable[..., Path], texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitwright.drift.reference import make_reference

    monkeypatch.setattr("bitwright.drift.reference._LEAST_TEXTS", 200)
    model = bitwright.load(tiny_model("bert"))
    made = make_reference(model, texts, window=50)
    watch = bitwright.Watch(model, reference=made)
    np.testing.assert_array_equal(watch.encode(texts[:70]), model.encode(texts[:70]))
    np.testing.assert_array_equal(watch.encode(texts[0]), model.encode(texts[0]))
    watch.see(texts[:29])
    watch.flush()
    assert (watch.seen, watch.windows) == (100, 2)
    for _ in range(2):
        watch.encode(["0 1 2 3 4 5 6 7 8 9 ( ) . , " + text[:5] for text in texts[:50]])
    watch.flush()
    assert watch.drifted
    with pytest.raises(DataError, match="199 texts are too few for a reference of drift"):
        make_reference(model, texts[:199])
