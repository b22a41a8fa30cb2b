"""A case of bad input: what is spoiled, what reads it, and what must come of it."""

import contextlib
import hashlib
import re
import resource
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import UserError

SECONDS = 20
"""Reading may take so long; a bomb takes longer."""
GIBIBYTES = 3
"""Address space that reading may take beyond what the process has."""

JARGON = re.compile(
    r"Traceback|\b[A-Za-z_]+(Error|Exception|Warning)\b|<(class|function|module|_)|object at 0x|\[Errno|\bNoneType\b"
)
"""What a sentence for a person does not hold: Python's words for what went wrong."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One input.

    Attributes:
        kind: of input: "params", "masks" and so on.
        name: of the case among its kind.
        parts: of the world, relative to its root, that the case needs.
        spoil: writes the input into a copy of them.
        read: reads it; both are told the root of the copy.
        says: words that the sentence must hold, the name of the file and of the field.
        generated: one of very many alike; the tests judge some of them, `long.py` all.
        expect: "either" where damage may hit something that nobody reads; then only the manner of a refusal is judged.
    """

    kind: str
    name: str
    parts: tuple[str, ...]
    spoil: Callable[[Path], object]
    read: Callable[[Path], object]
    says: tuple[str, ...] = ()
    expect: Literal["refused", "accepted", "either"] = "refused"
    generated: bool = False

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a case; `fault` says what is wrong with it, None if nothing is."""

    refused: bool
    message: str
    fault: str | None


class TooLongError(BaseException):
    """Reading did not end."""


def judge(case: Case, world: Path, folder: Path) -> Outcome:
    """Spoil a copy of the world in `folder`, read it, and hold what happens to what must."""
    folder.mkdir()
    for part in case.parts:
        target = folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (world / part).is_dir() else shutil.copyfile)(world / part, target)
    case.spoil(folder)
    before = contents(folder)
    try:
        with warnings.catch_warnings(record=True) as told, contextlib.chdir(folder), bounded():
            warnings.simplefilter("default")
            case.read(folder)
    except UserError as error:
        message = str(error)
        fault = fault_of(case, message) or written(before, folder) or (f"warns {told[0].message}" if told else None)
        return Outcome(refused=True, message=message, fault=fault)
    except (Exception, TooLongError) as error:
        message = f"{type(error).__name__}: {error}"
        return Outcome(refused=False, message=message, fault=f"raises {message[:200]}")
    return Outcome(refused=False, message="", fault="is accepted" if case.expect == "refused" else None)


def fault_of(case: Case, message: str) -> str | None:
    """What is wrong with a refusal."""
    if case.expect == "accepted":
        return f"is refused: {message}"
    lacking = [word for word in case.says if word not in message]
    if lacking:
        return f"does not name {lacking}: {message}"
    return unclear(message)


def unclear(message: str) -> str | None:
    """Why a message is no clear sentence."""
    if len(message.splitlines()) != 1 or not message.isprintable():
        return f"is not one line of print: {message!r}"
    if not 25 <= len(message) <= 900:
        return f"has {len(message)} characters: {message[:200]}"
    if found := JARGON.search(message):
        return f"says {found[0]!r}: {message}"
    return None


def written(before: dict[str, str], folder: Path) -> str | None:
    """What a refused reading left behind."""
    after = contents(folder)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return f"left {changed[:5]} behind" if changed else None


def contents(folder: Path) -> dict[str, str]:
    """Every file below `folder` with its digest; special files by their type; folders only if they are empty."""
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            found[name] = "special"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@contextlib.contextmanager
def bounded():
    """Let the block take `SECONDS` and `GIBIBYTES` at most."""

    def stop(*_):
        raise TooLongError(f"not done after {SECONDS} s")

    now = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (now + GIBIBYTES * 2**30, hard))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def run_all(cases, world: Path, scratch: Path, tell=lambda case, outcome, seconds: None) -> list[str]:
    """Judge cases one by one; what is wrong with each that fails."""
    wrong = []
    for number, case in enumerate(cases):
        folder, start = scratch / str(number), time.perf_counter()
        outcome = judge(case, world, folder)
        shutil.rmtree(folder)
        tell(case, outcome, time.perf_counter() - start)
        if outcome.fault:
            wrong.append(f"{case} {outcome.fault}")
    return wrong
