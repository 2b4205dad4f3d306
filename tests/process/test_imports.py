"""What a fresh process has loaded once it has imported a part of the package."""

from __future__ import annotations

import subprocess
import sys


def test_the_server_process_starts_without_mxnet_numpy_and_grpc() -> None:
    program = (
        "import sys, mms.server, mms.cli.serve, mms.cli.export\n"
        "print(sorted({'mxnet', 'numpy', 'PIL', 'grpc'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


def test_the_package_alone_imports_next_to_nothing() -> None:
    program = (
        "import sys, mms\n"
        "print(*sorted(name for name in sys.modules if name.split('.')[0] == 'mms'))\n"
        "mms.log, mms.metric, mms.metrics_manager, mms.model_service.model_service\n"
        "print(*sorted({'mxnet', 'numpy'} & set(sys.modules)))\n"
        "mms.model_service.mxnet_vision_service, mms.model_service.mxnet_model_service\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines() == [
        "mms mms.engines mms.engines.numpy_names mms.lazy mms.version",
        "",
    ], done.stderr
    assert done.returncode == 0


def test_services_for_onnx_models_and_the_helpers_that_they_share_need_no_mxnet() -> None:
    program = (
        "import sys, mms.model_service.onnx_service, mms.utils.mxnet.ndarray\n"
        "import mms.utils.mxnet as helpers\n"
        "print('mxnet' in sys.modules, helpers.nlp.__name__, hasattr(helpers, 'other'))\n"
        "print(helpers.image.__name__, 'mxnet' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == [
        *("False", "mms.utils.mxnet.nlp", "False"),
        *("mms.utils.mxnet.image", "True"),
    ], done.stderr


def test_the_base_of_all_services_needs_neither_mxnet_nor_numpy() -> None:
    program = (
        "import sys, mms.model_service.model_service, mms.service\n"
        "print(sorted({'mxnet', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")
