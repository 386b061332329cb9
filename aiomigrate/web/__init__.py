"""The page to watch migrations, and the report to keep: files that the package brings with it.

Nothing here knows the engine or HTTP: `ASSETS` are bytes for whoever serves them, and `render_html`
makes one file of a report. Both show a migration with the same scripts (`assets/view.js`).
"""

from aiomigrate.web.assets import ASSETS, PAGE, POLICY, Asset
from aiomigrate.web.rendering import render_html

__all__ = ["ASSETS", "PAGE", "POLICY", "Asset", "render_html"]
