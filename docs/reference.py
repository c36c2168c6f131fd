"""For the reference pages: what a package imports is what it offers, and examples become blocks of code."""

import re
import textwrap

import griffe

# An example goes from its prompt to the next empty line.
EXAMPLE = re.compile(r"^>>> .*?(?=^\s*$|\Z)", re.DOTALL | re.MULTILINE)


class Reference(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, **_: object) -> None:
        for module in [pkg, *pkg.modules.values()]:
            if module.is_init_module:
                offered = [name for name, member in module.members.items() if member.is_alias]
                module.exports = [name for name in offered if not name.startswith("_")]

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring:
            text = textwrap.dedent(obj.docstring.value)
            fenced = EXAMPLE.sub(lambda match: f"```pycon\n{match[0].rstrip()}\n```\n", text)
            # Markdown wants an empty line before a list.
            obj.docstring.value = re.sub(r"(?m)^(?!- |  )(.+)\n(?=- )", r"\1\n\n", fenced)
