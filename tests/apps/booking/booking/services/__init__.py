"""What the application does: each function takes the caller's session, and leaves the commit to the caller."""
