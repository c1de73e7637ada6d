"""Weight formats: building, recognising, converting and measuring them."""
