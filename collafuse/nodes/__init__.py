"""Client and server: what each owns, and what each may see."""
