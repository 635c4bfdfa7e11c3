"""Where the scripts beside this one put what they fetch, and how: whole or not at all."""
import contextlib
import os
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
CACHE = pathlib.Path(os.environ.get("LLM2CLIP_DEPS", pathlib.Path.home() / ".cache/llm2clip/deps-1"))


def say(text):
    print(f"setup: {text}", flush=True)


def fail(text):
    sys.exit(f"setup: error: {text}")


@contextlib.contextmanager
def making(target):
    """A temporary folder beside `target`, in which its sub-folder `built` is made; that gets the target's name when all went well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as temporary:
        temporary = pathlib.Path(temporary)
        yield temporary
        try:
            (temporary / "built").rename(target)
        except OSError:
            if not target.exists():  # another checkout won the race with the same content
                raise


def link():
    """Makes `.deps` of this checkout lead there."""
    path = ROOT / ".deps"
    if not path.is_symlink() and path.exists():
        fail(f"{path} is in the way: remove it and try again.")
    if not path.is_symlink() or os.readlink(path) != str(CACHE):
        path.unlink(missing_ok=True)
        path.symlink_to(CACHE)
