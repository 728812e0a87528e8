"""A fleet: what is done, what is left alone, and who suffers when one model fails."""

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bitwright.drift.reference import read_reference
from bitwright.drift.requests import file_request
from bitwright.errors import ExitCode, InputError
from bitwright.fleet import digests, work
from bitwright.fleet.adding import add_result
from bitwright.fleet.receipts import FOLDER, Outcome, read_receipt, write_receipt
from bitwright.fleet.rows import Row, alone, exit_code, status_rows
from bitwright.fleet.run import STALE_REQUEST, FleetRun
from bitwright.pipeline.workspace import work_path
from bitwright.record import read_record
from bitwright.registry.store import open_registry, read_models
from tests.conftest import Run
from tests.fleet.conftest import MakeFleet, go


@pytest.fixture(autouse=True)
def old_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file counts as old at once, so that its digest is kept."""
    monkeypatch.setattr(digests, "_RACY_S", 0.0)


def test_what_did_not_change_is_left_alone(make_fleet: MakeFleet, here: list[str], tmp_path: Path) -> None:
    fleet = make_fleet(["bert", "distilbert"])
    first = go(fleet)
    assert here == ["bert", "distilbert"]
    assert {row.state for row in first.values()} == {"not judged"}
    assert [first["bert"].why, first["bert"].before] == [("new",), None]
    assert exit_code(list(first.values())) == ExitCode.DONE
    written = {name: (row.out / "model.safetensors").stat().st_mtime_ns for name, row in first.items()}

    here.clear()
    second = go(fleet)
    assert here == []
    assert {row.state for row in second.values()} == {"unchanged"}
    assert second["bert"].outcome == first["bert"].outcome
    assert written == {name: (row.out / "model.safetensors").stat().st_mtime_ns for name, row in first.items()}


def test_only_what_changed_is_done_again(make_fleet: MakeFleet, here: list[str], tmp_path: Path) -> None:
    go(make_fleet(["bert", "distilbert"]))
    here.clear()
    recipe = {"scheme": "w8a16", "targets": ["bitwright"]}
    models = [make_fleet(["bert"]).entries[0], make_fleet(["distilbert"]).entries[0]]
    rows: list[Any] = [{"name": one.name, "model": one.model} for one in models]
    changed = go(make_fleet([rows[0] | {"recipe": recipe}, rows[1]]))
    assert here == ["bert"]
    assert (changed["bert"].why, changed["distilbert"].state) == (("recipe",), "unchanged")
    assert changed["bert"].before is not None

    here.clear()
    with (tmp_path / "mine.txt").open("a") as file:
        file.write("\nOne more text that was not there before.")
    assert {row.why for row in go(make_fleet([rows[0] | {"recipe": recipe}, rows[1]])).values()} == {("texts",)}


def test_a_result_that_was_touched_is_made_again(make_fleet: MakeFleet, here: list[str]) -> None:
    fleet = make_fleet(["bert"])
    out = go(fleet)["bert"].out
    (out / "report.html").write_text("written again")  # that is nobody's loss
    assert go(fleet)["bert"].state == "unchanged"
    with (out / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    row = go(fleet)["bert"]
    assert (row.why, here) == (("result",), ["bert", "bert"])
    assert go(fleet)["bert"].state == "unchanged"


def test_one_bad_model_fails_alone(make_fleet: MakeFleet, here: list[str], tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    bert = {"name": "good", "model": make_fleet(["bert"]).entries[0].model}
    models = [
        {"name": "broken", "model": "broken"},
        {"name": "absent", "model": "./nowhere"},
        bert | {"name": "nolabels", "eval": "nothing.csv", "judge": True},
        bert,
        bert | {"name": "behind", "after": ["good", "broken"]},
    ]
    fleet = make_fleet(models)
    rows = go(fleet)
    assert {name: row.state for name, row in rows.items()} == {
        "broken": "failed", "absent": "failed", "nolabels": "failed", "good": "not judged", "behind": "skipped",
    }  # fmt: skip
    errors = {name: row.outcome.error for name, row in rows.items() if row.outcome}
    assert "config.json: cannot be read as JSON" in errors["broken"]
    assert "neither a directory here nor a hub name" in errors["absent"]
    assert "nothing.csv" in errors["nolabels"]
    assert errors["behind"] == "it comes after broken, which has no result"
    assert exit_code(list(rows.values())) == ExitCode.FAILED
    here.clear()
    again = go(fleet)  # what failed is tried again, what was done is not
    assert "good" not in here
    assert again["good"].state == "unchanged"
    assert again["broken"].why == ("failed",)


def test_an_error_that_nobody_foresaw_fails_alone(
    make_fleet: MakeFleet, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize = work._quantize

    def faulty(order: work.Order) -> None:
        if order.entry.name == "bert":
            raise ZeroDivisionError("x")
        quantize(order)

    monkeypatch.setattr(work, "_quantize", faulty)
    fleet = make_fleet(["bert", "distilbert"])
    rows = go(fleet)
    assert rows["distilbert"].state == "not judged"
    assert rows["bert"].outcome == Outcome("failed", 1, "ZeroDivisionError: x")
    assert "faulty" in (fleet.out / FOLDER / "bert.log").read_text()


def test_what_others_wrote_is_not_replaced(make_fleet: MakeFleet, here: list[str]) -> None:
    fleet = make_fleet(["bert"])
    (fleet.out / "bert").mkdir(parents=True)
    for _ in range(2):  # nor does a receipt of the failure make it ours
        row = go(fleet)["bert"]
        assert here == []
        assert row.outcome
        assert "this fleet did not write it" in row.outcome.error


def test_a_run_that_was_killed_before_it_could_say_so(make_fleet: MakeFleet, here: list[str]) -> None:
    fleet = make_fleet(["bert"])
    done = go(fleet)["bert"]
    folder = fleet.out / FOLDER
    receipt = read_receipt(folder, "bert")
    assert receipt is not None
    write_receipt(folder, replace(receipt, state="begun", outcome=None, result=""))
    row = go(fleet)["bert"]
    assert here == ["bert"]  # only the first time
    assert (row.state, row.outcome) == ("not judged", done.outcome)
    assert go(fleet)["bert"].state == "unchanged"


def test_the_rest_of_a_run_for_other_content_makes_room(make_fleet: MakeFleet, here: list[str], tmp_path: Path) -> None:
    fleet = make_fleet(["bert"])
    go(fleet)
    folder, out = fleet.out / FOLDER, fleet.out / "bert"
    receipt = read_receipt(folder, "bert")
    assert receipt is not None
    shutil.rmtree(out)
    work_path(out).mkdir()
    (work_path(out) / "context.json").write_text(json.dumps({"model": "another"}))
    (work_path(out) / "journal.jsonl").write_text("{}\n")
    write_receipt(folder, replace(receipt, state="begun", parts={**receipt.parts, "model": "another"}))
    assert go(fleet)["bert"].state == "not judged"
    assert not work_path(out).exists()


def test_models_wait_for_memory_and_for_others(make_fleet: MakeFleet, here: list[str], tmp_path: Path) -> None:
    model = make_fleet(["bert"]).entries[0].model
    rows = [{"name": f"m{i}", "model": model} for i in range(3)]
    fleet = make_fleet([*rows, {"name": "last", "model": model, "after": ["m0"]}])
    run = FleetRun(replace(fleet, memory=1))
    with alone(fleet.out / FOLDER):
        pass
    run._digests, run._limit = digests.Digests(tmp_path / "memo"), 1
    (fleet.out / FOLDER).mkdir(exist_ok=True)
    waiting = run._tasks()
    name, _ = next(waiting) or ("", None)
    assert name == "m0"  # alone, however large
    assert [next(waiting), next(waiting)] == [None, None]
    run._settle("m0", work.Failure("no", 1))
    assert (next(waiting) or ("", None))[0] == "m1"
    run._limit = 10**12
    assert (next(waiting) or ("", None))[0] == "m2"
    run._settle("m1", work.Failure("no", 1))
    run._settle("m2", work.Failure("no", 1))
    assert list(waiting) == []
    assert {row.name: row.state for row in run.rows()} == dict.fromkeys(("m0", "m1", "m2"), "failed") | {
        "last": "skipped"
    }


def test_a_full_disk_keeps_no_receipt_back_for_ever(
    make_fleet: MakeFleet, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitwright.fleet import run as module

    full = [True]

    def write(folder: Path, receipt: Any) -> None:
        if full[0] and receipt.name == "bert":
            raise OSError(28, "No space left on device", str(folder))
        write_receipt(folder, receipt)

    monkeypatch.setattr(module, "write_receipt", write)
    fleet = make_fleet(["bert", "distilbert"])
    monkeypatch.setattr(FleetRun, "_settle", freed(FleetRun._settle, full))
    rows = go(fleet)
    assert {row.state for row in rows.values()} == {"not judged"}
    assert {row.state for row in go(fleet).values()} == {"unchanged"}


def freed(settle: Any, full: list[bool]) -> Any:
    """`_settle`, and the disk has room again after the second model."""

    def call(self: Any, name: str, result: object) -> None:
        full[0] = full[0] and name != "distilbert"
        settle(self, name, result)

    return call


def test_two_runs_do_not_share_a_folder(make_fleet: MakeFleet, here: list[str]) -> None:
    fleet = make_fleet(["bert"])
    with alone(fleet.out / FOLDER), pytest.raises(InputError, match="another run of this fleet is at work"):
        go(fleet)
    assert here == []


def test_only_some(make_fleet: MakeFleet, here: list[str]) -> None:
    fleet = make_fleet(["bert", "distilbert"])
    assert list(go(fleet, only=["distilbert"])) == here == ["distilbert"]
    with pytest.raises(InputError, match=r"no model 'brt' \(did you mean 'bert'\?\)"):
        FleetRun(fleet, only=["brt"])
    assert {row.name: row.state for row in status_rows(fleet)} == {"bert": "waiting", "distilbert": "not judged"}


def test_exit_codes() -> None:
    def row(verdict: str, code: int) -> Row:
        return Row("m", verdict, Path("m"), outcome=Outcome(verdict, code))

    assert exit_code([row("met", 0)]) == 0
    assert exit_code([row("met", 0), row("undecided", 3)]) == 3
    assert exit_code([row("not met", 3), row("not usable", 1)]) == 1
    assert exit_code([row("skipped", 1), row("not met", 3)]) == 1
    assert exit_code([row("failed", 2), row("met", 0)]) == 1


def test_a_digest_is_kept_only_while_the_file_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, memo = tmp_path / "f", tmp_path / "memo"
    file.write_text("one")
    known = digests.Digests(memo)
    first = known.of_file(file)
    known.save()
    again = digests.Digests(memo)
    monkeypatch.setattr(digests.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert again.of_file(file) == first
    monkeypatch.undo()
    time.sleep(0.01)
    file.write_text("two")
    os.utime(file, ns=(0, 0))  # a tool that sets the time back
    assert again.of_file(file) != first
    memo.write_text("[[")
    assert digests.Digests(memo).of_file(file) == again.of_file(file)


def test_a_request_for_a_new_calibration_is_followed(make_fleet: MakeFleet, here: list[str], tmp_path: Path) -> None:
    queue = tmp_path / "queue"
    bert = {"name": "bert", "model": make_fleet(["bert"]).entries[0].model, "fresh_data": ["today.txt"]}
    (tmp_path / "today.txt").write_text("\n".join(f"A text of today, number {i}, is here." for i in range(300)))
    fleet = make_fleet([bert])
    go(fleet)
    assert file_request(queue, "bert", "drifted", {}, {}) is not None
    assert file_request(queue, "bert", "drifted more", {}, {}) is None  # one is open
    here.clear()
    row = go(fleet, queue=queue)["bert"]
    assert (here, row.why) == (["bert"], ("request",))
    assert [file.parent.name for file in queue.rglob("*.json")] == ["done"]
    record = read_record(fleet.out / "bert")
    assert record.exit_code == 0

    here.clear()
    assert go(fleet, queue=queue)["bert"].state == "unchanged"  # nor is it undone by an ordinary run
    file_request(queue, "bert", "drifted", {}, {})
    row = go(fleet, queue=queue)["bert"]
    assert (here, row.state, row.why) == ([], "unchanged", (STALE_REQUEST,))
    assert [file.name for file in queue.glob("*.json")] == ["bert.json"]  # it stays until there are other texts


def test_a_request_for_a_model_of_another_fleet_is_told(
    make_fleet: MakeFleet, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fleet = make_fleet(["bert"])
    file_request(tmp_path / "queue", "brett", "drifted", {}, {})
    monkeypatch.setattr(FleetRun, "go", FleetRun.rows)
    told = run("fleet", "run", fleet.file, "--queue", tmp_path / "queue").err
    assert "has no model 'brett', so this request stays where it is" in " ".join(told.split())
    assert (tmp_path / "queue" / "brett.json").exists()


def test_a_request_that_is_none(make_fleet: MakeFleet, tmp_path: Path) -> None:
    fleet = make_fleet(["bert"])
    with pytest.raises(InputError, match="no such folder of requests"):
        FleetRun(fleet, queue=tmp_path / "none")
    (tmp_path / "queue").mkdir()
    (tmp_path / "queue" / "bert.json").write_text(
        '{"request_version": 9, "model": "bert", "reason": "", "created": ""}'
    )
    with pytest.raises(InputError, match=r"bert\.json: this is no request"):
        FleetRun(fleet, queue=tmp_path / "queue")


def test_a_reference_for_drift_is_made_beside_a_result(
    make_fleet: MakeFleet, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitwright.drift.reference._LEAST_TEXTS", 100)
    model = make_fleet(["bert"]).entries[0].model
    fleet = make_fleet([{"name": "a", "model": model, "drift": True}])
    assert go(fleet)["a"].state == "not judged"
    reference = read_reference(fleet.out / "a")
    assert (reference.n, reference.width) == (240, 32)
    assert go(fleet)["a"].state == "unchanged"
    monkeypatch.setattr("bitwright.drift.reference._LEAST_TEXTS", 300)
    row = go(make_fleet([{"name": "b", "model": model, "drift": True}]))["b"]
    assert row.outcome
    assert "240 texts are too few for a reference of drift" in row.outcome.error
    assert not row.out.exists()  # it was told before the work


def test_results_are_added_to_a_registry(
    make_fleet: MakeFleet, here: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = make_fleet(["bert"], registry="models")
    busy = pytest.MonkeyPatch()
    busy.setattr("bitwright.fleet.run.add_result", lambda *_: (_ for _ in ()).throw(InputError("it is locked")))
    row = go(fleet)["bert"]
    assert row.outcome == Outcome("failed", 1, "the result is there, but was not added to the registry: it is locked")
    busy.undo()
    for _ in range(2):  # the result is taken as it is, and added once
        assert go(fleet)["bert"].outcome
        assert here == ["bert"]
        (version,) = read_models(open_registry(tmp_path / "models"), "bert")["bert"].versions
        assert version == 1
    assert add_result(tmp_path / "models", "bert", fleet.out / "bert") == 1
