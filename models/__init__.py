"""What the networks look like: per architecture, the settings it reads and the tensors it needs.

No file is read here, and no other room is imported.
"""
