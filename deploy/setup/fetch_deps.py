#!/usr/bin/env python3
"""Fetches what the build needs and Cargo cannot bring: libtorch (headers and CPU libraries) and cmake.

Everything comes from the Python package index as pip is set up on this machine, pinned by version and SHA-256, and lands
in one folder that all checkouts share (LLM2CLIP_DEPS, by default ~/.cache/llm2clip/deps-1). `.deps` in the checkout links to it.
Run again it does nothing; interrupted, it goes on with the packages that are missing.

An own libtorch is honoured: set LIBTORCH to its folder (the one with lib/ and include/) and nothing but cmake is fetched.

With --cuda it also fetches libtorch's CUDA half and NVIDIA's libraries, 2.6 GB, for machines with a GPU and no PyTorch of
their own. Trainers find it without being built again.
"""
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

from place import CACHE, fail, link, making, say

# name, version, SHA-256 of the manylinux x86_64 wheel, bytes, bytes once unpacked
TORCH = ("torch", "2.11.0", "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a", 530_604_548, 520_000_000)
CUDART = ("nvidia-cuda-runtime", "13.0.96", "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548", 2_243_632, 1_000_000)
CUPTI = ("nvidia-cuda-cupti", "13.0.85", "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8", 10_715_597, 5_000_000)
CMAKE = ("cmake", "4.1.2", "7587a2b2ce48df1fd68a68657b6c5a711b467c346812e46dfb9cd996cd6e2352", 29_000_000, 80_000_000)

# What libtorch_cuda.so needs beside the driver, for `--cuda`: name, version, SHA-256 of the wheel.
CUDA = [
    ("nvidia-cublas", "13.1.0.3", "ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171"),
    ("nvidia-cuda-cupti", "13.0.85", "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8"),
    ("nvidia-cuda-nvrtc", "13.0.88", "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575"),
    ("nvidia-cuda-runtime", "13.0.96", "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548"),
    ("nvidia-cudnn-cu13", "9.19.0.56", "d20e1734305e9d68889a96e3f35094d733ff1f83932ebe462753973e53a572bf"),
    ("nvidia-cufft", "12.0.0.61", "6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3"),
    ("nvidia-cufile", "1.15.1.6", "08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44"),
    ("nvidia-curand", "10.4.0.35", "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc"),
    ("nvidia-cusolver", "12.0.4.66", "0a759da5dea5c0ea10fd307de75cdeb59e7ea4fcb8add0924859b944babf1112"),
    ("nvidia-cusparse", "12.6.3.3", "2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b"),
    ("nvidia-cusparselt-cu13", "0.8.0", "25e30a8a7323935d4ad0340b95a0b69926eee755767e8e0b1cf8dd85b197d3fd"),
    ("nvidia-nccl-cu13", "2.28.9", "e4553a30f34195f3fa1da02a6da3d6337d28f2003943aa0a3d247bbc25fefc42"),
    ("nvidia-nvjitlink", "13.0.88", "13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b"),
    ("nvidia-nvshmem-cu13", "3.4.5", "290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80"),
    ("nvidia-nvtx", "13.0.85", "4936d1d6780fbe68db454f5e72a42ff64d1fd6397df9f363ae786930fd5c1cd4"),
]
# All of them and torch itself, once unpacked, and what pip keeps meanwhile.
CUDA_BYTES = 8_000_000_000

# libtorch_cpu.so needs these; everything CUDA stays out (a GPU machine brings its own, see README).
TORCH_LIBRARIES = {"torch/lib/libtorch_cpu.so", "torch/lib/libc10.so", "torch/lib/libgomp.so.1"}


# Wheels for this kind of machine, whatever Python runs this script.
PLATFORM = ["--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp", "--platform", "manylinux_2_28_x86_64",
            "--platform", "manylinux_2_27_x86_64", "--platform", "manylinux_2_25_x86_64", "--platform", "manylinux_2_18_x86_64",
            "--platform", "manylinux_2_17_x86_64", "--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_12_x86_64",
            "--platform", "manylinux2010_x86_64", "--platform", "manylinux_2_5_x86_64", "--platform", "manylinux1_x86_64"]


def download(package, folder):
    """Downloads the pinned wheel of `package` with pip (its progress bar shows) and returns its path."""
    name, version, digest, size, unpacked = package
    free = shutil.disk_usage(folder).free
    if free < size + unpacked + 100_000_000:
        fail(f"{name} {version} needs {(size + unpacked) // 2**20 + 100} MiB in {folder}, and {free // 2**20} MiB are free. "
             f"Free some space, or set LLM2CLIP_DEPS to a folder on a larger disk.")
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{name}=={version} --hash=sha256:{digest}\n")
    say(f"downloading {name} {version} ({size / 2**20:.0f} MiB)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", *PLATFORM,
               "--require-hashes", "--dest", str(folder), "-r", str(requirement)]
    if sys.stderr.isatty():
        command.remove("--quiet")
    if subprocess.run(command).returncode != 0:
        fail(f"pip could not download {name}=={version} (its message is above). Is this machine online, and is pip set up for your package index? "
             f"Run the same command again afterwards: finished packages are kept. With a libtorch 2.11.0 of your own, set LIBTORCH instead.")
    wheel = next(folder.glob("*.whl"))
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != digest:
        fail(f"{wheel.name} has SHA-256 {found}, expected {digest}: remove pip's cache (`pip cache purge`) and try again.")
    return wheel


def install(target, packages, unpack):
    """Builds `target` in a temporary folder beside it and renames it into place, so that it is there whole or not at all."""
    if target.exists():
        return
    with making(target) as temporary:
        built = temporary / "built"
        built.mkdir()
        for package in packages:
            folder = temporary / package[0]
            folder.mkdir()
            wheel = download(package, folder)
            say(f"unpacking {package[0]}")
            with zipfile.ZipFile(wheel) as archive:
                unpack(archive, built)
            wheel.unlink()


def extract(archive, member, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, open(path, "wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)


def unpack_libtorch(archive, built):
    for member in archive.infolist():
        name = member.filename
        if name.startswith("torch/include/") and not member.is_dir():
            extract(archive, member, built / name.removeprefix("torch/"))
        elif name in TORCH_LIBRARIES:
            extract(archive, member, built / "lib" / pathlib.PurePath(name).name)
        elif pathlib.PurePath(name).name in ("libcudart.so.13", "libcupti.so.13"):
            extract(archive, member, built / "lib" / pathlib.PurePath(name).name)
    link = built / "lib/libtorch.so"
    if (built / "lib/libtorch_cpu.so").exists() and not link.is_symlink():
        link.symlink_to("libtorch_cpu.so")
        (built / "build-version").write_text(TORCH[1] + "\n")


def unpack_cmake(archive, built):
    for member in archive.infolist():
        name = member.filename
        if name.startswith("cmake/data/") and not member.is_dir():
            path = built / name.removeprefix("cmake/data/")
            extract(archive, member, path)
            if path.parent.name == "bin":
                path.chmod(0o755)


def install_cuda(target):
    """Installs torch and NVIDIA's libraries side by side, as libtorch_cuda.so looks for them."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < CUDA_BYTES:
        fail(f"CUDA's libraries need {CUDA_BYTES // 2**20} MiB in {target.parent}, and {free // 2**20} MiB are free. "
             f"Free some space, or set LLM2CLIP_DEPS to a folder on a larger disk.")
    with making(target) as temporary:
        pinned = [TORCH[:3], *CUDA]
        requirements = temporary / "requirements.txt"
        requirements.write_text("".join(f"{name}=={version} --hash=sha256:{digest}\n" for name, version, digest in pinned))
        say(f"downloading torch {TORCH[1]} and {len(CUDA)} libraries of CUDA 13 (2.6 GB)")
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", *PLATFORM,
                   "--no-compile", "--require-hashes", "--target", str(temporary / "built"), "-r", str(requirements)]
        if not sys.stderr.isatty():
            command.append("--quiet")
        if subprocess.run(command).returncode != 0:
            fail("pip could not install CUDA's libraries (its message is above). Is this machine online? Run the same command again afterwards.")


def main():
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        fail("the pinned libtorch is for Linux on x86_64. On another platform set LIBTORCH to a libtorch 2.11.0 of your own.")
    own = os.environ.get("LIBTORCH")
    if own and not (pathlib.Path(own) / "lib").is_dir():
        fail(f"LIBTORCH is set to {own}, which has no lib/ folder. Point it at a libtorch 2.11.0 (the folder with lib/ and include/), or unset it.")
    if not own:
        install(CACHE / "libtorch-2.11.0", [CUDART, CUPTI, TORCH], unpack_libtorch)
    install(CACHE / "cmake-4.1.2", [CMAKE], unpack_cmake)
    if "--cuda" in sys.argv[1:]:
        install_cuda(CACHE / f"libtorch-cuda-{TORCH[1]}")
        say(f"CUDA's libraries are in {CACHE / f'libtorch-cuda-{TORCH[1]}'}; trainers on a machine with a GPU use them from now on")
    link()
    if shutil.which("nasm") is None:
        say("nasm not found: libjpeg-turbo will be built without SIMD, and image decoding will be about three times slower. "
            "`apt-get install nasm` (or your system's equivalent) before the first build mends that.")


if __name__ == "__main__":
    main()
