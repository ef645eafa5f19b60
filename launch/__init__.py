"""The commands that users run: each parses its flags, calls the engine and prints the result."""
