"""Type what a README says into a shell, and see what comes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.e2e.test_cli import Command

ROOT = Path(__file__).parents[2]
#: The README's commands, as this environment has them.
_COMMANDS = {
    "python": [sys.executable],
    "mxnet-model-export": [sys.executable, "-m", "mms.cli.export"],
}
_SERVER = "mxnet-model-server"
_URL = "http://127.0.0.1:8080"


def commands(readme: Path) -> list[str]:
    """Give the commands of a README's shell blocks in their order, each on one line."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", readme.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


class Shell:
    """A folder in which a README's commands find the repository's examples, and write to build."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "examples").symlink_to(ROOT / "examples")

    def run(self, command: str, url: str = _URL) -> str:
        """Run a command and give what it printed."""
        words = shlex.split(command.replace(_URL, url))
        done = subprocess.run(
            [*_COMMANDS.get(words[0], words[:1]), *words[1:]],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def prepare(self, readme: Path) -> dict[str, str]:
        """Run what comes before the server; give what each command printed."""
        before = [line for line in commands(readme) if not line.startswith((_SERVER, "curl"))]
        return {command: self.run(command) for command in before}

    def serve(self, readme: Path) -> Command:
        """Start the server as the README does, on a port of its own."""
        (line,) = (line for line in commands(readme) if line.startswith(_SERVER))
        words = shlex.split(line)[1:]
        words = [re.sub(r"(^|=)(build/)", rf"\1{self.folder}/\2", word) for word in words]
        return Command(self.folder, *words, "--management-port", "-1")
