"""Importing engines, in processes of their own: with them, and with some that cannot be loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mms
from mms.serving.pool.child import worker_environment


def run(code: str, *folders: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with folders before all others on its path."""
    lines = [f"import sys; sys.path[:0] = {[str(folder) for folder in folders]!r}", code]
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False
    )


def test_mxnet_computes_on_this_numpy() -> None:
    done = run(
        "from mms.engines.imports import import_mxnet\n"
        "mx = import_mxnet()\n"
        "assert import_mxnet() is mx\n"
        "print(mx.__version__, (mx.nd.ones((2, 3)) * 2).sum().asscalar())"
    )
    assert done.stdout.split() == ["1.9.1", "12.0"], done.stderr


@pytest.mark.parametrize("first", ["import mms\n", ""], ids=["after mms", "in this environment"])
def test_mxnet_imports_as_it_is_on_current_numpy(first: str) -> None:
    # `python -c` runs no line of ours first: mms.pth in site-packages does, if it is installed.
    done = run(f"{first}import mxnet as mx\nprint(mx.nd.ones((2, 3)).sum().asscalar())")
    assert done.stdout.split() == ["6.0"], done.stderr


def test_mms_alone_imports_neither_numpy_nor_anything_slow() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(mms.__file__).parents[1])!r})\n"
        "before = set(sys.modules); import mms\n"
        "print(*sorted(name for name in set(sys.modules) - before if 'mms' not in name))"
    )
    # Without site-packages, whose mms.pth has imported it already.
    command = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["__future__"], done.stderr


def test_names_that_numpy_dropped_are_put_back_and_others_stay() -> None:
    done = run(
        "import numpy as np\n"
        "from mms.engines.numpy_names import restore_numpy_names\n"
        "np.float = 'mine'\n"
        "restore_numpy_names()\n"
        "print(np.bool is bool, np.object is object, np.float)"
    )
    assert done.stdout.split() == ["True", "True", "mine"], done.stderr


IMPORT = """
from mms.errors import EngineMissing
from mms.engines.imports import import_mxnet
try:
    import_mxnet()
except EngineMissing as error:
    print(error)
"""


def fail_with(folder: Path, text: str) -> str:
    """Return what is said where MXNet's own libraries raise this."""
    (folder / "mxnet").mkdir()
    (folder / "mxnet" / "__init__.py").write_text(f"raise OSError({text!r})")
    done = run(IMPORT, folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_mxnet_that_cannot_be_loaded_is_one_clear_line(tmp_path: Path) -> None:
    said = fail_with(tmp_path, "undefined symbol: cudnnCreate")
    assert said == "MXNet cannot be loaded: undefined symbol: cudnnCreate\n"


def test_the_missing_system_library_is_named_with_the_command_that_installs_it(
    tmp_path: Path,
) -> None:
    text = "libquadmath.so.0: cannot open shared object file: No such file or directory"
    said = fail_with(tmp_path, text)
    assert text in said
    assert "run: apt-get install -y libquadmath0" in said


IMPORT_ONNXRUNTIME = """
import os, sys
from mms.errors import EngineMissing
from mms.engines.imports import import_onnxruntime
try:
    import_onnxruntime()
except EngineMissing as error:
    print(error)
else:
    print(len(os.listdir("/proc/self/task")))
"""


def test_a_missing_onnxruntime_is_named_with_the_command_that_installs_it() -> None:
    done = run("sys.modules['onnxruntime'] = None\n" + IMPORT_ONNXRUNTIME)
    assert done.stdout == (
        "onnxruntime is not installed; run: pip install 'mxnet-model-server[onnx]'\n"
    ), done.stderr


def test_an_onnxruntime_that_cannot_be_loaded_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('no AVX2')")
    done = run(IMPORT_ONNXRUNTIME, tmp_path)
    assert done.stdout == "onnxruntime cannot be loaded: no AVX2\n", done.stderr


def test_onnxruntime_starts_no_thread_that_reports_to_its_maker() -> None:
    done = run(
        "import os\nos.environ.pop('ORT_DISABLE_TELEMETRY', None)\n"
        "os.environ['OPENBLAS_NUM_THREADS'] = '1'\n" + IMPORT_ONNXRUNTIME
    )
    assert done.stdout == "1\n", done.stderr


def test_workers_are_told_so_unless_somebody_says_otherwise() -> None:
    name = "ORT_DISABLE_TELEMETRY"
    assert worker_environment({}, 1, lambda _: False)[name] == "1"
    assert worker_environment({name: "0"}, 1, lambda _: False)[name] == "0"
