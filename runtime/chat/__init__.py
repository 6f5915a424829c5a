"""Conversations: how turns become tokens, the session that holds them, and its file."""
