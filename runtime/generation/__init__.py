"""Generation: the loop, choosing ids, and answers whole or as they come."""
