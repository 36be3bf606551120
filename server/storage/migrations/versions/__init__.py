"""One file a revision; once released, a revision never changes."""
