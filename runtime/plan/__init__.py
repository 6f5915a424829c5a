"""What a model takes here: its sizes, this machine's, the plan of its memory, what to choose."""
