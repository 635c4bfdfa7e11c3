#!/usr/bin/env python3
"""Installs the etcd that the tests of the shared store run against, beside libtorch: Debian's package, unpacked, without root.

`apt-get download` fetches the pinned package (apt checks it against the archive's signed list, this script against its own
SHA-256) and `dpkg-deb -x` unpacks it. Run again it does nothing. On a system without the package, or without apt, it says so:
LLM2CLIP_ETCD names another etcd (3.4 or newer) for the tests, and without one they are skipped.
"""
import hashlib
import os
import shutil
import subprocess

from place import CACHE, fail, link, making, say

# By Debian's release: version and SHA-256 of etcd-server for amd64.
PACKAGES = {
    "3.4.23-4+b4": "3a9445d4560ad6de1c375756b2a17d97713df44cbd20a658c871fe108af7ef5d",
}
NAME = "etcd-server"
OTHERWISE = "Set LLM2CLIP_ETCD to an etcd (3.4 or newer) of your own; without one the tests of the shared store are skipped."


def candidates():
    """Versions of the package that this system's archives offer."""
    listed = subprocess.run(["apt-cache", "madison", NAME], capture_output=True, text=True)
    return [line.split("|")[1].strip() for line in listed.stdout.splitlines() if line.count("|") >= 2]


def download(folder):
    """Downloads the pinned package into `folder` and returns its path."""
    offered = candidates()
    version = next((version for version in offered if version in PACKAGES), None)
    if version is None:
        found = f"offers {', '.join(offered)}" if offered else "offers none (is `apt-get update` due?)"
        fail(f"the tests are pinned to {NAME} {' or '.join(PACKAGES)} of Debian, and this system {found}. {OTHERWISE}")
    say(f"downloading {NAME} {version}, the etcd of the tests (8 MB)")
    # apt warns of a folder that its own user cannot enter, and goes on; its errors come with a status.
    done = subprocess.run(["apt-get", "download", "-qq", f"{NAME}={version}"], cwd=folder, stderr=subprocess.PIPE, text=True)
    package = next(folder.glob("*.deb"), None)
    if done.returncode != 0 or package is None:
        fail(f"apt-get could not download {NAME} {version}: {done.stderr.strip()}. Is this machine online? {OTHERWISE}")
    found = hashlib.sha256(package.read_bytes()).hexdigest()
    if found != PACKAGES[version]:
        fail(f"{package.name} has SHA-256 {found}, expected {PACKAGES[version]}. {OTHERWISE}")
    return package


def main():
    target = CACHE / "etcd-3.4.23"
    if os.environ.get("LLM2CLIP_ETCD"):
        return
    if not target.exists():
        for program in ("apt-get", "apt-cache", "dpkg-deb"):
            if shutil.which(program) is None:
                fail(f"{program} is not in PATH; the etcd of the tests is a Debian package. {OTHERWISE}")
        with making(target) as temporary:
            package = download(temporary)
            if subprocess.run(["dpkg-deb", "-x", str(package), str(temporary / "tree")]).returncode != 0:
                fail(f"dpkg-deb could not unpack {package.name} (its message is above). {OTHERWISE}")
            (temporary / "built/bin").mkdir(parents=True)
            (temporary / "tree/usr/bin/etcd").rename(temporary / "built/bin/etcd")
    link()


if __name__ == "__main__":
    main()
