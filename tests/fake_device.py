"""A CUDA device that is not there, for fake tensors in a build of torch for CPUs.

Such a build lacks what autograd asks of CUDA: a current device and a stream. GUARD, some lines of
C++ that must be loaded before torch is imported, answers with device 0.
"""

import ctypes
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

GUARD = r"""
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
constexpr auto CUDA = c10::DeviceType::CUDA;
struct Guard : c10::impl::NoOpDeviceGuardImpl<CUDA> {
  c10::Device getDevice() const override { return {CUDA, 0}; }
  c10::Device exchangeDevice(c10::Device) const override { return {CUDA, 0}; }
  c10::Stream getStream(c10::Device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, c10::Device(CUDA, 0));
  }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)
namespace at {
struct FakeHooks : CUDAHooksInterface {
  FakeHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
};
using CUDAHooks = FakeHooks;  // the name that torch looks up
REGISTER_CUDA_HOOKS(CUDAHooks)
}
"""


def torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")  # which does not import it
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def obstacle() -> str | None:
    """Why there can be no fake device here, or None."""
    if (torch_folder() / "lib" / "libtorch_cuda.so").exists():
        return "this torch is built for CUDA: pytest -m gpu"
    if sys.platform != "linux" or shutil.which("g++") is None:
        return "the fake device needs g++ on Linux"
    return None


def load_guard(folder: str) -> None:
    """Compiles GUARD in this folder and loads it. torch must not be imported yet."""
    source, library, torch_files = (
        Path(folder, "guard.cpp"),
        Path(folder, "guard.so"),
        torch_folder(),
    )
    source.write_text(GUARD)
    command = ["g++", "-std=c++20", "-shared", "-fPIC", "-O0", str(source), "-o", str(library)]
    command += [f"-I{torch_files}/include", f"-L{torch_files}/lib", "-lc10", "-ltorch_cpu"]
    subprocess.run([*command, f"-Wl,-rpath,{torch_files}/lib"], check=True)
    ctypes.CDLL(str(library))
