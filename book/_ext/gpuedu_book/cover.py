"""``{cover}``: the landing page's picture, a schedule that the package makes when the book is built."""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from gpuedu.pipeline_parallel.cost import Timeline, timeline
from gpuedu.pipeline_parallel.plan import BACKWARD_INPUT, BACKWARD_WEIGHT, FORWARD, zb_h2

from .elements import element, raw

STAGES, MICROBATCHES = 5, 9
VIEW = f"pipeline-schedule?schedule=zb_h2&p={STAGES}&m={MICROBATCHES}"
CLASSES = {FORWARD: "c-forward", BACKWARD_INPUT: "c-backward", BACKWARD_WEIGHT: "c-weight"}
UNIT, LANE, GAP = 28, 26, 3


def strip(priced: Timeline) -> str:
    """A timeline as bars alone: a lane a rank, a color a kind of pass."""
    bars = [
        f'<rect class="{CLASSES[span.action.kind]}" x="{UNIT * float(span.start):g}" y="{LANE * span.rank}" '
        f'width="{UNIT * float(span.end - span.start) - GAP:g}" height="{LANE - GAP}" rx="2"/>'
        for span in priced.spans
    ]
    width, height = UNIT * float(priced.makespan) - GAP, LANE * priced.schedule.stages - GAP
    return f'<svg viewBox="0 0 {width:g} {height}" aria-hidden="true">{"".join(bars)}</svg>'


class Cover(SphinxDirective):
    """The content is the subtitle."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Subtitle, picture and a link to the same schedule in its explorer."""
        subtitle, messages = self.state.inline_text(" ".join(self.content), self.lineno)
        caption, more_messages = self.state.inline_text(
            f"A {{preset}}`zero-bubble schedule <{VIEW}>`: {STAGES} GPUs, one a lane, and {MICROBATCHES} "
            "microbatches. Forward passes are blue, input gradients orange, weight gradients green; the "
            "blank ends are waiting.",
            self.lineno,
        )
        picture = element(
            "figure",
            raw(strip(timeline(zb_h2(STAGES, MICROBATCHES)))),
            element("figcaption", *caption),
            class_="cover-picture",
        )
        box = element("div", element("p", *subtitle, class_="cover-subtitle"), picture, class_="cover wide")
        return [box, *messages, *more_messages]


def setup(app: Sphinx) -> dict:
    """Register the directive."""
    app.add_directive("cover", Cover)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
