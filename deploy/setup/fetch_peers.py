#!/usr/bin/env python3
"""Installs the Python libraries that exports are checked in (transformers, open_clip, timm, peft), pinned, beside libtorch.

One environment that all checkouts share: `.deps/peers-1`. tests/tests/export.rs finds it there; LLM2CLIP_PYTHON names another
Python that has the libraries. Run again it does nothing. About 6 GB: PyTorch from the package index comes with its CUDA half;
set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU wheels, where it can be reached, for a fifth of that.
"""
import pathlib
import shutil
import subprocess
import sys
import tempfile

from place import CACHE, fail, link, say

NAME = "peers-1"
PACKAGES = ["torch==2.11.0", "torchvision==0.26.0", "transformers==4.57.6", "open_clip_torch==3.3.0", "timm==1.0.31", "peft==0.21.2",
            "safetensors==0.8.0"]
BYTES = 8_000_000_000


def main():
    target = CACHE / NAME
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if free < BYTES:
            fail(f"the libraries need {BYTES // 2**20} MiB in {target.parent}, and {free // 2**20} MiB are free.")
        say(f"installing {', '.join(PACKAGES)}")
        # An environment cannot be moved: what makes it whole is the name, given last.
        folder = pathlib.Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{NAME}-"))
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "--disable-pip-version-check", *PACKAGES]
        if not sys.stderr.isatty():
            pip.append("--quiet")
        made = subprocess.run([sys.executable, "-m", "venv", str(folder)]).returncode
        if made != 0 or subprocess.run(pip).returncode != 0:
            shutil.rmtree(folder)
            fail("the libraries could not be installed (the message is above). Is this machine online, and is pip set up for your package index?")
        try:
            target.symlink_to(folder.name)
        except FileExistsError:  # another checkout won the race
            shutil.rmtree(folder)
    link()


if __name__ == "__main__":
    main()
