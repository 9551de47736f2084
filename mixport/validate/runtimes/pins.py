"""Versions of everything that is fetched, and what of it is kept."""

from __future__ import annotations

from pathlib import Path

#: The wheel that runs under arm64 emulation.
ONNXRUNTIME = "1.32.0"
#: The last version of every older minor one that pyproject.toml allows: results of the conformance kit are
#: kept of these too.
OLDER_ONNXRUNTIME = ("1.31.1",)
#: Qualcomm's execution provider with its simulator, and the onnxruntime that was measured with it.
ONNXRUNTIME_QNN = "2.7.0"
ONNXRUNTIME_OF_QNN = "1.31.1"
#: NumPy beside it.
NUMPY = "2.4.6"
#: The last NumPy before 2, for onnxruntime before FIRST_WITH_NUMPY_2: those wheels are built for NumPy 1, and
#: 1.16.3 and 1.18.1 cannot be imported beside NumPy 2 (measured; 1.19.0 and 1.20.1 can).
NUMPY_1 = "1.26.4"
FIRST_WITH_NUMPY_2 = (1, 19)
#: The npm package; WASM builds follow the native ones some weeks later.
ONNXRUNTIME_WEB = "1.30.0"

#: Files of onnxruntime-web's dist that are kept: the Node entry, the browser entry, and the WASM build
#: without WebGPU.
WEB_FILES = (
    "ort.node.min.mjs",
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)

#: Debian and Ubuntu packages: a static emulator for the host; an interpreter with the C++ library for what it
#: runs.
QEMU_PACKAGES = ("qemu-user-static",)
PYTHON_PACKAGES = ("python3", "libstdc++6")
#: Binaries of the emulator package that are kept, 12 MB each out of 370.
QEMU_NAMES = ("qemu-x86_64", "qemu-aarch64")

#: The files of this package that travel with a job.
RUNNER = Path(__file__).parent / "runner.py"
WEB_RUNNER = Path(__file__).parent / "runner.mjs"
WEB_PAGE = Path(__file__).parent / "page.html"
