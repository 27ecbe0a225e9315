"""From a template and plain content to one file that needs no other."""

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax_advtrain
from jax_advtrain.evaluation.classwise.facts import plain
from jax_advtrain.evaluation.results import write_atomically

REPORT_NAME = "report.html"
MOST_BYTES = 8_000_000
_FOLDER = Path(__file__).parent
_LIBRARIES = ("vega.min.js", "vega-lite.min.js", "vega-embed.min.js")


def write_page(template: str, path: str | os.PathLike, content: Mapping[str, Any]) -> Path:
    """Fills a template of templates/ and writes it, whole or not at all; nothing where just this is there already.

    Args:
      content: plain values; "charts", {name: specification}, becomes JSON inside the page. Texts are escaped.

    Raises:
      ValueError: the page would exceed MOST_BYTES, charts that are no JSON.
      OSError: no space, no permission.
    """
    charts = dict(content.get("charts", {}))
    # The library is most of the page: without a chart it is left out.
    scripts = [*(_library() if charts else ()), (_FOLDER / "static" / "page.js").read_text("utf-8")]
    text = _environment().get_template(template).render(
        **{**content, "charts": as_json(charts)},
        styles=(_FOLDER / "static" / "page.css").read_text("utf-8"),
        scripts=scripts,
        script_hashes=[_hash(script) for script in scripts],
        version=jax_advtrain.__version__,
    )  # fmt: skip
    whole = text.encode("utf-8")
    if len(whole) > MOST_BYTES:
        raise ValueError(f"the page would have {len(whole):,} bytes, more than {MOST_BYTES:,}")
    path = Path(path)
    if path.is_file() and path.read_bytes() == whole:
        return path
    return write_atomically(path, lambda file: file.write(whole))


def as_json(value: Any) -> str:
    """JSON that cannot end the script element around it, whatever texts it holds; NaN becomes null."""
    text = json.dumps(plain(value), allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    # The rest of HTML's ways out of a script: the two line ends that old JavaScript does not take in a text.
    signs = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
    return re.sub("[<>&\u2028\u2029]", lambda sign: signs[sign[0]], text)


@cache
def _environment():
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["percent"] = percent
    made.filters["share"] = lambda value: "-" if value is None else f"{100 * value:.2f}%"
    return made


@cache
def _library() -> tuple[str, ...]:
    """Vega without the notes on where its source maps lie, which a browser's console would look for."""
    texts = ((_FOLDER / "vega" / name).read_text("utf-8") for name in _LIBRARIES)
    return tuple(re.sub(r"\n//# sourceMappingURL=\S*", "", text).strip() for text in texts)


@cache
def _hash(script: str) -> str:
    """What the page's policy names an inline script by: no other one runs."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode()


def percent(value: float | None, digits: int = 1) -> str:
    """A share as text: 97.5%; "-" where it is not known."""
    return "-" if value is None else f"{value:.{digits}%}"
