"""One of a model's files becomes another: on the level of what it says, and only now and then on that of its bytes."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import yaml

from bitwright.files.safetensors import DTYPE_BITS
from tests.fuzz import gguf
from tests.fuzz.values import (
    KEYS,
    WORDS,
    dumped,
    join_safetensors,
    near,
    nested,
    odd,
    odd_leaf,
    other_values,
    places,
    split_safetensors,
)

# How often a kind of file is chosen: what decides most is read by most.
_WEIGHTS = {
    "config.json": 8, "model.safetensors": 5, "tokenizer.json": 5, "tokenizer_config.json": 4, "modules.json": 3,
    "sentence_bert_config.json": 2, "recipe.yaml": 4, "README.md": 1, "record.json": 2,
}  # fmt: skip
_SHARE_OF_BYTES = 0.07


def mutate(directory: Path, seeds: list[Path], rng: Random) -> list[tuple[str, bool]]:
    """Change some files of a directory, whose files are links that are broken first.

    seeds: other good directories, from which parts are taken.

    Returns:
        Of each file that was changed its name, and whether it still parses as what it is.
    """
    changed: dict[str, bool] = {}
    for _ in range(rng.choice((1, 1, 1, 1, 2, 2, 3, 5))):
        files = sorted(file for file in directory.rglob("*") if file.is_file() and file.suffix != ".html")
        if not files:
            break
        file = rng.choices(files, [_WEIGHTS.get(file.name, 1) for file in files])[0]
        name = str(file.relative_to(directory))
        content = _mutated(file, [seed / name for seed in seeds if (seed / name).is_file()], rng)
        file.unlink()
        if content is not None:
            file.write_bytes(content)
            changed[name] = parses(file, content)
    return list(changed.items())


def parses(file: Path, content: bytes) -> bool:
    """Whether a file is still what its name says, to the reader of the format itself."""
    try:
        if file.suffix == ".json":
            json.loads(content.decode("utf-8"))
        elif file.suffix == ".safetensors":
            from safetensors import deserialize

            deserialize(content)
        elif file.suffix in (".yaml", ".yml"):
            yaml.safe_load(content)
        elif file.suffix == ".gguf":
            gguf.split_gguf(content)
        else:
            content.decode("utf-8")
    except Exception:
        return False
    return True


def _mutated(file: Path, others: list[Path], rng: Random) -> bytes | None:
    content = file.read_bytes()
    if rng.random() < 0.02:
        return None
    if rng.random() < _SHARE_OF_BYTES or not content:
        return _bytes(content, rng)
    kind: Callable[[bytes, list[Path], Random], bytes] = {
        ".json": _json, ".safetensors": _safetensors, ".yaml": _yaml, ".gguf": _gguf
    }.get(file.suffix, _lines)  # fmt: skip
    try:
        return kind(content, others, rng)
    except Exception:  # it was broken by an earlier mutation
        return _bytes(content, rng)


def _bytes(content: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return rng.choice((
        lambda: content[:at],
        lambda: content[:at] + os.fsencode(rng.choice(WORDS)) + content[at:],
        lambda: content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :],
        lambda: content[:at] + content[at + rng.randrange(1, 64) :],
        lambda: content + rng.randbytes(16),
        lambda: rng.randbytes(64),
        lambda: b"",
        lambda: b"[" * 100_000,
    ))()  # fmt: skip


def _value(content: Any, other: Any, rng: Random) -> Any:
    """A structure with one thing changed."""
    found = places(content)
    if not found or rng.random() < 0.02:
        return odd(rng)
    shallow = [place for place in found if place[2] < 2]
    container, key, _ = rng.choice(shallow if rng.random() < 0.5 else found)
    how = rng.randrange(12)
    if how < 3:
        container[key] = odd(rng)
    elif how < 5:
        container[key] = near(container[key], rng)
    elif how == 5:
        del container[key]
    elif how == 6 and isinstance(container, dict):
        container[rng.choice(KEYS)] = container.pop(key)
    elif how == 7 and isinstance(container, dict):
        container[rng.choice(KEYS)] = odd(rng)
    elif how == 8:
        container[key] = rng.choice(found)[0]
        container[key] = json.loads(json.dumps(None if container[key] is container else container[key], default=str))
    elif how == 9 and (theirs := places(other)):
        there, name, _ = rng.choice(theirs)
        container[key if isinstance(container, list) else name] = there[name]
    elif how == 10 and isinstance(container, list):
        container[key:key] = [container[key]] * rng.choice((1, 2, 500))
    elif how == 10:
        container[rng.choice(("\x1b[31m", "a" * 5000, "", "../x", "0", "\ud800"))] = container[key]
    else:
        container[key] = nested(rng.choice((1, 2, 100, 2000)), container[key], rng)
    return content


def _json(content: bytes, others: list[Path], rng: Random) -> bytes:
    other = json.loads(rng.choice(others).read_bytes()) if others else {}
    if rng.random() < 0.03:
        return dumped(other, rng, False)
    return dumped(_value(json.loads(content), other, rng), rng, rng.random() < 0.06)


def _yaml(content: bytes, others: list[Path], rng: Random) -> bytes:
    if rng.random() < 0.2:
        text = rng.choice((
            "a: &a [x, x, x]\nb: &b [*a, *a, *a, *a]\nc: &c [*b, *b, *b, *b]\nrules: [*c, *c, *c, *c]\n",
            "scheme: !!python/object/apply:os.system ['true']\n", "&a [*a]\n", "? [a, b]\n: c\n", "scheme: w8a8\n---\n",
            "scheme: !!binary '/w=='\n", "scheme: 2026-99-99\n", "scheme: 0o9\nseed: 1_0\n", "<<: [a]\nscheme: w8a8\n",
            "scheme: \"\\x1b[31m\"\n", "seed: .inf\n", "seed: 190:20:30.15\n", "!!set {a, b}\n", "!!omap [a: 1]\n",
            "rules:\n- {match: \"" + "*a" * rng.choice((5, 30, 3000)) + "\", scheme: 16bit}\n",
            "rules:\n- {match: '[!-[a-z]*[]]', scheme: 16bit}\n", "%YAML 9.9\n---\nscheme: w8a8\n",
            "\ufeffscheme: w8a8\n",
        ))  # fmt: skip
        return text.encode("utf-8", "surrogatepass") + (content if rng.random() < 0.3 else b"")
    data = _value(yaml.safe_load(content), {}, rng)
    return yaml.safe_dump(data, allow_unicode=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def _gguf(content: bytes, others: list[Path], rng: Random) -> bytes:
    return gguf.changed(content, rng)


def _lines(content: bytes, others: list[Path], rng: Random) -> bytes:
    """Of a vocabulary, merges, a card: lines are lost, doubled, moved, replaced."""
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    how = rng.randrange(5)
    if how == 0:
        del lines[at]
    elif how == 1:
        lines.insert(at, lines[rng.randrange(len(lines))])
    elif how == 2:
        lines[at] = str(odd_leaf(rng)).encode("utf-8", "surrogatepass")
    elif how == 3:
        lines[at:at] = [b"---", b"license: \x1b[31m" + b"a" * rng.choice((1, 10_000)), b"---"]
    else:
        lines = lines[:at]
    return b"\n".join(lines)


def _safetensors(content: bytes, others: list[Path], rng: Random) -> bytes:
    header, held = split_safetensors(content)
    name = rng.choice(list(header))
    entry, how = header[name], rng.randrange(13)
    if how < 3:
        held[name] = _with_other_values(entry["dtype"], held[name], rng)
    elif how == 3:
        del header[name]
    elif how == 4:
        new = rng.choice((name + "_scale", name.upper(), "x." + name, name.partition(".")[2], "\x1b[31m", "a" * 5000))
        header = {(new if key == name else key): value for key, value in header.items()}
        held[new] = held[name]
    elif how == 5:
        bits = DTYPE_BITS[entry["dtype"]]
        entry["dtype"] = rng.choice([dtype for dtype, other in DTYPE_BITS.items() if other == bits])
    elif how == 6:
        entry["dtype"] = rng.choice(list(DTYPE_BITS))
        entry["shape"] = [len(held[name]) * 8 // DTYPE_BITS[entry["dtype"]]]
    elif how == 7:
        size = len(held[name]) * 8 // DTYPE_BITS[entry["dtype"]]
        entry["shape"] = rng.choice(
            ([size], [1, size], [size, 1], [1] * 70 + [size], entry["shape"][::-1], [1, 1, size])
        )
    elif how == 8:
        entry["shape"], held[name] = rng.choice(([0], [0, 7], [3, 0], [0, 1 << 62])), b""
    elif how == 9:
        rows = max(entry["shape"][0] if entry["shape"] else 1, 1)
        kept = rng.choice((rows - 1, rows // 2, 1))
        entry["shape"] = [kept, *entry["shape"][1:]]
        held[name] = held[name][: len(held[name]) // rows * kept]
    elif how == 10:
        held["extra"] = held[name]
        new = rng.choice((f"{name}.weight_scale", "extra.weight", f"{name.rpartition('.')[0]}.weight_g_idx", "bias"))
        header[new], held[new] = dict(entry), held[name]
    elif how == 11 and others:
        their_header, theirs = split_safetensors(rng.choice(others).read_bytes())
        other = rng.choice(list(their_header))
        header[other], held[other] = their_header[other], theirs[other]
    else:  # it lies
        full = join_safetensors(header, held)
        length = int.from_bytes(full[:8], "little")
        said = _value(json.loads(full[8 : 8 + length]), {}, rng)
        text = json.dumps(said).encode("utf-8", "surrogatepass")
        return len(text).to_bytes(8, "little") + text + full[8 + length :]
    return join_safetensors(header, held)


def _with_other_values(dtype: str, values: bytes, rng: Random) -> bytes:
    """All of them, one of them, or some."""
    width = max(DTYPE_BITS[dtype] // 8, 1)
    if rng.random() < 0.4 or len(values) <= width:
        return other_values(dtype, len(values), rng)
    at = rng.randrange(len(values) // width) * width
    count = min(width * rng.choice((1, 1, 7, 100)), len(values) - at)
    return values[:at] + other_values(dtype, count, rng) + values[at + count :]
