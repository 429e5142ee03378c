"""What is on record of a step: who may act for it, its units, its events, what people decide, its session."""
