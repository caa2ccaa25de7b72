"""The documentation as a site: it builds without a warning, asks nothing of the network, and a browser shows it."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytestmark = pytest.mark.long
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Element -> its attributes whose file a browser fetches when it shows the page
FETCHED = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "iframe": ("src",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
    "audio": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "link": ("href",),
}
UNFETCHED_LINKS = {"canonical", "prev", "next"}  # addresses of pages


class Page(HTMLParser):
    """fetched: what the page loads. links: where its anchors lead. ids: where an anchor may lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag != "link" or values.get("rel") not in UNFETCHED_LINKS:
            self.fetched += [values[name] for name in FETCHED.get(tag, ()) if name in values]


@pytest.fixture(scope="module")
def site(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    pytest.importorskip("mkdocs", reason="no mkdocs: make setup-docs")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING -" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


def test_every_page_of_the_navigation_is_there(site: Path, pages: dict[Path, Page], root: Path) -> None:
    names = {path.relative_to(site).with_suffix("").as_posix() for path in pages}
    assert names >= {"index", "first_run", "reading", "glossary", "architecture", "changelog", "contributing"}
    folders = {path.name for path in (root / "pipeline").iterdir() if (path / "__init__.py").is_file()}
    assert {name.removeprefix("api/") for name in names if name.startswith("api/")} == {"pipeline", *folders}


def test_a_page_fetches_nothing_from_elsewhere(pages: dict[Path, Page]) -> None:
    foreign = {url for page in pages.values() for url in page.fetched if re.match(r"(https?:)?//", url)}
    assert not foreign


def test_style_sheets_fetch_nothing_from_elsewhere(site: Path) -> None:
    foreign = [
        f"{path.name}: {match}"
        for path in site.rglob("*.css")
        for match in re.findall(r"""(?:url\(|@import\s)\s*["']?((?:https?:)?//[^)"']+)""", path.read_text())
    ]
    assert not foreign


def test_links_and_files_within_the_site_are_there(site: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for url in (*page.links, *page.fetched):
            parts = urlsplit(url)
            if parts.scheme or parts.netloc or path.name == "404.html":  # whose addresses begin at the server's root
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            known = pages.get(target)
            if not target.exists() or (known and parts.fragment and unquote(parts.fragment) not in known.ids):
                broken.append(f"{path.relative_to(site)}: {url}")
    assert not broken


def test_the_tutorial_shows_all_of_its_code(site: Path, root: Path) -> None:
    text = re.sub(r"<[^>]+>", "", (site / "first_run.html").read_text(encoding="utf-8"))
    code = [line for line in (root / "examples/first_run.py").read_text().splitlines() if line.startswith("import ")]
    assert all(line in text for line in code)


@pytest.mark.parametrize("name", ["index", "first_run", "architecture", "results", "api/ops"])
def test_a_browser_shows_the_page_from_the_disk(site: Path, name: str, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no browser: none of " + ", ".join(BROWSERS))
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=5000",
            "--dump-dom",
            (site / f"{name}.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "<h1" in done.stdout
    assert 'data-md-component="search-result"' in done.stdout, "the script of the theme ran"
