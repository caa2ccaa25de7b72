"""What MLflow's page shows of recorded runs, read in a browser: no page documents the tag of the table's view."""

import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from finished_result import write_result
from patience import answers, wait_until
from settings import read_params

from pipeline.results.live import Live
from pipeline.results.parameters import flatten
from pipeline.results.run_names import RunName
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
        health, said = f"http://127.0.0.1:{port}/health", (project / "server.log").read_text
        wait_until(lambda: answers(health), "the server does not answer", look=0.5, alive=server, output=said)
        yield printed.replace(":5000", f":{port}")
    finally:
        for how in ("-TERM", "-KILL"):  # a page that is open may hold the server
            subprocess.run(["kill", how, "--", f"-{server.pid}"], check=False)
            with suppress(subprocess.TimeoutExpired):
                server.wait(30)
                break


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


SECTIONS = ("test", "valid", "train", "cost", "baseline")


def test_charts_stand_in_sections(served: str, page: Any, tmp_path: Path) -> None:
    """The second look at the table of runs: each section of metrics under its own heading, with charts of all runs."""
    page.goto(served.replace("/runs?", "/runs?compareRunsMode=CHART&"), timeout=WAIT)
    for section in SECTIONS:
        page.get_by_text(re.compile(rf"^{section}\s*\(\d+\)$")).first.wait_for(timeout=WAIT)
    page.get_by_text("baseline/cooccurrence_recall_at_10").first.wait_for(timeout=WAIT)
    page.locator(".js-plotly-plot").first.wait_for(timeout=WAIT)
    page.screenshot(path=str(tmp_path / "charts.png"))


def test_a_training_that_goes_on_shows_its_points(served: str, page: Any, store: Path, tmp_path: Path) -> None:
    flat = flatten(params := read_params({}))
    watched = Live(flat, RunName.of(flat, params.strategies), "sidpipe")
    running = "select experiment_id, run_uuid from runs where status = 'RUNNING'"
    seen = "select count(*) from metrics where key = 'valid/recall_at_10' and run_uuid = ?"
    found: list[Any] = []

    def points_are_there() -> bool:
        with closing(sqlite3.connect(store)) as database:
            found[:] = database.execute(running).fetchall()
            return bool(found) and database.execute(seen, (found[0][1],)).fetchone() == (3,)

    with watched:
        watched.begin("feed0123feed0123", time.time())
        for step in (200, 400, 600):
            numbers = {"train_loss": 9 - step / 200, "valid_loss": 8 - step / 300, "recall_at_10": step / 20000}
            watched.point({"step": step, "windows": step, "ndcg_at_10": step / 40000, **numbers}, time.time())
        wait_until(points_are_there, "the run has no three points", look=0.5)
        assert len(found) == 1, "one run is going on"
        experiment, run = found[0]
        page.goto(f"{served.partition('/#')[0]}/#/experiments/{experiment}/runs/{run}/model-metrics", timeout=WAIT)
        for name in ("valid/recall_at_10", "train/loss"):
            page.get_by_text(name).first.wait_for(timeout=2 * WAIT)
        page.locator(".js-plotly-plot .point, .js-plotly-plot .js-line").first.wait_for(state="attached", timeout=WAIT)
        page.screenshot(path=str(tmp_path / "live.png"))
        with closing(sqlite3.connect(store)) as database:
            assert database.execute(running).fetchall() == found, "training goes on"
