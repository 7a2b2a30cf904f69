"""A small world with about six hundred words: events are objects that are realised as text, so every label follows from meaning."""
