"""What an operator of a face parser keeps, decides and shows: the store, the decisions, the page."""
