"""Figures: a Vega-Lite specification, its files for papers, and its SVG for the page. Equal input gives equal SVG and PNG files."""

import functools
from dataclasses import dataclass
from pathlib import Path

from qgoft.report.vega import Spec

VEGA_LITE = "6.4"
# A font that vl-convert contains, so that the files do not depend on those of the machine. 340 pixels are a column of a two-column paper.
CONFIG = {
    "background": "white",
    "font": "Liberation Sans",
    "axis": {"titleFontWeight": "normal", "gridColor": "#e5e5e5"},
    "legend": {"titleFontWeight": "normal"},
    "header": {"labelFontSize": 11},
    "title": {"fontWeight": "normal", "fontSize": 12},
    "view": {"stroke": None},
}


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        name: stem of its files, with hyphens.
    """

    name: str
    spec: Spec
    caption: str

    @functools.cached_property
    def svg(self) -> str:
        import vl_convert

        svg: str = vl_convert.vegalite_to_svg(self.spec, VEGA_LITE, config=CONFIG)
        # In a PDF every opacity becomes an object, and their order is not fixed: without them, most PDF files are equal, too.
        return svg.replace(' opacity="1"', "").replace(' opacity="0"', ' display="none"')

    def write(self, directory: Path) -> list[Path]:
        """Write name.svg, name.pdf and name.png. Return the paths."""
        import vl_convert

        directory.mkdir(parents=True, exist_ok=True)
        content = {
            ".svg": self.svg.encode(),
            ".pdf": vl_convert.svg_to_pdf(self.svg),
            ".png": vl_convert.svg_to_png(self.svg, ppi=200),
        }
        paths = [directory / f"{self.name}{suffix}" for suffix in content]
        for path, data in zip(paths, content.values(), strict=True):
            path.write_bytes(data)
        return paths
