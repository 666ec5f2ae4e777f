"""The operator: champions and their files, what is decided by, and its page."""
