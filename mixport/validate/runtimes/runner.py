"""Runs a job folder on the ONNX Runtime of this machine and writes the answer beside it.

One file for any Python from 3.9 that has numpy and onnxruntime: it imports nothing of mixport.
docs/runtimes.md describes the folder. Usage: python3 runner.py FOLDER
"""

from __future__ import annotations

import ctypes
import functools
import json
import mmap
import os
import platform
import struct
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnxruntime

PROTOCOL = 1
DTYPES = (
    "float32",
    "float64",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "bool",
)
ALIGNMENT = 64
LEVELS = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
LONGEST_MESSAGE = 4000

_ort: Any = onnxruntime

# rdi: leaf, rsi: subleaf, rdx: where the four registers go. /proc/cpuinfo does not do: an emulator shows the
# host's there.
_CPUID = bytes.fromhex("53 4989d0 89f8 89f1 0fa2 418900 41895804 41894808 4189500c 5b c3")
_AT_HWCAP, _AT_HWCAP2 = 16, 26


def main(folder: Path) -> None:
    """Read FOLDER/job.json, run every job, write FOLDER/outputs.bin and last FOLDER/answer.json."""
    document = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    if document["protocol"] != PROTOCOL:
        raise SystemExit(f"job.json has protocol {document['protocol']}, this runner knows {PROTOCOL}")
    with (folder / "inputs.bin").open("rb") as source, (folder / "outputs.bin").open("wb") as sink:
        if document.get("timing"):
            answers = time_jobs(folder, document, source)
        else:
            policy = {**document["policy"], "provider": document.get("provider")}
            answers = [answer(folder, job, policy, source, sink) for job in document["jobs"]]
        sink.flush()
        os.fsync(sink.fileno())
    runtime = {"name": "onnxruntime", "version": str(_ort.__version__), "cpu": describe_cpu()}
    # The document comes last and at once: where it is, everything it names is there.
    unfinished = folder / "answer.json.part"
    unfinished.write_text(
        json.dumps({"protocol": PROTOCOL, "runtime": runtime, "answers": answers}), encoding="utf-8"
    )
    unfinished.replace(folder / "answer.json")


def time_jobs(folder: Path, document: dict[str, Any], source: BinaryIO) -> list[dict[str, Any]]:
    """Time every model on its first run, rounds interleaved: {"times_ms": ...} each, or {"refused":
    message}.
    """
    timing = document["timing"]
    answers: list[dict[str, Any]] = []
    runs: list[Any] = []
    for job in document["jobs"]:
        try:
            session = open_session(model_path(folder, job), document["policy"])
            feeds = {tensor["name"]: read(tensor, source) for tensor in job["runs"][0]}
            run = functools.partial(session.run, job["outputs"], feeds)
            for _ in range(timing["warmup"]):
                run()
        except Exception as error:  # ONNX Runtime's exceptions have no common public base
            answers.append({"refused": (str(error) or type(error).__name__)[:LONGEST_MESSAGE]})
            continue
        answers.append({"times_ms": []})
        runs.append((run, answers[-1]["times_ms"]))
    deadline = time.perf_counter() + timing["seconds"]
    for turn in range(timing["max_rounds"] if runs else 0):
        if turn >= timing["min_rounds"] and time.perf_counter() > deadline:
            break
        # Each round starts with another model, so that none always runs in the wake of the same one.
        for position in range(len(runs)):
            run, times = runs[(turn + position) % len(runs)]
            start = time.perf_counter_ns()
            run()
            times.append((time.perf_counter_ns() - start) / 1e6)
    return answers


def model_path(folder: Path, job: dict[str, Any]) -> Path:
    """The job's model, which lies in the folder itself."""
    name = job["model"]
    if Path(name).name != name:
        raise SystemExit(f"job.json names the model {name!r}, allowed is a plain file name")
    return folder / name


def answer(
    folder: Path, job: dict[str, Any], policy: dict[str, Any], source: BinaryIO, sink: BinaryIO
) -> dict[str, Any]:
    """Run one job: {"runs": ...}, or {"refused": message} where the runtime does not load or run the
    model.
    """
    path = model_path(folder, job)
    try:
        session = open_session(path, policy)
        runs: list[list[dict[str, Any]]] = []
        for tensors in job["runs"]:
            feeds = {tensor["name"]: read(tensor, source) for tensor in tensors}
            arrays = session.run(job["outputs"], feeds)
            runs.append([write(name, array, sink) for name, array in zip(job["outputs"], arrays)])  # noqa: B905 - Python 3.9
    except Exception as error:  # ONNX Runtime's exceptions have no common public base
        return {"refused": (str(error) or type(error).__name__)[:LONGEST_MESSAGE]}
    return {"runs": runs}


def open_session(path: Path, policy: dict[str, Any]) -> Any:
    """A CPU session at the policy of the job."""
    options = _ort.SessionOptions()
    options.graph_optimization_level = getattr(
        _ort.GraphOptimizationLevel, LEVELS[policy["optimization_level"]]
    )
    options.intra_op_num_threads = policy["threads"]
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    for key, value in policy["config"].items():
        options.add_session_config_entry(key, value)
    provider = policy.get("provider")
    if provider is None:
        return _ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    if provider["name"] != "qnn-htp":
        raise ValueError(f"provider {provider['name']!r}, this runner knows qnn-htp")
    # A model that needs the CPU beside the accelerator is refused, not split.
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    devices, backend = htp()
    settings = {"backend_path": backend, "htp_arch": provider["arch"]}
    options.add_provider_for_devices(devices[:1], settings)
    return _ort.InferenceSession(str(path), options)


@functools.cache
def htp() -> tuple[Any, str]:
    """Devices of onnxruntime-qnn, and the path of its HTP backend: the simulator on x86-64."""
    import onnxruntime_qnn  # pyright: ignore[reportMissingImports] - in this runtime's own folder

    package: Any = onnxruntime_qnn
    _ort.register_execution_provider_library("QNNExecutionProvider", package.get_library_path())
    devices = [one for one in _ort.get_ep_devices() if one.ep_name == "QNNExecutionProvider"]
    if not devices:
        raise RuntimeError("onnxruntime-qnn offers no device")
    return devices, package.get_qnn_htp_path()


def read(tensor: dict[str, Any], source: BinaryIO) -> Any:
    """One array out of inputs.bin."""
    if tensor["dtype"] not in DTYPES:
        raise ValueError(f"tensor {tensor['name']} has dtype {tensor['dtype']}, allowed {', '.join(DTYPES)}")
    dtype = np.dtype(tensor["dtype"]).newbyteorder("<")
    size = int(np.prod(tensor["shape"], dtype=np.int64)) * dtype.itemsize
    source.seek(tensor["offset"])
    raw = source.read(size)
    if len(raw) != size:
        raise ValueError(f"inputs.bin ends inside tensor {tensor['name']}")
    return np.frombuffer(raw, dtype).reshape(tensor["shape"]).astype(tensor["dtype"])


def write(name: str, array: Any, sink: BinaryIO) -> dict[str, Any]:
    """Append one array to outputs.bin; its entry in the answer."""
    array = np.asarray(array)
    if str(array.dtype) not in DTYPES:
        raise ValueError(f"output {name} has dtype {array.dtype}, allowed {', '.join(DTYPES)}")
    sink.write(b"\0" * (-sink.tell() % ALIGNMENT))
    entry = {"name": name, "dtype": str(array.dtype), "shape": list(array.shape), "offset": sink.tell()}
    sink.write(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return entry


def describe_cpu() -> str:
    """Machine, processor, and the instruction sets that decide which integer kernels run."""
    machine = platform.machine()
    fields = cpuinfo()
    name = fields.get("model name") or platform.processor() or ""
    try:
        if machine in ("x86_64", "AMD64"):
            name, features = x86()
        elif machine in ("aarch64", "arm64"):
            features = arm()
            # A processor's own list has no vendor_id on arm64: then it is the list of the machine that
            # emulates it.
            name = "emulated on " + name if "vendor_id" in fields else name
        else:
            features: list[str] = []
    except Exception:  # no executable memory, or another system: the list that the system gives has to do
        flags = (fields.get("flags") or fields.get("Features") or "").split()
        features = sorted(
            {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}.intersection(flags)
        )
    return " ".join(dict.fromkeys(part for part in (machine, name, *features) if part))


def x86() -> tuple[str, list[str]]:
    """Name and features by the CPUID instruction, which an emulator answers for itself."""
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(_CPUID)
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    call = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(address)

    def cpuid(leaf: int, subleaf: int = 0) -> tuple[int, ...]:
        registers = (ctypes.c_uint32 * 4)()
        call(leaf, subleaf, ctypes.addressof(registers))
        return tuple(registers)

    _, ebx, ecx, edx = cpuid(7)
    avx_vnni = cpuid(7, 1)[0] >> 4 & 1
    found = {
        "avx2": ebx >> 5 & 1,
        "avx512f": ebx >> 16 & 1,
        "avx512_vnni": ecx >> 11 & 1,
        "avx_vnni": avx_vnni,
        "amx_int8": edx >> 25 & 1,
    }
    brand = b"".join(struct.pack("<4I", *cpuid(leaf)) for leaf in (0x80000002, 0x80000003, 0x80000004))
    return brand.split(b"\0")[0].decode("ascii", "replace").strip(), sorted(
        name for name, bit in found.items() if bit
    )


def arm() -> list[str]:
    """Features by the auxiliary vector, which an emulator fills itself."""
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    found = {"asimddp": getauxval(_AT_HWCAP) >> 20 & 1, "i8mm": getauxval(_AT_HWCAP2) >> 13 & 1}
    return sorted(name for name, bit in found.items() if bit)


def cpuinfo() -> dict[str, str]:
    """Fields of the first processor in /proc/cpuinfo; empty where the system has no such file."""
    try:
        lines = (
            Path("/proc/cpuinfo")
            .read_text(encoding="utf-8", errors="replace")
            .split("\n\n", 1)[0]
            .splitlines()
        )
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
