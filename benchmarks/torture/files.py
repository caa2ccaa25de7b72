"""Trials with files: a disk that is full, values of params.yaml that nobody expects, and damage to what stages read."""

import importlib
import importlib.util
import random
from collections.abc import Iterator

import yaml

from benchmarks.torture.process import forked, limit_files, refuse_open
from benchmarks.torture.project import STAGES, copy, digest, remove
from benchmarks.torture.trial import FAIL, OK, REFUSED, Trial, World, again

SAYS = ("recommend", "explain", "sids")  # commands whose result is what they print
_texts: dict[str, str] = {}  # command -> what it prints in the undamaged project
# Files that stages read -> the commands that read them; a folder stands for each file in it.
READERS = {
    "data/interactions": (["embed"], ["quantize"], ["split"], ["train"], ["recommend", "--user", "u00001"]),
    "data/embeddings": (["quantize"], ["dense"]),
    "data/sids": (["train"], ["sids", "--item", "v00001"], ["track"]),
    "data/splits": (["count"], ["train"], ["dense"], ["evaluate"]),
    "models/counting": (["evaluate"],),
    "models/generator": (["evaluate"], ["recommend", "--user", "u00001"], ["explain", "--user", "u00001"]),
    "models/dense": (["evaluate"],),
    "reports": (["evaluate"], ["track"]),
}


def full_disks() -> Iterator[Trial]:
    """Give trials where the n-th file cannot be opened, or no file may grow beyond a size; the stage runs again."""
    limits = {f"open-{n}": n for n in range(1, 25)} | {f"size-{n}": n for n in range(16)}
    for stage in STAGES:
        for kind, number in limits.items():

            def run(
                world: World, rng: random.Random, stage: str = stage, kind: str = kind, number: int = number
            ) -> tuple[str, str]:
                folder = copy(world.reference, world.scratch / "disk")
                remove(folder, stage)
                size = int(10 ** rng.uniform(0, 6)) if number else 0
                before = refuse_open(number, folder) if kind.startswith("open") else limit_files(size)
                ended = forked([stage], folder, before=before)
                if fault := ended.fault():
                    return FAIL, fault
                if ended.code not in (0, 1):
                    return FAIL, f"exit code {ended.code}: {ended.text[-200:]}"
                partial = [path.name for path in folder.rglob("*.partial")]
                if partial:
                    return FAIL, f"left {partial[0]}"
                verdict, text = again(world, folder, stage, f"exit code {ended.code}")
                return (REFUSED if verdict == OK and ended.code else verdict), text

            yield Trial("disk full", f"disk-{stage}-{kind}", run)


def knobs(world: World) -> Iterator[Trial]:
    """Give a trial per key of params.yaml, which writes every odd value behind it and lets `check` read it."""
    if not importlib.util.find_spec("odd_values"):
        return
    params = yaml.safe_load((world.reference / "params.yaml").read_text())
    keys = [
        (section, key) for section, values in params.items() for key in (values if isinstance(values, dict) else [""])
    ]
    for section, key in keys:

        def run(world: World, rng: random.Random, section: str = section, key: str = key) -> tuple[str, str]:
            folder = copy(world.reference, world.scratch / "knob")
            text = (folder / "params.yaml").read_text()
            at = key_lines(text, section, key)
            refused = accepted = 0
            values = odd_values()
            rng.shuffle(values)
            for value in values[:60]:
                (folder / "params.yaml").write_text(replaced(text, at, value), errors="surrogatepass")
                ended = forked(["check"], folder)
                if fault := ended.fault():
                    return FAIL, f"{value[:60]}: {fault}"
                if ended.seconds > 5:
                    return FAIL, f"{value[:60]}: {ended.seconds:.1f} s"
                refused += ended.code != 0
                accepted += ended.code == 0
            return REFUSED, f"{refused} refused, {accepted} read"

        yield Trial("knobs x 60 values", f"knob-{section}-{key}", run)


def odd_values() -> list[str]:
    """Return the odd values that the tests of params.yaml use."""
    return list(importlib.import_module("odd_values").ODD_VALUES)


def key_lines(text: str, section: str, key: str) -> slice:
    """Return the lines of a key of params.yaml and of its value; an empty key: of the section itself."""
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(f"{section}:"))
    at = next(i for i in range(at + 1, len(lines)) if lines[i].startswith(f"  {key}:")) if key else at
    return slice(at, _end(lines, at))


def replaced(text: str, at: slice, value: str) -> str:
    """Return params.yaml with another value in these lines."""
    lines = text.splitlines()
    lines[at] = [lines[at.start].split(":")[0] + f": {value}"]
    return "\n".join(lines) + "\n"


def _end(text: list[str], at: int) -> int:
    """Return the line behind a value that may go on in deeper lines."""
    indent = len(text[at]) - len(text[at].lstrip())
    end = at + 1
    while end < len(text) and text[end].strip() and len(text[end]) - len(text[end].lstrip()) > indent:
        end += 1
    return end


def damages(world: World) -> Iterator[Trial]:
    """Give a trial per file, kind of damage and reader: 20 positions each."""
    for home, readers in READERS.items():
        path = world.reference / home
        files = [file for file in sorted(path.iterdir()) if file.is_file() and file.name not in ("index.html",)]
        for file in files:
            for command in readers:
                for kind in ("cut", "zeroed", "flipped"):
                    for position in range(20):
                        yield _damage(f"{home}/{file.name}", kind, position, command)


def _text_of(world: World, command: list[str]) -> str:
    """Return what a command prints in the undamaged project."""
    key = " ".join(command)
    if key not in _texts:
        _texts[key] = forked(command, copy(world.reference, world.scratch / "whole")).text
    return _texts[key]


def _damage(name: str, kind: str, position: int, command: list[str]) -> Trial:
    def run(world: World, rng: random.Random) -> tuple[str, str]:
        folder = copy(world.reference, world.scratch / "damage")
        content = bytearray((folder / name).read_bytes())
        at = min(int((position + rng.random()) / 20 * len(content)), len(content) - 1)
        if kind == "cut":
            del content[at:]
        elif kind == "zeroed":
            content[at : at + 64] = bytes(len(content[at : at + 64]))
        else:
            content[at] ^= 1 << rng.randrange(8)
        if bytes(content) == (folder / name).read_bytes():
            return OK, "nothing to damage there"
        whole = _text_of(world, command) if command[0] in SAYS else ""
        (folder / name).unlink()
        (folder / name).write_bytes(content)
        ended = forked(command, folder)
        if fault := ended.fault():
            return FAIL, fault
        if ended.code:
            return (REFUSED, ended.text.strip().splitlines()[0][:120]) if ended.code in (1, 2) else (FAIL, ended.text)
        outputs = digest(folder)
        wrong = [key for key in world.outputs if outputs.get(key) != world.outputs[key] and key != name]
        if wrong or (command[0] in SAYS and ended.text != whole):
            return FAIL, f"silent: other output ({', '.join(wrong[:3]) or 'text'})"
        return OK, "the same output"

    return Trial("data files cut, zeroed, flipped", f"{kind}-{name}-{position}-{command[0]}", run)
