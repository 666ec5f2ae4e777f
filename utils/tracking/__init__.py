"""Run folders: read, grouped, checked, charted, shown as a page, exported. Nothing here writes into them."""
