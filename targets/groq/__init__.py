"""The `groq` family: packages for GroqFlow's public contract, which Groq's own compiler takes."""
