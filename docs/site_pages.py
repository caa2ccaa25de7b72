"""What `mkdocs build` adds to docs/: the README as the home page, the tutorial, and a page of the API per folder.

Links in pages lead to files of the repository, as on the forge; here they become links between pages of the site.
"""

import os
import posixpath
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# Page of the site -> file of the repository that it shows
SHOWN = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "first_run.md": "examples/first_run.py",
}
LINK = re.compile(r"\[([^\]]+)\]\(([^)#:\s]+)(#[^)\s]+)?\)")  # and of an image, too
CELL = re.compile(r"^# %%[^\n]*\n", re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages of the API to the navigation."""
    assert config.nav is not None
    config.nav.append({"API": [{Path(name).stem: name} for name in api_pages()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that docs/ does not hold."""
    made = {page: (ROOT / source).read_text(encoding="utf-8") for page, source in SHOWN.items()}
    made["first_run.md"] = prose_and_code(made["first_run.md"])
    for name, content in (made | api_pages()).items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: object) -> str:
    """Lead each link to the page that shows the file; the link to a file that no page shows becomes plain text."""
    name = page.file.src_uri
    folder = posixpath.dirname(SHOWN.get(name, f"docs/{name}"))

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match[1], posixpath.normpath(posixpath.join(folder, match[2])), match[3] or ""
        found, heading = page_of(target)
        if files.get_file_from_path(found) is None:
            return text
        return f"[{text}]({posixpath.relpath(found, posixpath.dirname(name) or '.')}{anchor or heading})"

    return LINK.sub(link, markdown)


def page_of(target: str) -> tuple[str, str]:
    """The page, and the heading on it, that shows a file of the repository."""
    for page, source in SHOWN.items():
        if target == source:
            return page, ""
    parts = PurePosixPath(target).with_suffix("").parts
    if parts[0] == "pipeline" and len(parts) > 1:
        return f"api/{parts[1] if len(parts) > 2 else 'pipeline'}.md", f"#{'.'.join(parts)}"
    return target.removeprefix("docs/"), ""


def api_pages() -> dict[str, str]:
    """Page -> Markdown: for every folder of pipeline/ its modules, in the order of their paths."""
    modules: dict[str, list[str]] = {}
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        folder = parts[1] if len(parts) > 2 else "pipeline"
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if not parts[-1].startswith("_"):
            modules.setdefault(folder, []).append(".".join(parts))
    return {
        f"api/{folder}.md": f"# {folder}\n\n" + "\n\n".join(f"::: {module}" for module in names) + "\n"
        for folder, names in sorted(modules.items(), key=lambda pair: (pair[0] != "pipeline", pair[0]))
    }


def prose_and_code(source: str) -> str:
    """A script with `# %%` cells as a page: comments that open a cell are its prose, the rest its code."""
    title, *cells = CELL.split(source)
    parts = [title.strip().strip('"').strip()]
    for cell in cells:
        lines = cell.strip("\n").splitlines()
        prose = next((at for at, line in enumerate(lines) if not line.startswith("#")), len(lines))
        parts.append("\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:prose]))
        if code := "\n".join(lines[prose:]).strip("\n"):
            parts.append(f"```python\n{code}\n```")
    return "\n\n".join(parts) + os.linesep
