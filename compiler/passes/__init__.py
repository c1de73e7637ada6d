"""Graph passes no target needs to be named for, one file each."""
