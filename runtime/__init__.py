"""Run a GGUF file: engine → sampler → text → session.

Goes in: a GGUF file, settings and a prompt. Comes out: text, token by token, and what it cost.
"""
