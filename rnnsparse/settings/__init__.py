"""What can be set: a dataclass per section, whose types say all about each setting (`marks`)."""
