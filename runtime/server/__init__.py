"""The HTTP server over loaded artifacts."""
