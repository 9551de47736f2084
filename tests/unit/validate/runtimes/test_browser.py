"""The runtime in a browser, as far as it goes without one."""

from __future__ import annotations

import pytest

from mixport.records.errors import RuntimeUnavailableError
from mixport.validate.runtimes import browser


def test_without_a_browser_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser, "find_program", lambda *names: None)
    with pytest.raises(
        RuntimeUnavailableError, match=(r"runtime wasm-chromium@1\.29\.0 " r"cannot run: no chromium")
    ) as caught:
        browser.open_chromium("1.29.0")
    assert caught.value.hint == "apt-get install chromium"


def test_the_browser_opens_the_page_in_a_profile_of_its_own() -> None:
    words = browser._command("/usr/bin/chromium", "/tmp/profile", "http://127.0.0.1:1/page.html")
    assert words[0] == "/usr/bin/chromium"
    assert words[-1] == "http://127.0.0.1:1/page.html"
    assert "--user-data-dir=/tmp/profile" in words
