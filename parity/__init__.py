"""Is it right? Tolerances, comparisons, word errors, and what a bundle says and hears."""
