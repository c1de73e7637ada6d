"""The whole of ``aicc compile`` on one screen: import → optimize → quantize → lower → package."""
