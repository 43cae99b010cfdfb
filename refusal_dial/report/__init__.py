"""How results are displayed: terminal tables, figures, pages. Nothing here computes a result."""
