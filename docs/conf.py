"""The pages as a site, in site/html/ (`make docs`). Its source is the whole repository: links stay as they are."""

import re
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.ext.napoleon import GoogleDocstring

import kgpyro

project, author, version = "kgpyro", "The kgpyro developers", kgpyro.__version__
copyright, root_doc = author, "docs/index"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
include_patterns = ["docs/*.md", "notebooks/*.ipynb", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md"]
exclude_patterns = [".*", "artefacts", "build", "dist", "kgpyro", "mutants", "runs", "site", "tests"]
myst_enable_extensions, myst_heading_anchors = ["dollarmath"], 3
nb_execution_mode = "off"  # `make check` runs them, and holds what is stored to their cells
autodoc_member_order, autodoc_typehints = "bysource", "none"  # docstrings give shapes and units, which types do not
default_role, maximum_signature_line_length = "code", 100
napoleon_use_rtype, napoleon_use_ivar = False, True
GoogleDocstring._consume_inline_attribute = lambda self: ("", self._consume_to_end())  # a property's colon is no type
nitpick_ignore_regex = [  # other libraries' names, and inner rooms' that the API page leaves out
    ("py:.*", r"(collections|lightning|numpy|pandas|pyro|torch|types)\..*"),
    ("py:.*", r"kgpyro\.(data|evaluation|posterior|program)\..*|(Batch|facts|summary).*"),
]
html_theme, html_title = "furo", f"kgpyro {version}"
html_static_path, html_css_files = ["static"], ["site.css"]
html_show_sphinx = html_copy_source = False
html_math_renderer = "mathml"


def mathml(self, node):
    """Formulas as MathML, which browsers draw without a script from elsewhere."""
    block = node.tagname == "math_block"
    formula = tex2mathml(node.astext(), as_block=block)
    self.body.append(f'<div class="math">{formula}</div>' if block else formula)
    raise nodes.SkipNode


def readme(app, page, text):
    """The first page is the README, its links as from docs/."""
    if page == root_doc:
        text[0] = re.sub(r"\]\((?!https?:)", "](../", Path(app.srcdir, "README.md").read_text("utf-8")) + text[0]


def forward(app, _):
    """The folder opens at the first page."""
    Path(app.outdir, "index.html").write_text(f'<meta http-equiv="refresh" content="0; url={root_doc}.html">')


def setup(app):
    app.add_html_math_renderer("mathml", inline_renderers=(mathml, None), block_renderers=(mathml, None))
    app.connect("source-read", readme)
    app.connect("build-finished", forward)
