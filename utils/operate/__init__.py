"""What an operator of a face parser keeps, decides and shows: champions, verdicts, the page."""
