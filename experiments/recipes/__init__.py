"""Problem files, warm starts and fetchers that runs need."""
