"""Plumbing that the scripts need the same and nobody ablates, and the science that two of them share."""
