"""Pages whose tables are generated: each stands between `<!-- name:begin -->` and `:end`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

MARKERS = re.compile(r"(<!-- (\w+):begin -->\n).*?(<!-- \2:end -->)", re.DOTALL)


def filled(text: str, sections: Mapping[str, Callable[[], str]]) -> str:
    """The page with every section made anew.

    Raises:
        KeyError: the page has a section that nothing makes.
    """
    return MARKERS.sub(lambda m: m[1] + sections[m[2]]().rstrip("\n") + "\n" + m[3], text)
