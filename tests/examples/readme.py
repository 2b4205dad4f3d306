"""Run an example as its README says, with what it builds elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageStat

from tests.e2e.test_cli import Command

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
URL = "http://127.0.0.1:8080"
_SERVER = "mxnet-model-server"
#: The README's commands, as this environment has them.
_COMMANDS = {
    "python": [sys.executable],
    "mxnet-model-export": [sys.executable, "-m", "mms.cli.export"],
}


class Example:
    """One example, with the training cut short.

    Args:
        name: Its folder under examples/.
        folder: Stands for the README's build/.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder

    def commands(self, program: str) -> list[list[str]]:
        """Return the README's commands of one program, each as its arguments."""
        found = [shlex.split(line) for line in shell_lines(EXAMPLES / self.name / "README.md")]
        return [
            [re.sub(r"\bbuild\b", str(self.folder), argument) for argument in command[1:]]
            for command in found
            if command[0] == program
        ]

    def build(self) -> None:
        """Train with --quick and export, as the README says."""
        (train,) = [command for command in self.commands("python") if "/train.py" in command[0]]
        run("python", *train, "--quick")
        for export in self.commands("mxnet-model-export"):
            run("mxnet-model-export", *export)

    @contextlib.contextmanager
    def serve(self) -> Iterator[Served]:
        """Run the README's first server command, on any free port, until the block ends."""
        arguments = self.commands(_SERVER)[0]
        command = Command(self.folder, *arguments, "--management-port", "-1")
        try:
            yield Served(self, command)
            command.process.terminate()
            assert command.end() == 0, command.output
        finally:
            command.process.kill()
            command.process.wait()


class Served:
    """An example behind a running server."""

    def __init__(self, example: Example, command: Command) -> None:
        self.example = example
        self.url = command.url()

    def ask(self, *arguments: str) -> tuple[int, Any]:
        """Run curl with arguments in which the README's URL stands; return status and answer."""
        asked = [argument.replace(URL, self.url) for argument in arguments]
        output = run("curl", "--silent", "--show-error", "--write-out", "\n%{http_code}", *asked)
        body, status = output.rsplit("\n", 1)
        return int(status), json.loads(body)

    def readme_answers(self) -> list[Any]:
        """Run each curl command of the README that asks this server; return the answers."""
        answers = []
        for arguments in self.example.commands("curl"):
            if any(URL in argument for argument in arguments):
                status, answer = self.ask(*arguments)
                assert status == 200, answer
                answers.append(answer)
        return answers


class Shell:
    """A folder in which a README's commands find the repository's examples, and write to build."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "examples").symlink_to(EXAMPLES)

    def run(self, command: str, url: str = URL) -> str:
        """Run a command and return what it printed."""
        return run(*shlex.split(command.replace(URL, url)), folder=self.folder)

    def prepare(self, readme: Path) -> dict[str, str]:
        """Run what comes before the server; return what each command printed."""
        before = [line for line in shell_lines(readme) if not line.startswith((_SERVER, "curl"))]
        return {command: self.run(command) for command in before}

    def serve(self, readme: Path) -> Command:
        """Start the server as the README does, on a port of its own."""
        (line,) = (line for line in shell_lines(readme) if line.startswith(_SERVER))
        words = shlex.split(line)[1:]
        words = [re.sub(r"(^|=)(build/)", rf"\1{self.folder}/\2", word) for word in words]
        return Command(self.folder, *words, "--management-port", "-1")


def is_same_picture(one: Path, other: Path) -> bool:
    """Whether two pictures look alike; encoders differ in the last bits from release to release."""
    with Image.open(one) as first, Image.open(other) as second:
        if first.size != second.size:
            return False
        difference = ImageChops.difference(first.convert("L"), second.convert("L"))
    return bool(ImageStat.Stat(difference).mean[0] < 2)


def shell_lines(document: Path) -> list[str]:
    """Return the lines of a document's ``sh`` blocks, continued ones joined, comments left out."""
    blocks = re.findall(r"^```sh\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    text = "".join(blocks).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def run(program: str, *arguments: str, folder: Path = ROOT) -> str:
    """Run a command in a folder, the repository's root by default; return what it prints."""
    command = [*_COMMANDS.get(program, [program]), *arguments]
    # One thread: two tests at a time share the cores, and threads that wait for each other spin.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout
