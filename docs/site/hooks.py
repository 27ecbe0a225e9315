"""What MkDocs does not do by itself: pages out of files that live elsewhere in the repository, and formulas as MathML.

Results, changelog and contributing guide are read when the site is built, so there is no second copy to keep true.
"""

import html
import re
from pathlib import Path
from typing import Any

import latex2mathml.converter
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
PAGES = {"changelog.md": ROOT / "CHANGELOG.md", "contributing.md": ROOT / "CONTRIBUTING.md"}
DOWNLOADS = {
    **{f"notebooks/{path.name}": path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))},
    **{f"schemas/{path.name}": path for path in sorted((ROOT / "jax_advtrain").rglob("*.schema.json"))},
}
# Links that are right in the repository, and what they are on the site; the rest of the path says which file.
LINKS = (
    (re.compile(r"\]\((?:\.\./)*docs/([^)]*)\)"), "docs"),
    (re.compile(r"\]\((?:\.\./)*benchmarks/results/([^)]*)\)"), "results"),
    (re.compile(r"\]\((?:\.\./)*notebooks/([^)]*)\)"), "notebooks"),
    (re.compile(r"\]\((?:\.\./)*jax_advtrain/[^)]*?([a-z]*\.schema\.json)\)"), "schemas"),
)
PLACES = {"docs": "", "results": "results/", "notebooks": "notebooks/", "schemas": "schemas/"}
LIST_AFTER_TEXT = re.compile(r"^((?!- |\d+\. |\||#| )\S.*)\n(- )", re.MULTILINE)
LETTER, PRIME = r"(<mi>\w</mi>)", "&#x02032;"
PRIMED = f'<mo lspace="0" rspace="0">{PRIME}</mo>'
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated pages and the files to download."""
    texts = {f"results/{path.name}": path.read_text() for path in RESULTS}
    texts |= {name: path.read_text() for name, path in PAGES.items()}
    texts["results/index.md"] = _overview()
    for name, text in texts.items():
        files.append(File.generated(config, name, content=text))
    for name, path in DOWNLOADS.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_config(config: Any) -> Any:
    """Lists every results page in the navigation, under its own heading."""
    for entry in config["nav"]:
        if "Results" in entry:
            entry["Results"] += [{_heading(path): f"results/{path.name}"} for path in RESULTS]
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links to places in the repository into links on the site; gives lists the empty line they need here."""
    up = "../" * page.file.src_uri.count("/")
    for pattern, place in LINKS:
        markdown = pattern.sub(lambda match, place=place: f"]({up}{PLACES[place]}{match[1]})", markdown)
    return LIST_AFTER_TEXT.sub(r"\1\n\n\2", markdown)


def on_page_content(content: str, **_: Any) -> str:
    r"""Formulas (\(...\) and \[...\]) as MathML, which browsers draw without a script."""
    return FORMULA.sub(_mathml, content)


def _mathml(match: re.Match) -> str:
    display = "block" if match[2] == "[" else "inline"
    found = latex2mathml.converter.convert(html.unescape(match[3]).strip(), display=display)
    # A prime stands high already; as a superscript, in a font without mathematics, it flies away.
    found = re.sub(rf"<msup>{LETTER}<mi>{PRIME}</mi></msup>", rf"<mrow>\1{PRIMED}</mrow>", found)
    found = re.sub(
        rf"<msubsup>{LETTER}(<mi>\w</mi>|<mrow>.*?</mrow>)<mi>{PRIME}</mi></msubsup>",
        rf"<msub><mrow>\1{PRIMED}</mrow>\2</msub>",
        found,
    )
    return f'<div class="formula">{found}</div>' if display == "block" else found


def _heading(path: Path) -> str:
    return path.read_text().partition("\n")[0].removeprefix("# ").strip()


def _overview() -> str:
    rows = "\n".join(f"| [{_heading(path)}]({path.name}) | `benchmarks/results/{path.name}` |" for path in RESULTS)
    return (
        "# Results\n\nEvery figure that this project states was printed by a run of it. These are the committed records"
        " of those runs: command, date, machine, what was reached and what was not. The pages are made from the files"
        f" in `benchmarks/results/` when the site is built.\n\n| what | file |\n|---|---|\n{rows}\n"
    )
