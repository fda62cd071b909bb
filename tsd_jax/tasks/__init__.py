"""Tasks: what is asked, when an answer ends, and what it is worth."""
