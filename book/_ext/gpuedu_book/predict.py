"""``{predict}``: a question with a number for an answer, and the answer behind a reveal.

::

    :::{predict} What share of the cluster's time is idle?
    :unit: %
    :answer: bubble_share_percent
    The explanation, with the answer in it.
    :::

The answer is a number, or the name under which one of the page's own cells has glued it. Without
JavaScript the reveal is a plain ``<details>``; with it the reader first commits to a number, and is
told how far off it was.
"""

from __future__ import annotations

from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from .elements import element, raw, text

# The reader's number: hidden until the script that reads it has come
GUESS = """\
<div class="predict-guess" hidden>
  <input type="number" inputmode="decimal" step="any" id="{name}" autocomplete="off">
  <span class="predict-unit">{unit}</span>
  <button type="button">Commit</button>
  <span class="predict-missing" role="status"></span>
</div>
"""


class Predict(SphinxDirective):
    """The question is the argument, the explanation the content."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True
    option_spec: ClassVar = {"answer": directives.unchanged_required, "unit": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """Build the question, the reader's number and the reveal."""
        if "answer" not in self.options:
            raise self.error("predict: give the answer, a number or the name of a glued value")
        unit = self.options.get("unit", "")
        name = f"predict-{self.env.new_serialno('predict') + 1}"
        question, messages = self.state.inline_text(self.arguments[0], self.lineno)
        answer, more_messages = self.state.inline_text(self._answer(), self.lineno)
        explanation = nodes.container()
        self.state.nested_parse(self.content, self.content_offset, explanation)

        reveal = element(
            "details",
            text("summary", "Show the answer"),
            element("p", element("output", class_="predict-verdict", for_=name), hidden="hidden"),
            *explanation.children,
            class_="predict-reveal",
        )
        box = element(
            "div",
            element("p", element("label", *question, for_=name), class_="predict-question"),
            raw(GUESS.format(name=name, unit=unit)),
            element("data", *answer, class_="predict-answer", data_unit=unit, value="", hidden="hidden"),
            reveal,
            class_="predict",
        )
        return [box, *messages, *more_messages]

    def _answer(self) -> str:
        """The answer as inline MyST: a literal number stays, a name becomes its glued value."""
        answer = self.options["answer"].strip()
        return f"{{glue:text}}`{answer}`" if answer.isidentifier() else answer


def setup(app: Sphinx) -> dict:
    """Register the directive and its script."""
    app.add_directive("predict", Predict)
    app.add_js_file("predict.js", loading_method="defer")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
