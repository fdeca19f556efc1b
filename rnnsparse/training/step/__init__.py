"""What one optimizer step does; nothing here knows a folder or a configuration file."""
