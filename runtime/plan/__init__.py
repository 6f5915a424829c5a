"""What a model needs here: its sizes, the machine's, its memory plan, what to choose."""
