"""Speculative decoding: guess some tokens cheaply, verify them in one batch, keep what is right.

Goes in: an engine, and a draft model or the conversation itself to guess from. Comes out: the same
tokens as without, in fewer steps; guessing stops when it does not pay.
"""
