"""Sphinx: four kinds of pages, every reference resolved, every warning an error (`nox -s docs`)."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import click
from sphinx.util.docutils import SphinxDirective

import sinch_conv_async
from sinch_conv_async.cli import main as command_line

if TYPE_CHECKING:
    from docutils import nodes
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
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
default_role = "py:obj"
nitpicky = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 72
typehints_use_signature = True
typehints_use_signature_return = True
always_use_bars_union = True
typehints_document_rtype = False  # the signature says it

# The build fetches nothing, so that it gives the same pages on a train. With DOCS_ONLINE=1, as in the published
# workflow, names of other projects become links.
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
# BulkUpdate is made by update_many alone; what its constructor takes is no public name.
nitpick_ignore = [("py:class", "sinch_conv_async._session.Member")]
# Other people's names, which only their inventories could resolve. Every name of this package must lead somewhere.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(aiohttp|array|asyncio|attrs?|builtins|cattrs|collections|contextlib|datetime|enum|json|logging|os|pathlib"
        r"|random|ssl|types|typing|yarl)(\..*)?",
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
    """A type in a signature is named after the file that defines it; the pages name it as users import it."""
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


class CommandOptions(SphinxDirective):
    """The options of one command, as click knows them: a page written by hand would fall behind."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        command = command_line.commands[self.arguments[0]]
        context = click.Context(command)
        rows = [
            (", ".join(option.opts), option.make_metavar(context), option)
            for option in command.params
            if isinstance(option, click.Option)
        ]
        text = [".. list-table::", "   :class: stack", "   :widths: 38 62", ""]
        for names, metavar, option in rows:
            value = "" if option.is_flag else f" {metavar}"
            extra = option.get_help_extra(context)
            default = f" Default: ``{extra['default']}``." if "default" in extra else ""
            said = (option.help or "").replace("  [default: ", " Default: ").replace("]", ".")
            said = re.sub(
                r"https://[a-z.]*[a-z]", r"``\g<0>``", said
            )  # a name of the API's, and no page to visit
            text += [f"   * - ``{names}{value}``", f"     - {said}{default}"]
        return self.parse_text_to_nodes("\n".join(text))


def setup(app: Sphinx) -> None:
    app.add_directive("command-options", CommandOptions)
    app.connect("missing-reference", point_to_where_it_is_imported_from)
