"""The page in a real browser, where one is installed (Debian: apt install chromium)."""

import json
import re
import shutil
import subprocess

import pytest

from tests.commands.running import TINY

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
PRESS = """
<script>
addEventListener("load", () => {
  const table = document.querySelector("table");
  const order = () => [...table.tBodies[0].rows].map(row => row.cells[1].textContent).join("|");
  const seen = [order()];
  for (const place of [1, 1, 0]) {
    const button = table.querySelectorAll("th button")[place];
    button.focus();
    button.click();
    seen.push(order());
  }
  const wide = document.documentElement.scrollWidth > innerWidth;
  const headings = [...document.querySelectorAll("h2")].map(one => one.textContent);
  const images = [...document.images].every(one => one.alt);
  document.title = JSON.stringify({seen, wide, headings, images, focused: document.activeElement.tagName});
});
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    from crossdistill.cli import main

    out = tmp_path_factory.mktemp("browsed") / "out"
    words = ["compare", *TINY, "--methods", "none,kd,rsd", "--teacher", "test_resnet", "--seeds", "0"]
    words += ["--trust-teacher", "true", "--teacher-training", '{"epochs": 2}', "--epochs", "1", "--out", out]
    assert main([str(word) for word in (*words, "--inspect", "true")]) == 0
    return out / "report.html"


def browse(page, *words):
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=5000", *words, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_sorts_by_keyboard_and_fits(page, tmp_path, width):
    pressed = tmp_path / "pressed.html"
    pressed.write_text(page.read_text().replace("</body>", PRESS + "</body>"))
    shown = browse(pressed, "--dump-dom", f"--window-size={width},2000")
    assert "CONSOLE" not in shown.stderr
    title = re.search(r"<title>(.*?)</title>", shown.stdout).group(1)
    found = json.loads(title.replace("&amp;", "&").replace("&quot;", '"'))
    first, falling, rising, named = (order.split("|") for order in found["seen"])
    values = [float(value) for value in falling]
    assert values == sorted(values, reverse=True)
    assert rising == falling[::-1] or sorted(map(float, rising)) == [float(value) for value in rising]
    assert sorted(first) == sorted(named)
    assert found["focused"] == "BUTTON"
    assert found["images"]
    assert not found["wide"]
    assert {"Comparison", "Methods", "Student and teacher", "What the student confuses most"} <= set(found["headings"])
    assert sum("How alike the layers" in heading for heading in found["headings"]) == 2
