"""Our docstrings as mkdocstrings reads them: a section "Example:" is code that runs, which it calls "Examples:"."""

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Renames the section before the docstring is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
