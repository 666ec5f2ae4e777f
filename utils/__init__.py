"""Plumbing that the scripts need the same and nobody ablates; in folders, science that scripts share."""
