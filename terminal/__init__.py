"""What a person sees and types: drawing, records as text, the chat."""
