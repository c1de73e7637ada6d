"""The `cerebras` family: decoder blocks in the dialect that the maker's public lowering tool takes."""
