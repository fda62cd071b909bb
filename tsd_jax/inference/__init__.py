"""Reading prompts, sampling responses and scoring them."""
