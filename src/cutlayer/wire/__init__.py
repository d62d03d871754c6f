"""The wire: what is said (`messages`), how it looks as bytes (`frames`), and what carries it (`link`)."""
