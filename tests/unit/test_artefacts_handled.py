"""Recognising SageMaker's and GluonTS's models: by names and heads of files, executing nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mms.archive.artefacts import gluonts, sagemaker
from mms.archive.artefacts.artefact import Artefact
from mms.archive.manifest import ModelFormat, parse_mar_manifest
from mms.archive.reader import open_archive
from mms.errors import ArchiveError
from tests.artefacts.sagemaker import handler_of, lay_out
from tests.kit.zips import write_folder

CHECKPOINT = {name: "{}" for name in sagemaker.CHECKPOINT}
SCRIPT = "raise SystemExit('executed')\ndef model_fn(model_dir): pass\n"


def found(folder: Path, **environment: str) -> Artefact | None:
    return sagemaker.recognise(folder, "m", environment)


class TestSageMaker:
    @pytest.mark.parametrize(
        ("files", "note"),
        [
            ({"code/inference.py": ""}, "code/inference.py runs by the rules"),
            ({**CHECKPOINT, "code/inference.py": ""}, "code/inference.py runs"),
            ({**CHECKPOINT}, "no script: the default functions"),
            ({**CHECKPOINT, "code/lib.py": ""}, "no script"),
            ({"code/train.py": SCRIPT, "code/lib.py": ""}, "code/train.py runs"),
            ({"code/a.py": "from b import model_fn, predict_fn\n"}, "code/a.py runs"),
            ({"inference.py": SCRIPT}, "inference.py runs"),
            ({"code/inference.py": SCRIPT, "signature.json": "{}"}, "code/inference.py runs"),
            # A model.tar.gz that holds only code/ is unpacked to what is in it.
            ({"entry.py": SCRIPT, "helper.py": ""}, "entry.py runs"),
        ],
    )
    def test_scripts_and_checkpoints(
        self, tmp_path: Path, files: dict[str, str], note: str
    ) -> None:
        folder = write_folder(tmp_path / "model", {**files, "weights/w.bin": "1"})
        artefact = found(folder)
        assert artefact is not None
        assert artefact.family == "SageMaker model"
        assert artefact.manifest.model_name == "m"
        assert artefact.manifest.model_format is ModelFormat.HANDLER
        assert note in artefact.notes[0]
        assert artefact.files == {name: folder / name for name in [*files, "weights/w.bin"]}

    @pytest.mark.parametrize(
        "files",
        [
            {"inference.py": "print('any program')"},
            {"model-symbol.json": "{}", "model-0000.params": ""},
            {"model_algo_1-symbol.json": "{}", "model-shapes.json": "[]"},
            {**CHECKPOINT, "signature.json": "{}"},
            {"code": "a file"},
            # A code/ of somebody else's.
            {"code/train.py": "", "net-symbol.json": "{}", "net-0000.params": ""},
            {"code/train.py": "", "net.onnx": ""},
            {"code/inference.py": "", "signature.json": "{}", "service.py": ""},
            {"service.py": SCRIPT, "signature.json": "{}"},
            {"readme.md": ""},
        ],
    )
    def test_others_are_left_to_others(self, tmp_path: Path, files: dict[str, str]) -> None:
        assert found(write_folder(tmp_path / "model", files)) is None

    def test_the_variable_names_the_script(self, tmp_path: Path) -> None:
        files = {"code/inference.py": SCRIPT, "code/other.py": SCRIPT, "root.py": SCRIPT}
        folder = write_folder(tmp_path / "model", files)
        for program, script in [
            ("other.py", "code/other.py"),
            ("other", "code/other.py"),
            ("root.py", "root.py"),
            # One of another model of the same server.
            ("absent.py", "code/inference.py"),
            ("../model/code/other.py", "code/inference.py"),
            ("", "code/inference.py"),
        ]:
            assert sagemaker.find_script(folder, {"SAGEMAKER_PROGRAM": program}) == script

    def test_scripts_of_which_none_is_the_one(self, tmp_path: Path) -> None:
        for files in (
            {"code/a.py": "", "code/b.py": ""},
            {"code/a.py": SCRIPT, "code/b.py": SCRIPT},
        ):
            folder = write_folder(tmp_path / str(len(files["code/a.py"])), files)
            with pytest.raises(ArchiveError, match=r"set SAGEMAKER_PROGRAM to one of: a.py, b.py"):
                found(folder)

    def test_a_long_script_is_not_read(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "model", {"code/a.py": SCRIPT + "#" * (2 << 20)})
        with pytest.raises(ArchiveError, match="set SAGEMAKER_PROGRAM"):
            found(folder)

    def test_folders_that_are_links_are_kept_as_links(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "model", {"code/inference.py": "", "a/b": ""})
        os.symlink(folder, folder / "a" / "loop")
        artefact = found(folder)
        assert artefact is not None
        assert artefact.files.keys() == {"code/inference.py", "a/b", "a/loop"}

    def test_the_folder_laid_out_is_an_archive_of_1_x(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "model", {"code/inference.py": SCRIPT})
        laid = lay_out(sagemaker.recognise, folder, tmp_path / "laid")
        archive = open_archive(laid, tmp_path)
        assert archive.manifest.handler == handler_of(laid)
        assert archive.manifest == sagemaker.recognise(folder, "m", {}).manifest  # type: ignore[union-attr]
        assert (laid / "code" / "inference.py").is_symlink()


class TestGluonTS:
    CONFIG = '{"model": "0.17.0", "gluonts": "0.17.0", "type": "gluonts.mx.model.predictor.P"}'

    def test_a_predictor(self, tmp_path: Path) -> None:
        folder = write_folder(
            tmp_path / "model", {"gluonts-config.json": self.CONFIG, "parameters.json": ""}
        )
        artefact = gluonts.recognise(folder, "m")
        assert artefact is not None
        assert artefact.family == "GluonTS predictor"
        assert artefact.notes == ("P of GluonTS 0.17.0",)
        assert artefact.manifest.engine == {"GluonTS": "0.17.0"}
        assert artefact.files.keys() == {"gluonts-config.json", "parameters.json"}
        document = artefact.documents["MAR-INF/MANIFEST.json"]
        assert parse_mar_manifest(json.loads(document)) == artefact.manifest

    def test_other_folders(self, tmp_path: Path) -> None:
        assert gluonts.recognise(write_folder(tmp_path / "m", {"parameters.json": ""}), "m") is None

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "gluonts-config.json: not valid JSON"),
            ("[]", "it names no type"),
            ('{"type": 1}', "it names no type; serialise the predictor again"),
            (" " * (2 << 20), "larger than 1048576 bytes"),
        ],
    )
    def test_a_damaged_configuration_is_named(
        self, tmp_path: Path, text: str, message: str
    ) -> None:
        folder = write_folder(tmp_path / "model", {"gluonts-config.json": text})
        with pytest.raises(ArchiveError, match=message):
            gluonts.recognise(folder, "m")
