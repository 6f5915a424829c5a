"""Kill commands with SIGKILL at random moments and check what they leave behind.

    python benchmarks/kills.py [--kills 50] [--seed 1] [--only convert run batch chat download]

Each of ``convert``, ``run`` (a folder, into a cache), ``batch --resume``, ``chat --session`` and
``convert`` from a hub (of this machine, in four shards) runs undisturbed once, with the bundled
model and one thread; then repeatedly, each time killed at a moment drawn evenly over that
duration. After each kill:

- convert: the output is not there, or is the undisturbed one in every byte;
- run: so is the file of the cache, and the next call gives the undisturbed answer;
- batch: what was answered is still there, as undisturbed, nothing twice; in the end all of it is;
- chat: every turn whose end was seen is in the file, in order, nothing twice; the next goes on;
- download: the output is as with convert, a shard with its final name is the hub's, and any other
  is the beginning of it.

Now and then, and at the end, the command runs to its end: only its results may then be left.
Prints a table; exits with 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
sys.path.append(str(REPOSITORY / "tests"))

from helpers import read_tensors, write_shards  # noqa: E402
from hub_server import HubServer  # noqa: E402

SOURCE = REPOSITORY / "models" / "bundled" / "austen-6m"
COMMAND = [sys.executable, "-m", "infer_os.entry"]
GREEDY = ["--temperature", "0", "--threads", "1"]
#: After this many kills the command runs to its end.
ROUND = 5


class Trial:
    """A command that is killed: ``faults`` says what was found, ``finished`` when it was too late.

    ``place`` is an empty folder of its own. A context manager, for what runs alongside the command.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.beside = ExitStack()
        self.faults: list[str] = []
        self.kills = self.finished = 0
        self.environment = {
            **os.environ, "INFER_OS_CACHE": str(place / "cache"), "HF_HUB_OFFLINE": "1",
        }  # fmt: skip

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *_: object) -> None:
        self.beside.close()

    def command(self) -> list[str]:
        """The words of the command."""
        raise NotImplementedError

    def whole(self) -> float:
        """Run undisturbed and remember what it makes; returns its seconds."""
        raise NotImplementedError

    def check(self) -> None:
        """Look at what a kill left."""
        raise NotImplementedError

    def complete(self) -> None:
        """Run to the end, compare, and begin again."""
        raise NotImplementedError

    def wrong(self, text: str) -> None:
        """Note a fault."""
        self.faults.append(f"after kill {self.kills}: {text}")

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
        """A command to its end; a failure is a fault."""
        done = subprocess.run(
            [*COMMAND, *command], capture_output=True, check=False, env=self.environment,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode:
            self.wrong(f"exit code {done.returncode}: {done.stderr.decode()[-300:]}")
        return done

    def kill_after(self, seconds: float) -> None:
        """Start, wait, kill; counted only if it still ran."""
        with subprocess.Popen(
            [*COMMAND, *self.command()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env=self.environment,
        ) as process:  # fmt: skip
            try:
                process.wait(seconds)
                self.finished += 1
            except subprocess.TimeoutExpired:
                process.kill()
                self.kills += 1


def timed(trial: Trial) -> tuple[subprocess.CompletedProcess[bytes], float]:
    """The command to its end, and its seconds."""
    started = time.perf_counter()
    done = trial.run(trial.command())
    return done, time.perf_counter() - started


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Convert(Trial):
    """``convert``: one file."""

    def command(self) -> list[str]:
        output = str(self.place / "out" / "model.gguf")
        return ["convert", str(SOURCE), "-o", output, "--type", "q4_k_m", "--threads", "1"]

    def whole(self) -> float:
        (self.place / "out").mkdir()
        _, seconds = timed(self)
        self.expected = files(self.place / "out")
        self.clear()
        return seconds

    def clear(self) -> None:
        (self.place / "out" / "model.gguf").unlink(missing_ok=True)

    def check(self) -> None:
        found = {k: v for k, v in files(self.place / "out").items() if not k.startswith(".")}
        if found not in ({}, self.expected):
            self.wrong(f"half an output: { {k: len(v) for k, v in found.items()} }")
        self.clear()

    def complete(self) -> None:
        self.run(self.command())
        if files(self.place / "out") != self.expected:
            self.wrong(f"left in the end: {sorted(files(self.place / 'out'))}")
        self.clear()


class Run(Trial):
    """``run``: a folder is converted into the cache, then answers."""

    def command(self) -> list[str]:
        return ["run", "--model", str(SOURCE), "--use-4bit", "-p", "It is", "-n", "8", *GREEDY]

    def whole(self) -> float:
        done, seconds = timed(self)
        self.answer = done.stdout
        self.expected = self.models()
        shutil.rmtree(self.place / "cache")
        return seconds

    def models(self) -> dict[str, bytes]:
        return files(self.place / "cache" / "models")

    def check(self) -> None:
        made = {k: v for k, v in self.models().items() if k.endswith(".gguf")}
        for name, data in made.items():
            if self.expected.get(name) != data:
                self.wrong(f"{name}: {len(data)} bytes that are not the model's")

    def complete(self) -> None:
        if self.run(self.command()).stdout != self.answer:
            self.wrong("another answer")
        if self.models() != self.expected:
            self.wrong(f"left in the end: {sorted(self.models())}")
        shutil.rmtree(self.place / "cache")


class Batch(Trial):
    """``batch --resume``: answers in the order in which they end."""

    def command(self) -> list[str]:
        return [
            "batch", str(self.model), "-i", str(self.place / "in.jsonl"), "-o",
            str(self.place / "out.jsonl"), "--resume", *GREEDY,
        ]  # fmt: skip

    def whole(self) -> float:
        self.model = self.place / "model.gguf"
        self.run(["convert", str(SOURCE), "-o", str(self.model), "--threads", "1"])
        records = [
            {"id": f"r{i}", "prompt": f"It is number {i}", "max_tokens": 8 + 13 * i % 50}
            for i in range(48)
        ]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (self.place / "in.jsonl").write_text(lines)
        _, seconds = timed(self)
        self.expected = self.answers()
        self.begin()
        return seconds

    def begin(self) -> None:
        (self.place / "out.jsonl").unlink(missing_ok=True)
        self.seen: dict[str, str] = {}

    def answers(self) -> dict[str, str]:
        """Answers by id; the last line may be incomplete."""
        path = self.place / "out.jsonl"
        found: dict[str, str] = {}
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
            if not line.endswith(b"\n"):
                break
            value = json.loads(line)
            if value["id"] in found:
                self.wrong(f"{value['id']}: answered twice")
            found[value["id"]] = value["text"]
        return found

    def check(self) -> None:
        found = self.answers()
        lost = sorted(set(self.seen) - set(found))
        if lost:
            self.wrong(f"lost: {', '.join(lost)}")
        if any(self.expected[key] != text for key, text in found.items()):
            self.wrong("another answer")
        self.seen = found

    def complete(self) -> None:
        self.run(self.command())
        if self.answers() != self.expected:
            self.wrong(f"{len(self.answers())} of {len(self.expected)} answers in the end")
        self.begin()


class Chat(Trial):
    """``chat --session``: the conversation goes on over kills."""

    _MESSAGES = 6

    def command(self) -> list[str]:
        session = str(self.place / "talk" / "talk.session")
        model = str(self.place / "model.gguf")
        return ["chat", model, "--session", session, "--style", "plain", "-n", "6", *GREEDY]

    def whole(self) -> float:
        (self.place / "talk").mkdir()
        self.run(["convert", str(SOURCE), "-o", str(self.place / "model.gguf"), "--threads", "1"])
        self.begin()
        started = time.perf_counter()
        self.talk(None)
        seconds = time.perf_counter() - started
        self.check()
        if len(self.turns()) != self._MESSAGES:
            self.wrong(f"{len(self.turns())} turns of an undisturbed chat")
        self.finish()
        return seconds

    def begin(self) -> None:
        self.sent = self.known = 0

    def talk(self, seconds: float | None) -> None:
        """Send some messages and the end; kill after ``seconds``. Counts the turns that ended."""
        first = self.known
        text = "".join(f"Number {first + i}\n/stats\n" for i in range(self._MESSAGES))
        self.sent = first + self._MESSAGES
        with subprocess.Popen(
            [*COMMAND, *self.command()], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, env=self.environment,
        ) as process:  # fmt: skip
            assert process.stdin is not None and process.stderr is not None
            process.stdin.write(text.encode())
            process.stdin.close()
            said: list[bytes] = []
            reader = threading.Thread(target=said.extend, args=(process.stderr,))
            reader.start()
            try:
                process.wait(seconds)
                if process.returncode:
                    self.wrong(f"exit code {process.returncode}: {b''.join(said)[-300:]!r}")
                self.finished += seconds is not None
            except subprocess.TimeoutExpired:
                process.kill()
                self.kills += 1
            reader.join()
        # what /stats says comes after the turn before it was kept
        self.ended = first + sum(line.startswith(b"[prompt") for line in said)
        if first and any(b"/stats" not in line and b"error" in line for line in said):
            self.wrong(f"not continued: {b''.join(said)[-300:]!r}")

    def kill_after(self, seconds: float) -> None:
        self.talk(seconds)

    def turns(self) -> list[str]:
        """The messages in the file."""
        path = self.place / "talk" / "talk.session"
        if not path.exists():
            return []
        data = path.read_bytes()
        magic, _version, length = struct.unpack_from("<16sII", data)
        if magic != b"INFEROS-SESSION\0":
            self.wrong("not a session file")
            return []
        return [message for message, _ in json.loads(data[24 : 24 + length])["turns"]]

    def check(self) -> None:
        found = self.turns()
        if found != [f"Number {i}" for i in range(len(found))]:
            self.wrong(f"lost or doubled: {found}")
        if not self.ended <= len(found) <= self.sent:
            self.wrong(f"{len(found)} turns in the file, {self.ended} had ended")
        self.known = len(found)

    def complete(self) -> None:
        self.talk(None)
        self.check()
        if len(self.turns()) != self.sent:
            self.wrong(f"{len(self.turns())} of {self.sent} turns in the end")
        self.finish()

    def finish(self) -> None:
        left = sorted(files(self.place / "talk"))
        if left != ["talk.session"]:
            self.wrong(f"left in the end: {left}")
        (self.place / "talk" / "talk.session").unlink(missing_ok=True)
        self.begin()


class Download(Convert):
    """``convert`` from a hub: shards come one after another, and go when they are converted."""

    _NAME = "someone/austen"

    def command(self) -> list[str]:
        words = super().command()
        return [words[0], self._NAME, *words[2:]]

    def whole(self) -> float:
        folder = Path(shutil.copytree(SOURCE, self.place / "hub"))
        tensors = read_tensors(folder)
        names = sorted(tensors)
        write_shards(folder, [{name: tensors[name] for name in names[i::4]} for i in range(4)])
        self.shards = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
        server = self.beside.enter_context(HubServer({self._NAME: {"main": folder}}))
        server.faults.delay = 1e-4
        for key in [key for key in self.environment if key.startswith("HF_")]:
            del self.environment[key]
        self.environment |= {
            "HF_ENDPOINT": server.url, "HF_HOME": str(self.place / "hf"),
            "NO_PROXY": "127.0.0.1,localhost",
        }  # fmt: skip
        return super().whole()

    def check(self) -> None:
        for name, data in files(self.place / "cache" / "checkpoints").items():
            whole = self.shards.get(Path(name).name.removesuffix(".incomplete"))
            begun = name.endswith(".incomplete")
            if whole is not None and data != (whole[: len(data)] if begun else whole):
                self.wrong(f"{name}: {len(data)} bytes that are not the hub's")
        super().check()

    def complete(self) -> None:
        super().complete()
        left = sorted(files(self.place / "cache"))
        if left:
            self.wrong(f"left in the cache in the end: {left}")


TRIALS: dict[str, type[Trial]] = {
    "convert": Convert, "run": Run, "batch": Batch, "chat": Chat, "download": Download,
}  # fmt: skip


def torment(trial: Trial, n_kills: int, chance: random.Random) -> float:
    """Kill a command ``n_kills`` times; returns the seconds that it takes undisturbed."""
    seconds = trial.whole()
    while trial.kills < n_kills:
        trial.kill_after(chance.uniform(0, seconds))
        trial.check()
        if trial.kills % ROUND == 0 or trial.kills == n_kills:
            trial.complete()
    return seconds


def main() -> int:
    """Run the trials; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="of each command")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=TRIALS, default=list(TRIALS))
    arguments = parser.parse_args()
    chance, failed = random.Random(arguments.seed), False
    print(f"{'command':10}{'seconds':>9}{'kills':>7}{'ended before':>14}{'faults':>8}")
    for name in arguments.only:
        with (
            tempfile.TemporaryDirectory(prefix="kills-") as folder,
            TRIALS[name](Path(folder)) as trial,
        ):
            seconds = torment(trial, arguments.kills, chance)
        print(f"{name:10}{seconds:9.2f}{trial.kills:7}{trial.finished:14}{len(trial.faults):8}")
        for fault in trial.faults:
            print(f"  {fault}")
        sys.stdout.flush()
        failed |= bool(trial.faults)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
