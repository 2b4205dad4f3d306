"""What a service can read of its server: neither its memory nor its secrets."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from mms.config.settings import SECRET_VARIABLES
from tests.kit.archives import make_folder
from tests.kit.server import StartServer
from tests.management.stores import says

SECRETS = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MMS_MANAGEMENT_TOKEN",
    "HF_TOKEN", "db_password", "PGPASSWORD", "MY_PASSWD", "API_KEY", "APIKEY", "GITHUB_TOKENS",
    "GOOGLE_APPLICATION_CREDENTIALS", "DJANGO_SECRET_KEY", "SECRET_KEY_BASE", "Client_Secret",
    "SSH_PASSPHRASE", "TOKEN", "SECRET",
)  # fmt: skip
HARMLESS = (
    "PATH", "HOME", "LANG", "TOKENIZERS_PARALLELISM", "AWS_REGION", "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "DB_PASSWORD_FILE", "MXNET_CPU_WORKER_NTHREADS",
    "OMP_NUM_THREADS", "KEYBOARD", "MONKEYS", "SSL_CERT_FILE", "SECRETARY", "LD_LIBRARY_PATH",
)  # fmt: skip


@pytest.mark.parametrize("name", SECRETS)
def test_v17_what_is_named_like_a_secret_is_hidden(name: str) -> None:
    assert re.fullmatch(SECRET_VARIABLES, name)


@pytest.mark.parametrize("name", HARMLESS)
def test_v17_nothing_else_is(name: str) -> None:
    assert not re.fullmatch(SECRET_VARIABLES, name)


@pytest.mark.parametrize(
    ("settings", "sees"), [({}, False), ({"blacklist_env_vars": ""}, True)], ids=["default", "off"]
)
async def test_v17_a_service_sees_secrets_only_if_the_operator_says_so(
    start_server: StartServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    sees: bool,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    monkeypatch.setenv("HARMLESS", "harmless")
    says(tmp_path / "m", "m")
    server = await start_server(settings, m=tmp_path / "m")
    _, environment = await server.ask("m", ["environment"])
    assert environment["HARMLESS"] == "harmless"
    assert ("AWS_SECRET_ACCESS_KEY" in environment) is sees


#: A server with one worker, as another user than root; says what the worker can open of it.
_SERVE = """
    import asyncio, os, pathlib, sys
    import psutil
    from tests.kit.server import running_servers

    async def run():
        archive, folder = map(pathlib.Path, sys.argv[1:])
        async with running_servers(folder) as start:
            server = await start(m=archive)
            print("ANSWER", (await server.ask("m", [1]))[1])
            servable = server.servable("m")
            print("MEMORY", servable.memory_bytes() > 1 << 20)
            print("METRICS", "process_resident_memory_bytes" in await server.metrics())
            worker = psutil.Process(servable.pid)
            children = psutil.Process().children()
            print("PSUTIL", worker.memory_info().rss > 1 << 20, len(children) > 0)
            print("READABLE", os.access(f"/proc/{worker.pid}/smaps_rollup", os.R_OK),
                  len(open(f"/proc/{worker.pid}/environ", "rb").read()) > 0)

    print("UID", os.getuid())
    asyncio.run(run())
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs another user")
def test_v17_a_worker_of_another_user_than_root_reads_nothing_of_the_server(
    tmp_path: Path,
) -> None:
    folder = make_folder(
        tmp_path / "m", (Path(__file__).parent / "services" / "looking.py").read_text()
    )
    script, work = tmp_path / "serve.py", tmp_path / "work"
    script.write_text(textwrap.dedent(_SERVE))
    work.mkdir()
    for path in [tmp_path, *tmp_path.rglob("*"), *list(tmp_path.parents)[:2]]:
        path.chmod(0o777 if path.is_dir() else 0o666)
    repository = Path(__file__).parents[2]
    # The capability lets it into the folders of this Python; it is of no use for /proc/PID/environ.
    capability = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *capability]
    found = subprocess.run(
        [*command, sys.executable, str(script), str(folder), str(work)],
        env={**os.environ, "PYTHONPATH": str(repository), "HOME": str(work)},
        check=False,
        capture_output=True,
        text=True,
        timeout=110,
    )
    if "UID 65534" not in found.stdout and "Permission denied" in found.stderr:
        pytest.skip("that user cannot run this Python")
    lines = dict(line.split(" ", 1) for line in found.stdout.splitlines() if " " in line)
    assert "ANSWER" in lines, found
    assert lines["ANSWER"].count("Permission denied") == 4, lines
    assert lines["MEMORY"] == "True"
    assert lines["METRICS"] == "True"
    assert lines["PSUTIL"] == "True True"
    assert lines["READABLE"] == "True True"
