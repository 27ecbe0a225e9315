"""Our docstrings as mkdocstrings reads them.

A section "Example:" is code that runs, which it calls "Examples:". Fields that an argument's text lists, and a section
"Fields:", are lists, whose lines Markdown would otherwise run together. <Words> in angles are no HTML, and a colon in
what is returned does not end a type.
"""

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = readable(obj.docstring.value)


def readable(docstring: str) -> str:
    """The docstring with sections and lists as Markdown and griffe know them."""
    lines, made, section, in_list = docstring.splitlines(), [], "", False
    for number, line in enumerate(lines):
        if match := re.fullmatch(r"(\w+):", line):
            section, in_list = match[1], False
            line = "Examples:" if section == "Example" else line
        elif section == "Args" and re.match(r"  \S", line):  # an argument; does its text end in a list of fields?
            following = "\n".join(lines[number:])
            in_list = bool(re.match(r"  \S[^\n]*:(\n {5,}[^\n]*)*\n    [a-z][a-z_, ]*: ", following))
            if in_list:
                line += "\n"
        elif in_list and (match := re.match(r"    ([a-z][a-z_, ]*): ", line)):
            line = f"    - `{match[1]}`: {line[match.end() :]}"
        elif section == "Returns" and made[-1] == "Returns:":
            line = line.replace(": ", ":&nbsp;", 1)
        elif section == "Fields" and re.match(r"  \S", line):
            line = f"  - {line.strip()}"
        if section != "Example":
            line = re.sub(r"<(\w+)>", r"&lt;\1&gt;", line)
        made.append(line)
    return "\n".join(made)
