"""Who may come in, and what of what they send is let through to the rounds."""
