"""A headless Chromium: the system's, or Debian's package that `make browser` has unpacked under build/."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

_UNPACKED = Path(__file__).parents[2] / "build" / "chromium" / "usr"


def found() -> tuple[str, str] | None:
    """Chromium and its driver, or None."""
    unpacked = _UNPACKED / "lib" / "chromium" / "chromium", _UNPACKED / "bin" / "chromedriver"
    if all(path.exists() for path in unpacked):
        return str(unpacked[0]), str(unpacked[1])
    system = shutil.which("chromium"), shutil.which("chromedriver")
    return (system[0], system[1]) if system[0] and system[1] else None


@contextmanager
def chromium(profile: Path) -> Iterator[webdriver.Chrome]:
    """A browser with a profile of its own; nothing it asks leaves this machine."""
    programs = found()
    assert programs is not None
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server"]
    for argument in [
        *arguments,
        f"--user-data-dir={profile}",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    libraries = _UNPACKED / "lib" / "x86_64-linux-gnu"
    paths = [str(libraries), str(libraries / "pulseaudio"), os.environ.get("LD_LIBRARY_PATH", "")]
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, paths)), "HOME": str(profile)}
    driver = webdriver.Chrome(options, Service(programs[1], env=environment))
    try:
        yield driver
    finally:
        driver.quit()
