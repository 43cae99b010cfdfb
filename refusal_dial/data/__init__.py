"""What is read: prompts, openings to continue, contrast pairs. Text in, frozen rows out."""
