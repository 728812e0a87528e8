"""What a file names outside the model's directory is not opened: seen by Python's audit events, and by strace."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitwright.errors import ModelError
from bitwright.files.directory import ModelDirectory
from bitwright.files.followed import check_followed, paths_of_tokenizer

TinyModel = Callable[..., Path]

ROOT = Path(__file__).parents[2]

# Opens models, quantizes each without judging, and loads the result. Each argument is a list of models; where NOTED is
# set, the files that were opened for one list are noted beside it.
CHILD = """
import os, sys
opened, noted = set(), "NOTED" in os.environ
def note(event, args):
    if event in ("open", "os.listdir", "os.scandir", "os.open", "sqlite3.connect") or event.startswith("shutil."):
        paths = (a for a in args[:2] if isinstance(a, (str, bytes)) and a not in ("r", "rb"))
        opened.update(os.path.abspath(os.fsdecode(path)) for path in paths)
    if event.startswith(("socket.connect", "socket.getaddrinfo", "subprocess.", "os.system", "os.exec", "os.posix")):
        opened.add(event)
sys.addaudithook(note) if noted else None
import bitwright, bitwright.runtime.verify
from bitwright.errors import BitwrightError
from tests.forks import FORKING
bitwright.runtime.verify.subprocess = FORKING
for models in sys.argv[1:]:
    for model, out in (line.strip().split("\\t") for line in open(models)):
        try:
            bitwright.quantize(model, out=out, judged=False, samples=8, sensitivity=False)
            made = bitwright.load(out, threads=1)
            made.encode([[2, 5, 3]])
            made.hf, made.tokenizer
            print("result", model)
        except BitwrightError as error:
            print("refused", model, error)
    if noted:
        done = sorted(opened)
        open(models + ".opened", "w").write("\\n".join(done))
        opened.clear()
"""

# Where a stranger may put a path: file of the model -> what it says of a path P, a folder that leads there F.
PLACES: dict[str, tuple[str, Callable[[str, str], Any]]] = {
    "module": ("modules.json", lambda p, f: [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": f, "type": "sentence_transformers.models.Pooling"},
    ]),
    "module far away": ("modules.json", lambda p, f: [
        {"idx": 0, "name": "0", "path": f, "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]),
    "shard": ("model.safetensors.index.json", lambda p, f: {"weight_map": {"x": p}}),
    "vocab_file": ("tokenizer_config.json", lambda p, f: {"vocab_file": p, "merges_file": p, "spm_file": p}),
    "vocab_file of no class": ("tokenizer_config.json", lambda p, f: {
        "tokenizer_class": "PreTrainedTokenizerFast", "vocab_file": p, "tokenizer_file": p,
    }),
    "model file": ("tokenizer_config.json", lambda p, f: {
        "tokenizer_class": "TokenizersBackend", "vocab_file": f"{f}/canary.model",
    }),
    "tokenizer_file": ("tokenizer_config.json", lambda p, f: {"tokenizer_file": p, "added_tokens_file": p}),
    "other maps": ("tokenizer_config.json", lambda p, f: {"special_tokens_map_file": p, "chat_template_file": p}),
    "name": ("tokenizer_config.json", lambda p, f: {"name_or_path": f, "cache_dir": f, "subfolder": f}),
    "init_inputs": ("tokenizer_config.json", lambda p, f: {"init_inputs": [p, p]}),
    "vocab": ("tokenizer_config.json", lambda p, f: {"tokenizer_class": "BertTokenizer", "vocab": p, "merges": p}),
    "gguf": ("tokenizer_config.json", lambda p, f: {"gguf_file": p}),
    "versions": ("tokenizer_config.json", lambda p, f: {"fast_tokenizer_files": [f"{f}/tokenizer.4.0.json"]}),
    "template": ("tokenizer_config.json", lambda p, f: {"chat_template": "{% include '" + p + "' %}"}),
    "slow": ("tokenizer_config.json", lambda p, f: {"tokenizer_class": "T5Tokenizer", "vocab_file": p}),
    "byte level": ("tokenizer_config.json", lambda p, f: {"tokenizer_class": "GPT2Tokenizer", "vocab_file": p}),
    "fuguMT": ("tokenizer_config.json", lambda p, f: {"tokenizer_class": "MarianTokenizer", "source_spm": p}),
    "japanese": ("tokenizer_config.json", lambda p, f: {
        "tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab", "mecab_kwargs": {"mecab_dic": f},
    }),
    "special tokens": ("special_tokens_map.json", lambda p, f: {"vocab_file": p, "tokenizer_file": p}),
    "special tokens name": ("special_tokens_map.json", lambda p, f: {"name_or_path": f}),
    "config name": ("config.json", lambda p, f: {"_name_or_path": f, "name_or_path": f, "base_model_name_or_path": f}),
    "config versions": ("config.json", lambda p, f: {"configuration_files": ["config.4.0.0.json", p]}),
    "config code": ("config.json", lambda p, f: {"auto_map": {"AutoConfig": f"{f}--canary.Config"}}),
    "kernel": ("config.json", lambda p, f: {"attn_implementation": f, "_attn_implementation": f}),
    "tokenizer of the config": ("config.json", lambda p, f: {"tokenizer_class": p}),
    "sentence tokenizer": ("sentence_bert_config.json", lambda p, f: {"tokenizer_name_or_path": f}),
    "sentence arguments": ("sentence_bert_config.json", lambda p, f: {
        "model_args": {"cache_dir": f}, "tokenizer_args": {"vocab_file": p}, "config_args": {"subfolder": f},
    }),
    "adapter": ("adapter_config.json", lambda p, f: {"base_model_name_or_path": f, "peft_type": "LORA"}),
    "generation": ("generation_config.json", lambda p, f: {"_name_or_path": f, "cache_dir": f}),
}  # fmt: skip


def write_hostile(source: Path, folder: Path, file: str, says: Any) -> None:
    shutil.copytree(source, folder)
    place = folder / file
    before = json.loads(place.read_text()) if place.exists() else {}
    place.write_text(json.dumps(before | says if isinstance(before, dict) and isinstance(says, dict) else says))
    if file == "model.safetensors.index.json":
        (folder / "model.safetensors").unlink()


@pytest.fixture(scope="module")
def strangers(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a list of an innocent model and where its result belongs, a list of hostile ones)."""
    root = tmp_path_factory.mktemp("strangers")
    outside = root / "outside"
    shutil.copytree(tiny_model("bert"), outside)
    for name in ("canary", "canary.model", "tokenizer.4.0.json", "vocab.txt"):
        shutil.copy(outside / "tokenizer.json", outside / name)
    innocent = root / "innocent"
    shutil.copytree(tiny_model("bert"), innocent)
    (root / "innocent.txt").write_text(f"{innocent}\t{root / 'made' / 'innocent'}\n")
    lines = []
    for number, (file, says) in enumerate(PLACES.values()):
        for kind, path in (("absolute", str(outside)), ("relative", "../outside"))[number % 2 :: 2]:
            folder = root / f"{kind}-{number}"
            write_hostile(innocent, folder, file, says(f"{path}/canary", path))
            lines.append(f"{folder}\t{root / 'made' / folder.name}\n")
        if "token" in file:  # with nothing else to read
            folder = root / f"absolute-{number}-without"
            write_hostile(innocent, folder, file, says(f"{outside}/canary", str(outside)))
            (folder / "tokenizer.json").unlink()
            lines.append(f"{folder}\t{root / 'made' / folder.name}\n")
    (root / "hostile.txt").write_text("".join(lines))
    return root / "innocent.txt", root / "hostile.txt"


def run_child(before: list[str], *lists: Path, noted: bool) -> str:
    made = lists[0].parent / "made"
    made.mkdir(exist_ok=True)
    quiet = {
        "TMPDIR": str(made),
        "HF_HUB_OFFLINE": "",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [*before, sys.executable, "-c", CHILD, *map(str, lists)], capture_output=True, text=True,
        env=os.environ | quiet | ({"NOTED": "1"} if noted else {}), timeout=250, cwd=made.parent / "outside",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def beyond(control: set[str], found: set[str], root: Path) -> list[str]:
    """What was opened that the control run did not, and that lies neither in a model nor in a result."""
    mine = re.compile(rf"{re.escape(str(root))}(/(absolute|relative)-\S*|/made.*|/hostile\S*|/\.?\w*)?$")
    system = re.compile(
        r"/proc/|/sys/|/dev/|.*/site-packages/|.*/lib/python|.*\.so(\.|$)|/etc/(ld|nss|host|resolv|ssl/openssl)"
    )
    return sorted(path for path in found - control if not mine.match(path) and not system.match(path))


def test_nothing_outside_is_opened_by_python(strangers: tuple[Path, Path]) -> None:
    """One process opens the innocent model first: what is opened once in its life does not hide what is opened later,
    because each list has notes of its own."""
    innocent, hostile = strangers
    first, *others = run_child([], innocent, hostile, noted=True).splitlines()
    assert first.startswith("result")
    assert len(others) == len(hostile.read_text().splitlines())
    control, found = (set(Path(f"{models}.opened").read_text().splitlines()) for models in strangers)
    assert any("innocent" in path for path in control)
    assert beyond(control, found, innocent.parent) == []


@pytest.mark.full
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_nothing_outside_is_opened_by_anything(strangers: tuple[Path, Path], tmp_path: Path) -> None:
    seen = {}
    shutil.rmtree(strangers[0].parent / "made", ignore_errors=True)  # a finished result would be no control
    for models in strangers:
        trace = tmp_path / f"{models.stem}.trace"
        calls = "trace=openat,open,openat2,connect,execve"
        tracer = ["strace", "-f", "-qq", "-e", calls, "-e", "signal=none", "-o", str(trace)]
        run_child(tracer, models, noted=False)
        text = trace.read_text(errors="replace")
        paths = re.findall(r'open(?:at2?)?\((?:AT_FDCWD, )?"((?:[^"\\]|\\.)*)"', text)
        root = models.parent
        seen[models.stem] = {os.path.normpath(root / "outside" / path) for path in paths}
        seen[models.stem] |= {
            line.split(" ", 1)[1] for line in text.splitlines() if "connect(" in line and "AF_INET" in line
        }
    assert any("innocent" in path for path in seen["innocent"])
    assert beyond(seen["innocent"], seen["hostile"], strangers[0].parent) == []


@pytest.mark.parametrize(
    ("file", "says", "message"),
    [
        ("tokenizer_config.json", {"gguf_file": "x"}, "gguf_file is 'x', which transformers would open"),
        ("tokenizer_config.json", {"init_inputs": ["x"]}, "init_inputs is"),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["tokenizer.4.0.json"]}, "for other versions"),
        ("config.json", {"configuration_files": ["config.4.0.json"]}, "for other versions"),
        ("special_tokens_map.json", {"vocab_file": "x"}, "'vocab_file' is not a special token"),
        ("sentence_bert_config.json", {"tokenizer_name_or_path": "x"}, "'tokenizer_name_or_path' is 'x'"),
        ("sentence_roberta_config.json", {"model_args": {"a": {"cache_dir": "x"}}}, "'cache_dir' is 'x'"),
    ],
)
def test_keys_that_lead_to_other_files_are_refused(
    tmp_path: Path, file: str, says: dict[str, Any], message: str
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / file).write_text(json.dumps(says))
    with pytest.raises(ModelError, match=rf"{file}: .*{message}"):
        check_followed(ModelDirectory(tmp_path))


def test_what_transformers_does_not_follow_stays(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_name_or_path": "/home/me/model", "configuration_files": []}))
    settings = {"special_tokens_map_file": "/x", "tokenizer_file": "/x", "vocab_file": "/x", "init_inputs": []}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "x", "additional_special_tokens": []}))
    check_followed(ModelDirectory(tmp_path))
    assert paths_of_tokenizer(ModelDirectory(tmp_path)) == ("vocab_file",)
