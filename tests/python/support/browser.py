"""A headless Chromium that tests drive, and which reaches nothing but this machine."""

import base64
import pathlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

WAIT_SECONDS = 30


def missing() -> str | None:
    """What is not installed here; None if browser tests can run."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "the package selenium is not installed"
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            return f"{program} is not installed (`make browser` installs it where it can)"
    return None


class Browser:
    """A browser with one tab."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str, width: int = 1280, height: int = 900) -> None:
        """Opens a page afresh, with nothing kept of an earlier one, in a window of this size in CSS pixels."""
        self.command("Network.setCacheDisabled", cacheDisabled=True)
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.prefer("light")
        self.driver.get("about:blank")
        self.driver.get(url)
        self.driver.execute_script("sessionStorage.clear(); localStorage.clear()")
        self.driver.get("about:blank")
        self.driver.get(url)

    def prefer(self, scheme: str) -> None:
        """Sets the system's color scheme, `light` or `dark`."""
        self.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def command(self, name: str, **arguments: Any) -> Any:
        """A command of Chromium's DevTools protocol."""
        return self.driver.execute_cdp_cmd(name, arguments)

    def find(self, selector: str) -> Any:
        """The element of a CSS selector; waits until there is one."""
        return self.wait(lambda: next(iter(self.all(selector)), None), selector)

    def all(self, selector: str) -> list[Any]:
        """The elements of a CSS selector."""
        return self.driver.find_elements("css selector", selector)

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of a JavaScript function's body, which may await."""
        body = f"const [resolve] = [...arguments].slice(-1); (async (...args) => {{ {script} }})(...arguments)"
        outcome = self.driver.execute_async_script(
            f"{body}.then((value) => resolve({{ value }}), (error) => resolve({{ error: String(error.stack) }}))",
            *arguments,
        )
        assert "error" not in outcome, outcome["error"]
        return outcome["value"]

    def wait(self, condition: Callable[[], Any], what: str = "condition") -> Any:
        """Waits until a condition holds, and returns its value."""
        from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
        from selenium.webdriver.support.ui import WebDriverWait

        waiting = WebDriverWait(self.driver, WAIT_SECONDS, 0.05, (StaleElementReferenceException,))
        try:
            return waiting.until(lambda _: condition())
        except TimeoutException:
            text = self.driver.find_element("css selector", "body").text
            raise AssertionError(f"{what} did not happen within {WAIT_SECONDS} s; the page says:\n{text}") from None

    def type(self, *keys: str) -> None:
        """Presses keys, wherever the focus is."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def chord(self, modifier: str, key: str) -> None:
        """Presses a key while another is held."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).key_down(modifier).send_keys(key).key_up(modifier).perform()

    def complaints(self) -> list[str]:
        """Exceptions and breaches of the page's policy since the last call. A response with an error is none."""
        messages = [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
        return [message for message in messages if "Failed to load resource" not in message]

    def screenshot(self, path: pathlib.Path) -> None:
        """The whole page as a PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        size = self.command("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        path.write_bytes(
            base64.b64decode(self.command("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"])
        )


@contextmanager
def headless_chromium(profile: pathlib.Path) -> Iterator[Browser]:
    """Starts Chromium with its profile in a folder, and ends it."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "SEVERE"})
    for argument in (
        "--headless=new",
        "--no-sandbox",  # which doesn't start for root
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-extensions",
        "--disable-sync",
        "--hide-scrollbars",
        "--no-first-run",
        "--no-proxy-server",
        "--force-color-profile=srgb",
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        driver.set_script_timeout(WAIT_SECONDS)
        yield Browser(driver)
    finally:
        driver.quit()
