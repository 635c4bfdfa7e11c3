#!/usr/bin/env python3
"""Installs the S3 server that the tests of object storage run against: s3s-fs, built by cargo, beside libtorch.

It is the file-system server of s3s, whose protocol half (signatures, ranges, conditional writes, listings in pages, multipart)
RustFS serves its users with. Pinned by version; cargo checks the archive against the registry's hash and, with --locked, every
dependency against the hashes in the crate's own Cargo.lock. Built without optimisation beyond -O1 and without LTO it is there in
about a minute on two cores. Run again it does nothing. LLM2CLIP_S3_SERVER names another binary of it for the tests.
"""
import os
import shutil
import subprocess
import sys

from place import CACHE, fail, link, making, say

VERSION = "0.14.1"  # the newest that the toolchain's Rust (1.95) builds; 0.15 asks for 1.96
QUICK = {"CARGO_PROFILE_RELEASE_LTO": "off", "CARGO_PROFILE_RELEASE_OPT_LEVEL": "1", "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16"}


def main():
    target = CACHE / f"s3s-fs-{VERSION}"
    if not target.exists():
        if shutil.which("cargo") is None:
            fail("cargo is not in PATH; the S3 server for the tests is built with it.")
        say(f"building s3s-fs {VERSION}, the S3 server of the tests (about a minute)")
        with making(target) as temporary:
            command = ["cargo", "install", "s3s-fs", "--version", f"={VERSION}", "--features", "binary", "--locked", "--no-track",
                       "--root", str(temporary / "built")]
            if not sys.stderr.isatty():
                command.append("--quiet")
            environment = {**os.environ, **QUICK, "CARGO_TARGET_DIR": str(temporary / "target")}
            if subprocess.run(command, env=environment, cwd=temporary).returncode != 0:
                fail(f"cargo could not build s3s-fs {VERSION} (its message is above). Is this machine online? Run the same command again afterwards.")
    link()


if __name__ == "__main__":
    main()
