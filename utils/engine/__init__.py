"""The data engine: what it decides by, the runs that it starts, and its report."""
