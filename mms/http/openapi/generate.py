"""``--gen-api``: write ``openapi.json`` and a client for the models.

The Python client is generated here; for other languages an installed OpenAPI generator is run.
Failures after start-up are logged, and the server continues.
"""

from __future__ import annotations

import ast
import asyncio
import keyword
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import orjson

from mms.config.settings import TOKEN_VARIABLE, ServerSettings
from mms.errors import ConfigError
from mms.files import write_atomically
from mms.http.openapi.description import ModelDescription, input_schemas
from mms.http.openapi.document import Names, Route, api_document
from mms.http.openapi.python_client import BaseClient
from mms.serving.pool.child import Child, ExitStatus
from mms.version import __version__

logger = logging.getLogger("mms.generate")

DOCUMENT_NAME, CLIENT_NAME = "openapi.json", "mms_client.py"
#: Supported generator commands, and their flags for the language.
_GENERATORS = (
    ("openapi-generator-cli", "-g"),
    ("openapi-generator", "-g"),
    ("swagger-codegen", "-l"),
    ("swagger-codegen-cli", "-l"),
)
_LANGUAGE = re.compile(r"[A-Za-z0-9][\w.+#-]*", re.ASCII)
#: They take seconds; this limit is for one that waits for input or for the network.
_LIMIT_S = 600.0
#: The files contain no secrets, and are meant for others.
_FOR_ALL = 0o644
_SHOWN_CHARS = 2000
_TYPES = {"number": "float", "string": "str", "boolean": "bool", "object": "Mapping[str, Any]"}


@dataclass(frozen=True, slots=True)
class ClientGenerator:
    """Generates a client.

    Attributes:
        language: Language of the client.
        folder: Output folder; exists.
        command: Generator to run on the document, and its flag for the language; empty for
            Python.
    """

    language: str
    folder: Path
    command: tuple[str, ...] = ()

    async def generate(
        self, routes: Sequence[Route], models: Sequence[ModelDescription], url: str
    ) -> None:
        """Write the document and the client.

        Args:
            routes: The application's.
            models: The served models.
            url: The server's URL.
        """
        try:
            await asyncio.to_thread(self._write, routes, models, url)
        except OSError as error:
            logger.error("no client was generated: %s", error)
            return
        if not self.command:
            logger.info("the Python client is %s", self.folder / CLIENT_NAME)
            return
        program, flag = self.command
        document = str(self.folder / DOCUMENT_NAME)
        arguments = [program, "generate", "-i", document, flag, self.language]
        status, output = await _run([*arguments, "-o", str(self.folder)])
        if status == ExitStatus(0, None):
            logger.info("the %s client is in %s", self.language, self.folder)
        else:
            logger.error(
                "no %s client was generated: %s %s: %s", self.language, program, status, output
            )

    def _write(self, routes: Sequence[Route], models: Sequence[ModelDescription], url: str) -> None:
        document = api_document(routes, models, url)
        text = orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n"
        write_atomically(self.folder / DOCUMENT_NAME, text, _FOR_ALL)
        if not self.command:
            client = python_client(models, url).encode()
            write_atomically(self.folder / CLIENT_NAME, client, _FOR_ALL)


def find_generator(settings: ServerSettings) -> ClientGenerator | None:
    """Return the generator of the client that the settings ask for, or None.

    Raises:
        ConfigError: No generator for the language is installed, or the folder cannot be created.
    """
    language = settings.gen_api.strip()
    if not language:
        return None
    if not _LANGUAGE.fullmatch(language):
        raise ConfigError(f"gen_api: {language[:100]!r} is not a language name")
    command: tuple[str, ...] = ()
    if language.lower() != "python":
        command = _installed(language)
    folder = Path(settings.gen_api_dir).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"gen_api_dir {folder} cannot be created: {error.strerror}") from None
    return ClientGenerator(language, folder, command)


def _installed(language: str) -> tuple[str, str]:
    for name, flag in _GENERATORS:
        program = shutil.which(name)
        if program:
            return os.path.abspath(program), flag
    raise ConfigError(
        f"gen_api {language} needs an OpenAPI generator on the PATH, and none was found; "
        "install one: npm install -g @openapitools/openapi-generator-cli (only python needs none)"
    )


async def _run(command: list[str]) -> tuple[ExitStatus | str, str]:
    """Run a command and return its exit status and the end of its output."""
    with tempfile.TemporaryFile() as output:
        try:
            # Not asyncio's own subprocess: the reaper of the workers' orphans may collect it first.
            child = Child(_spawn(command, output.fileno()))
        except OSError as error:
            return "cannot be run", str(error)
        status: ExitStatus | str
        try:
            status = await asyncio.wait_for(child.wait(), _LIMIT_S)
        except asyncio.TimeoutError:
            status = f"took more than {_LIMIT_S:g} s"
        finally:
            child.kill()
            await child.wait()
        output.seek(max(0, output.seek(0, os.SEEK_END) - _SHOWN_CHARS))
        return status, output.read().decode(errors="replace").strip()


def _spawn(command: list[str], output: int) -> int:
    environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
    return os.posix_spawn(
        command[0],
        command,
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, output, 2),
        ],
        setsigmask=(),
        # Its own group, so that processes it starts (a JVM, say) can be killed with it.
        setpgroup=0,
    )


def python_client(models: Sequence[ModelDescription], url: str) -> str:
    """Return the source of a module with a class ``Client``: one method for each model.

    Args:
        models: The served models; their default versions get the methods. Sample files are read.
        url: Default URL of the server.
    """
    names = Names([*keyword.kwlist, *vars(BaseClient), "url", "timeout_s", "headers"])
    methods = [_method(names, model) for model in models if model.is_default]
    return (
        f'"""Client for the models of a server, generated by mxnet-model-server {__version__}.\n\n'
        'Needs only Python and its standard library.\n"""\n\n'
        f"{_base_source()}\n\n"
        "class Client(BaseClient):\n"
        '    """One method for each model; all of them raise ServerError and OSError."""\n\n'
        "    def __init__(\n"
        f"        self, url: str = {url!r}, timeout_s: float = 120.0,\n"
        "        headers: Mapping[str, str] | None = None,\n"
        "    ) -> None:\n"
        "        super().__init__(url, timeout_s, headers)\n" + "".join(methods)
    )


def _base_source() -> str:
    """Return the source of `python_client` without its docstring, which is for our own readers."""
    source = resources.files(__package__).joinpath("python_client.py").read_text(encoding="utf-8")
    docstring_end = ast.parse(source).body[0].end_lineno or 0
    return "\n".join(source.splitlines()[docstring_end:]).strip("\n") + "\n"


def _method(names: Names, model: ModelDescription) -> str:
    """Return the source of one method, with values from the archive as literals only."""
    name = names.take(f"model_{model.name}" if model.name[0].isdecimal() else model.name)
    signature = model.signature
    if signature is None:
        arguments = ["body: bytes", "content_type: str = 'application/octet-stream'"]
        call, returns = f"self._ask_body({model.name!r}, body, content_type, ", "Any"
        told = "Run the model; its own code decodes the body."
    else:
        parameters = Names([*keyword.kwlist, "self", "version", "timeout_s"])
        given = {spec.name: parameters.take(spec.name) for spec in signature.inputs}
        types = _types(model)
        arguments = [f"{given[key]}: {types[key]}" for key in given]
        values = ", ".join(f"{key!r}: {parameter}" for key, parameter in given.items())
        how = "images" if signature.takes_images else "json"
        call, returns = f"self._ask_{how}({model.name!r}, {{{values}}}, ", "Any"
        shapes = ", ".join(f"{given[s.name]} {s.shape}" for s in signature.inputs)
        told = f"Run the model; shapes in its signature: {shapes}."
    lines = "".join(f"        {argument},\n" for argument in arguments)
    return (
        f"\n    def {name}(\n        self,\n{lines}        *,\n"
        "        version: str | None = None,\n        timeout_s: float | None = None,\n"
        f'    ) -> {returns}:\n        """{told}"""\n'
        f"        return {call}version, timeout_s)\n"
    )


def _types(model: ModelDescription) -> dict[str, str]:
    """Return the annotation of each input."""
    signature = model.signature
    if signature is None:
        return {}
    if signature.takes_images:
        return dict.fromkeys(signature.input_names, "Image")
    schemas = input_schemas(signature, model.sample_value())
    return {name: _annotation(schema) for name, schema in schemas.items()}


def _annotation(schema: Mapping[str, Any]) -> str:
    if schema.get("type") == "array":
        return f"Sequence[{_annotation(schema['items'])}]"
    return _TYPES.get(str(schema.get("type")), "Any")
