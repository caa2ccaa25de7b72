"""What MLflow's page shows of recorded runs, read in a browser: no page documents the tag of the table's view."""

import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from finished_result import write_result
from settings import read_params

from pipeline.track import stage

pytestmark = pytest.mark.long
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
WAIT = 60_000  # milliseconds for a page of a busy machine


def track(project: Path, number: int, **changes: Any) -> None:
    write_result(project, seed=number, model_hash=f"{number:04}")
    stage.run(read_params({**changes, "track": {"log_model": False}}))


@pytest.fixture
def served(project: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[str]:
    """The address that `track` printed, with a server behind it."""
    track(project, 1)
    track(project, 2, seed=7)
    track(project, 3, strategy="rastp", dataset="custom", ingest={"path": "../shared/beauty"})
    (printed,) = set(re.findall(r"then open (\S+)", capsys.readouterr().out))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", f"sqlite:///{store}", "--port", str(port)]
    with (project / "server.log").open("w") as log:
        server = subprocess.Popen(command, cwd=project, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            time.sleep(0.5)
        yield printed.replace(":5000", f":{port}")
    finally:
        subprocess.run(["kill", "--", f"-{server.pid}"], check=False)
        server.wait(30)


@pytest.fixture
def page() -> Iterator[Any]:
    """A page of a browser without a screen."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
    if not BROWSER:
        pytest.skip("no chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 2400, "height": 900})
        browser.close()


def test_the_printed_address_opens_the_comparison(served: str, page: Any, tmp_path: Path) -> None:
    page.goto(served, timeout=WAIT)
    page.get_by_text("full t5 demo, 2 seeds").first.wait_for(timeout=WAIT)
    heads = [head.inner_text() for head in page.locator(".ag-header-cell").all()]
    page.screenshot(path=str(tmp_path / "table.png"))
    words = ("strategy", "backbone", "data", "test/recall_at_10", "test/ndcg_at_10", "train_seconds", "windows_per")
    assert not [word for word in words if word not in " ".join(heads)], heads
    assert page.get_by_text("rastp t5 beauty s42").count()
    assert not page.get_by_text("Judges").count(), "the page is in the mode for trained models"
    cells = page.locator('.ag-center-cols-container [col-id*="recall_at_10"]').all()
    values = [float(cell.inner_text()) for cell in cells if cell.inner_text().strip("- ")]
    assert values, "the table has values"
    assert values == sorted(values, reverse=True), "the best run comes first"
    # The page of one run has the description, its picture included.
    page.get_by_text("full t5 demo s42").first.click()
    page.get_by_text("Show more").first.click(timeout=WAIT)
    page.locator("img[src*='curve.svg']").wait_for(timeout=WAIT)
    page.wait_for_function("() => document.querySelector(\"img[src*='curve.svg']\").naturalWidth > 0", timeout=WAIT)
    assert page.get_by_text("co-occurrence").count()
    page.screenshot(path=str(tmp_path / "run.png"))
