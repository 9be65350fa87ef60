"""The contract: what a bundle and an engine folder hold, and the errors a user can meet."""
