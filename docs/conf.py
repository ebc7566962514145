"""Sphinx: five kinds of pages, every reference resolved, every warning an error (`nox -s docs`)."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import click
from docutils import nodes
from sphinx.util.docutils import SphinxDirective
from sphinx.writers.html5 import HTML5Translator

import sinch_conv_async
from sinch_conv_async import fleet
from sinch_conv_async._core import manager, sharing
from sinch_conv_async.cli import main as command_line

if TYPE_CHECKING:
    from typing import Any

    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

PYPROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))

project = PYPROJECT["project"]["name"]
author = PYPROJECT["project"]["authors"][0]["name"]
copyright = author  # noqa: A001 - Sphinx' own name for it
version = release = PYPROJECT["project"]["version"]

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
default_role = "py:obj"
nitpicky = True

# The manager imports a fleet only when it is given one; autodoc reads its annotations, and needs
# their names.
manager.Fleet, manager.Sharing = fleet.Fleet, sharing.Sharing

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 57

# The build fetches nothing, so that it gives the same pages on a train. With DOCS_ONLINE=1, as in
# the published workflow, names of other projects become links.
intersphinx_mapping = (
    {
        "python": ("https://docs.python.org/3", None),
        "aiohttp": ("https://docs.aiohttp.org/en/stable", None),
        "attrs": ("https://www.attrs.org/en/stable", None),
        "cattrs": ("https://catt.rs/en/stable", None),
        "yarl": ("https://yarl.aio-libs.org/en/stable", None),
    }
    if os.environ.get("DOCS_ONLINE") == "1"
    else {}
)
# Other people's names, which only their inventories could resolve. Every name of this package must
# lead somewhere.
nitpick_ignore_regex = [
    # What a fleet's `token` passes on from its `fetch`: values of the package's own wire, of which
    # a store needs to know nothing.
    (r"py:class", r"TokenResponse|Failure"),
    # How the command line hands in a file; users give a path.
    (r"py:class", r"sinch_conv_async\._job\.input\.Source"),
    # Type variables of decorators and callbacks, which stand for whatever the user gives.
    (r"py:class", r"sinch_conv_async\..*\._T"),
    (
        r"py:.*",
        r"(aiohttp|array|asyncio|attrs?|builtins|cattrs|collections|contextlib|datetime|enum|json|logging|os|pathlib"
        r"|psycopg|psycopg_pool|random|redis|ssl|types|typing|yarl)(\..*)?",
    ),
    (
        r"py:.*",
        r"(Any|BaseException|bool|bytes|ConnectionError|dict|Exception|False|float|frozenset|int|KeyError|list|None"
        r"|object|OSError|RecursionError|ResourceWarning|RuntimeError|set|str|TimeoutError|True|tuple|type|ValueError)",
    ),
]

html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]
pygments_style = "default"
pygments_dark_style = "github-dark"

# Prompts are not copied, and neither is what a command prints.
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True

linkcheck_timeout = 20
linkcheck_retries = 2


def point_to_where_it_is_imported_from(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.Element
) -> nodes.Element | None:
    """A type in a signature is named after the file that defines it; the pages name it as users
    import it.
    """
    target = node.get("reftarget", "")
    module, _, name = target.rpartition(".")
    if not module.startswith("sinch_conv_async."):
        return None
    if target == "sinch_conv_async.client.ClientOptions":
        name = "ConversationClient"  # its keywords
    elif name not in sinch_conv_async.__all__:
        return None
    domain = env.get_domain("py")
    return domain.resolve_xref(
        env, node["refdoc"], app.builder, "obj", f"sinch_conv_async.{name}", node, contnode
    )


def defaults_as_they_are_written(
    app: Sphinx,
    what: str,
    name: str,
    obj: object,
    options: object,
    signature: str | None,
    return_annotation: str | None,
) -> tuple[str, str | None] | None:
    """A default is shown by its repr. Of attrs' mark for "a new dict each time", and of a function,
    that says nothing.
    """
    if signature is None:
        return None
    signature = signature.replace("= NOTHING", "= {}").replace(
        "<built-in function monotonic>", "time.monotonic"
    )
    return signature, return_annotation


class Translator(HTML5Translator):
    """HTML in which each cell of a table carries its column's heading, for phones, where a row is a
    paragraph (pages.css).
    """

    def starttag(
        self,
        node: nodes.Node,
        tagname: str,
        suffix: str = "\n",
        empty: bool = False,
        **attributes: Any,
    ) -> str:
        if tagname == "td" and isinstance(node, nodes.entry):
            heads = list(node.parent.parent.parent.findall(nodes.thead))
            if heads:
                attributes["data-label"] = heads[0][0][node.parent.index(node)].astext()
        return super().starttag(node, tagname, suffix, empty, **attributes)


class CommandOptions(SphinxDirective):
    """The options of one command, as click knows them: a page written by hand would fall behind."""

    required_arguments = 1
    final_argument_whitespace = True  # the name of a group's command has two words

    def run(self) -> list[nodes.Node]:
        command: click.Command = command_line
        for name in self.arguments[0].split():
            assert isinstance(command, click.Group)  # only a group's command has a further name
            command = command.commands[name]
        context = click.Context(command)
        text = [
            ".. list-table::",
            "   :class: stack",
            "   :header-rows: 1",
            "   :widths: 38 62",
            "",
        ]
        text += ["   * - Option", "     - Meaning"]
        for option in command.params:
            if isinstance(option, click.Option):
                names = " ".join([", ".join(option.opts), *self.value(option, context)])
                text += [f"   * - ``{names}``", f"     - {self.meaning(option, context)}"]
        return self.parse_text_to_nodes("\n".join(text))

    def value(self, option: click.Option, context: click.Context) -> list[str]:
        if option.is_flag:
            return []
        if isinstance(option.type, click.Choice):
            # With spaces, at which a line may end.
            return [f"[{' | '.join(option.type.choices)}]"]
        return [option.make_metavar(context)]

    def meaning(self, option: click.Option, context: click.Context) -> str:
        said = re.sub(r"  \[default: (\S+)\]", r" Default: ``\1``.", option.help or "")
        said = said.replace("  [default: ", " Default: ").replace("]", ".")
        # Names are set as code: an API's host, which is no page to visit, a variable, a word of the
        # API's.
        said = re.sub(r"https://[a-z.]*[a-z]|\b[A-Z]+(_[A-Z]+)+\b(=\.\.\.)?", r"``\g<0>``", said)
        if isinstance(option.type, click.IntRange) and option.type.max is not None:
            said += f" From {option.type.min:,} to {option.type.max:,}."
        extra = option.get_help_extra(context)
        if "default" in extra:
            said += f" Default: ``{extra['default']}``."
        return said


def setup(app: Sphinx) -> None:
    app.add_directive("command-options", CommandOptions)
    app.set_translator("html", Translator)
    app.connect("autodoc-process-signature", defaults_as_they_are_written)
    app.connect("missing-reference", point_to_where_it_is_imported_from)
