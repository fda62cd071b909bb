"""Results as they were measured, and the page of them."""
